"""The arguments of a case: random, never zero, made once on the device and shared by all contenders."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.cases import Case

Data = Mapping[str, Array]

LOGIT_SCALE = 3.0
FLAT_SCALE = 0.1  # of the hidden states: logits as those of a model that was just initialised
MASKED = 0.1  # the share of rows that do not count, in "weighted"


def make_data(case: Case) -> dict[str, Array]:
    """`logits`, or `hidden` and `kernel`; `labels`; for "weighted" also `class_weight` and `where`.

    The same for both modes of a case.
    """
    seed = zlib.crc32(repr((case.kind, case.shape, case.spread)).encode())
    # Its bits cost next to nothing, and these numbers guard no secret.
    key = jax.random.key(seed, impl="rbg")
    make = {"linear": _linear, "ppo": _ppo, "soft": _soft, "weighted": _weighted, "multilabel": _multilabel}.get(
        case.kind, _ids
    )
    data = jax.jit(make, static_argnums=1)(key, case)
    return jax.block_until_ready(data)


def rows_of(case: Case, data: Data, rows: int) -> dict[str, Array]:
    """The first rows of the data of a case; `rows` of its first axis."""
    per_row = {"logits", "hidden", "labels", "where", "old_log_prob", "advantage"}
    return {name: array[:rows] if name in per_row else array for name, array in data.items()}


def _normal(key: Array, shape: tuple[int, ...], scale: float, case: Case) -> Array:
    dtype = jnp.dtype(case.dtype)
    return jax.random.normal(key, shape, dtype) * jnp.asarray(scale, dtype)


def _ids(key: Array, case: Case) -> dict[str, Array]:
    a, b = jax.random.split(key)
    labels = jax.random.randint(b, case.row_shape, 0, case.num_classes, jnp.int32)
    return {"logits": _normal(a, case.shape, LOGIT_SCALE, case), "labels": labels}


def _soft(key: Array, case: Case) -> dict[str, Array]:
    a, b = jax.random.split(key)
    teacher = jax.random.normal(b, case.shape, jnp.float32) * LOGIT_SCALE
    labels = jax.nn.softmax(teacher, axis=case.axis).astype(case.dtype)
    return {"logits": _normal(a, case.shape, LOGIT_SCALE, case), "labels": labels}


def _weighted(key: Array, case: Case) -> dict[str, Array]:
    a, b, c = jax.random.split(key, 3)
    # bfloat16 can hold them, so that those who have to cast them lose nothing.
    class_weight = jax.random.uniform(b, (case.num_classes,), jnp.bfloat16, 0.5, 2.0).astype(jnp.float32)
    where = jax.random.bernoulli(c, 1 - MASKED, case.row_shape)
    return {**_ids(a, case), "class_weight": class_weight, "where": where}


def _multilabel(key: Array, case: Case) -> dict[str, Array]:
    a, b = jax.random.split(key)
    labels = jax.random.bernoulli(b, 0.1, case.shape).astype(case.dtype)
    return {"logits": _normal(a, case.shape, LOGIT_SCALE, case), "labels": labels}


def _linear(key: Array, case: Case) -> dict[str, Array]:
    a, b, c = jax.random.split(key, 3)
    n, d, v = case.shape
    labels = jax.random.randint(c, (n,), 0, v, jnp.int32)
    kernel = _normal(b, (d, v), 1 / math.sqrt(d), case)
    hidden = _normal(a, (n, d), FLAT_SCALE if case.spread == "flat" else 1.0, case)
    if case.spread == "peaked":
        # The columns have length 1, so the label's logit is about log V + 2 and its probability well above a half.
        hidden = hidden + jnp.asarray(math.log(v) + 2, hidden.dtype) * kernel[:, labels].T
    return {"hidden": hidden, "kernel": kernel, "labels": labels}


def _ppo(key: Array, case: Case) -> dict[str, Array]:
    """Old log-probabilities near those of a flat policy, so that some ratios are clipped."""
    a, b, c = jax.random.split(key, 3)
    noise, advantage = (jax.random.normal(k, case.row_shape, jnp.float32) for k in (b, c))
    return {**_linear(a, case), "old_log_prob": 0.2 * noise - math.log(case.num_classes), "advantage": advantage}
