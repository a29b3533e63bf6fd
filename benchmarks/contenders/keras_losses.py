"""Keras 3 on its JAX backend."""

from __future__ import annotations

import jax.numpy as jnp

from benchmarks.cases import CROSS_ENTROPIES, Case
from benchmarks.contenders.base import optional
from benchmarks.contenders.jax_programs import Loss, jax_contender
from benchmarks.contenders.optax_losses import weighted_labels, weighted_mean


def backend_is_another() -> str | None:
    backend = optional("keras").backend.backend()
    return None if backend == "jax" else f"keras has the backend {backend}, not jax"


def loss_of(case: Case) -> Loss:
    ops = optional("keras").ops
    match case.kind:
        case "soft":
            return lambda d: ops.categorical_crossentropy(d["labels"], d["logits"], from_logits=True).mean()
        case "multilabel":
            return lambda d: ops.binary_crossentropy(d["labels"], d["logits"], from_logits=True).mean()
        case "weighted":
            return lambda d: weighted_mean(
                ops.categorical_crossentropy(
                    weighted_labels(d, d["logits"].dtype), d["logits"], from_logits=True
                ).astype(jnp.float32),
                d,
            )
    # The classes have to be last.
    return lambda d: ops.sparse_categorical_crossentropy(
        d["labels"], jnp.moveaxis(d["logits"], case.axis, -1), from_logits=True
    ).mean()


CONTENDERS = [
    jax_contender(
        "keras",
        loss_of,
        kinds=tuple(kind for kind in CROSS_ENTROPIES if kind != "linear"),
        modules=("keras",),
        missing=backend_is_another,
    )
]
