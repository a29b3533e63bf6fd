"""tokamax's linear softmax cross entropy, in the form that runs everywhere."""

from __future__ import annotations

import logging

from benchmarks.cases import Case
from benchmarks.contenders.base import optional
from benchmarks.contenders.jax_programs import Loss, jax_contender


def loss_of(case: Case) -> Loss:
    tokamax = optional("tokamax")
    # It warns at every call that nothing was tuned, which "chunked_xla" has no use for.
    logging.getLogger("absl").setLevel(logging.ERROR)
    return lambda d: tokamax.linear_softmax_cross_entropy_loss(
        d["hidden"], d["labels"], d["kernel"], reduction="mean", implementation="chunked_xla"
    )


CONTENDERS = [jax_contender("tokamax chunked_xla", loss_of, kinds=("linear",), modules=("tokamax",))]
