"""jxent."""

from __future__ import annotations

import jxent
from benchmarks.cases import KINDS, LABEL_SMOOTHING, Case, clipped
from benchmarks.contenders.jax_programs import Loss, jax_contender


def loss_of(case: Case) -> Loss:
    match case.kind:
        case "linear":
            return lambda d: jxent.linear_softmax_cross_entropy(d["hidden"], d["kernel"], d["labels"], reduction="mean")
        case "ppo":
            return lambda d: jxent.linear_softmax_loss(
                clipped, d["hidden"], d["kernel"], d["labels"], d["old_log_prob"], d["advantage"]
            )
        case "multilabel":
            return lambda d: jxent.sigmoid_binary_cross_entropy(d["logits"], d["labels"], reduction="mean")
        case "weighted":
            return lambda d: jxent.softmax_cross_entropy(
                d["logits"],
                d["labels"],
                class_weight=d["class_weight"],
                where=d["where"],
                label_smoothing=LABEL_SMOOTHING,
                reduction="mean",
            )
    return lambda d: jxent.softmax_cross_entropy(d["logits"], d["labels"], axis=case.axis, reduction="mean")


CONTENDERS = [jax_contender("jxent", loss_of, kinds=KINDS, role="ours")]
