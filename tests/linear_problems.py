"""Problems for the fused loss, with all of its arguments, and the same loss from logits that are held whole."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jxent
from tests import oracle


@dataclass(frozen=True)
class Problem:
    """One call of the loss.

    Attributes:
        arguments: the differentiable arguments by name, distributions (as "labels") among them.
        fixed: the other ones: ids, `where`.
        cotangents: one for each reduction, of the structure of its result.
    """

    arguments: dict[str, Any]
    fixed: dict[str, Any]
    cotangents: dict[str, Any]


def make_problem(
    rng, rows, depth, num_classes, kind, *, softcap=None, scale=1.0, bare=False, masked=True, dtype=np.float64
):
    """A random problem in `dtype`; with every option on, or `bare` with none, or all but the mask."""
    arguments = {
        "hidden": rng.normal(size=(*rows, depth)),
        "kernel": scale * rng.normal(size=(depth, num_classes)),
    }
    fixed = {}
    if kind == "ids":
        fixed["labels"] = rng.integers(num_classes, size=rows, dtype=np.int32)
    else:
        arguments["labels"] = rng.dirichlet(np.ones(num_classes), rows)
    if not bare:
        arguments |= {
            "bias": rng.normal(size=num_classes),
            "class_weight": rng.uniform(0.5, 2, num_classes),
            "sample_weight": rng.uniform(0.5, 2, rows),
            "label_smoothing": np.array(0.1),
            "z_loss": np.array(0.01),
            "logit_scale": np.array(1.3),
        }
        if masked:
            fixed["where"] = rng.random(rows) < 0.8
    if softcap is not None:
        arguments["logit_softcap"] = np.array(softcap)
    cotangents = {
        "none": rng.normal(size=rows),
        "sum": rng.normal(),
        "mean": rng.normal(),
        "partial": jxent.Mean(rng.normal(), rng.normal()),
    }
    accumulated = np.promote_types(dtype, np.float32)
    return Problem(
        {name: jnp.asarray(value, dtype) for name, value in arguments.items()},
        fixed,
        jax.tree.map(lambda c: jnp.asarray(c, accumulated), cotangents),
    )


def fused(arguments, **options):
    return jxent.linear_softmax_cross_entropy(**arguments, **options)


def logits_of(a):
    """Whole, of the arguments by name."""
    logits = a["hidden"] @ a["kernel"]
    if "logit_scale" in a:
        logits = a["logit_scale"] * logits
    if "bias" in a:
        logits = logits + jnp.expand_dims(a["bias"], range(logits.ndim - 1))
    if "logit_softcap" in a:
        logits = a["logit_softcap"] * jnp.tanh(logits / a["logit_softcap"])
    return logits


def materialised(arguments, *, reduction="none", where=None, **labels):
    """The plain formula, differentiated by jax, on logits that are held whole."""
    a = {**arguments, **labels}
    options = {name: a[name] for name in ("class_weight", "label_smoothing", "z_loss") if name in a}
    rows, weight = oracle.softmax_rows(logits_of(a), a["labels"], **options, xp=jnp)
    reduced = oracle.reduce(
        rows, weight, sample_weight=a.get("sample_weight"), where=where, reduction=reduction, xp=jnp
    )
    return jxent.Mean(*reduced) if reduction == "partial" else reduced


def gradients(loss, arguments, problem, cotangent, **options):
    """The value, and the gradients of ⟨cotangent, value⟩ by every differentiable argument."""
    value, pull = jax.vjp(lambda arguments: loss(arguments, **problem.fixed, **options), arguments)
    return value, pull(cotangent)[0]
