"""Problems for the fused loss, with all of its arguments, and the same loss from logits that are held whole."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jxent


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
    logits = logits_of(a)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    num_classes = logits.shape[-1]
    w = jnp.expand_dims(a.get("class_weight", jnp.ones(num_classes, logits.dtype)), range(logits.ndim - 1))
    q = a["labels"]
    if jnp.issubdtype(q.dtype, jnp.integer):
        q = jax.nn.one_hot(q, num_classes, dtype=logits.dtype)
    smoothing = a.get("label_smoothing", jnp.zeros((), logits.dtype))
    smooth = (1 - smoothing) * q + smoothing / num_classes
    rows = -jnp.sum(w * smooth * (logits - log_z[..., None]), -1)
    rows = rows + a.get("z_loss", jnp.zeros((), logits.dtype)) * jnp.square(log_z)
    scale = a.get("sample_weight", jnp.ones(log_z.shape, logits.dtype))
    scale = scale if where is None else jnp.where(where, scale, 0)
    if reduction == "none":
        return scale * rows
    total, weight = jnp.sum(scale * rows), jnp.sum(scale * jnp.sum(w * q, -1))
    mean = jnp.where(weight == 0, 0, total) / jnp.where(weight == 0, 1, weight)
    return {"sum": total, "mean": mean, "partial": jxent.Mean(total, weight)}[reduction]


def gradients(loss, arguments, problem, cotangent, **options):
    """The value, and the gradients of ⟨cotangent, value⟩ by every differentiable argument."""
    value, pull = jax.vjp(lambda arguments: loss(arguments, **problem.fixed, **options), arguments)
    return value, pull(cotangent)[0]
