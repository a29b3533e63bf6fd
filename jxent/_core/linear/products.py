"""One chunk of rows: its logits, the rows evaluated from them, and the gradients through the two matmuls."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jxent._core.dtypes import compute_dtype
from jxent._core.linear.records import Config, Evaluated, LinearAux, PerRow, Shared
from jxent._core.rows.divergence import divergence
from jxent._core.rows.losses import (
    evaluate,
    log_probs_of_several,
    row_log_z,
    row_loss,
    row_mass,
    row_nll,
    row_predicted,
)
from jxent._core.shards import aligned
from jxent._core.targets import Targets, is_ids


def chunk_rows(config: Config, products: Array, per_row: PerRow, shared: Shared) -> tuple[Evaluated, Array]:
    """Evaluates the rows from hidden·W; returns log_z too. jax differentiates this, and the rows use their own rule."""
    if config.beta is not None:
        return _divergence(config, products, per_row, shared)
    logits = products if shared.logit_scale is None else shared.logit_scale * products
    logits = logits if shared.bias is None else logits + shared.bias[None, :]
    if shared.logit_softcap is not None:
        logits = softcap(logits, shared.logit_softcap)
    targets = Targets(
        labels=per_row.labels,
        class_weight=shared.class_weight,
        label_weight=per_row.label_weight,
        smoothing=shared.smoothing,
        sample_weight=None,
        where=per_row.where,
        axis=1,
        vocab_axis_name=config.vocab_axis_name,
        no_class=config.no_class,
        entries=per_row.entries,
    )
    if targets.are_ids and per_row.labels.ndim == 2:
        log_prob, entropy = log_probs_of_several(logits, targets, config.with_entropy)
        return Evaluated(-log_prob, entropy, None, None), jnp.zeros_like(log_prob[:, 0])
    with_entropy = config.with_entropy or config.row_loss is not None
    rows = evaluate(logits, targets, aux=config.with_aux, entropy=with_entropy)
    if config.row_loss is None:
        loss = row_loss(rows, targets, shared.z_loss)
    else:
        loss = _loss_of(config.row_loss, -rows.nll, rows.entropy, per_row)
    log_z = row_log_z(rows, targets)
    aux = None
    if config.with_aux:
        aux = LinearAux(log_z, row_predicted(rows, targets), row_nll(rows, targets))
    entropy = rows.entropy if config.with_entropy else None
    return Evaluated(loss, entropy, aux, None if is_ids(per_row.labels) else row_mass(rows, targets)), log_z


def _divergence(config: Config, products: Array, per_row: PerRow, shared: Shared) -> tuple[Evaluated, Array]:
    assert config.beta is not None
    assert per_row.teacher_hidden is not None
    assert shared.teacher_kernel is not None
    hidden = _masked(per_row.teacher_hidden, per_row.where)
    kernel = shared.teacher_kernel.astype(hidden.dtype)
    teacher = _matmul(config, hidden, kernel, 1, int(config.teacher_transpose_kernel))
    student, teacher = (
        logits if bias is None else logits + bias[None, :]
        for logits, bias in ((products, shared.bias), (teacher, shared.teacher_bias))
    )
    loss = divergence(
        1, config.vocab_axis_name, config.beta, student, teacher, shared.inverse_temperature, per_row.where
    )
    return Evaluated(loss, None, None, None), jnp.zeros_like(loss)


def _loss_of(row_loss: Callable[..., Array], log_prob: Array, entropy: Array, per_row: PerRow) -> Array:
    """Masked rows are 0 in the input and the output, whatever they hold, and so in every gradient."""
    log_prob, entropy, *row_args = (_masked(a, per_row.where) for a in (log_prob, entropy, *per_row.row_args))
    return _masked(row_loss(log_prob, entropy, *row_args).astype(log_prob.dtype), per_row.where)


def softcap(logits: Array, cap: Array) -> Array:
    """cap·tanh(logits/cap), except that −inf stays −inf: that class does not exist. A cap of inf is none."""
    is_dead, is_none = logits == -jnp.inf, cap == jnp.inf
    cap = jnp.where(is_none, 1, cap)
    capped = jnp.where(is_dead, -jnp.inf, cap * jnp.tanh(jnp.where(is_dead, 0, logits) / cap))
    return jnp.where(is_none, logits, capped)


def products_of(config: Config, per_row: PerRow, shared: Shared) -> Array:
    """hidden·W, `[C, V]`."""
    hidden = _masked(per_row.hidden, per_row.where)
    return _matmul(config, hidden, _kernel(per_row, shared), 1, int(config.transpose_kernel))


def narrowed(d_products: Array, dtype: Any) -> tuple[Array, Array | None]:
    """Casts the gradient of the products to the dtype of their operands. Also returns the unit of each row: a power of
    two, `[C, 1]`, or None for 1.

    The coefficient of a row (its weight, the loss scale) may be far from 1, and float16 reaches from 6e-8 to 65504. So
    in float16 the largest entry of each row is scaled to 2¹⁴ or so, whatever the coefficient is.
    """
    if dtype != jnp.float16:
        return d_products.astype(dtype), None
    largest = lax.stop_gradient(jnp.max(jnp.abs(d_products), 1, keepdims=True))
    # Dropping the mantissa leaves a power of two. Rows of 0 and of NaN get the lowest unit, which hides no other unit.
    unit = lax.reduce_precision(largest, jnp.finfo(largest.dtype).nexp, 0)
    unit = jnp.where(unit < jnp.inf, jnp.maximum(unit, 2.0**-100), 2.0**-100) * 2.0**-14
    return (d_products / unit).astype(dtype), unit


def d_hidden_of(config: Config, d_products: Array, unit: Array | None, per_row: PerRow, shared: Shared) -> Array:
    gradient = _matmul(config, d_products, _kernel(per_row, shared), 1, int(not config.transpose_kernel))
    gradient = gradient if unit is None else gradient * unit
    return _masked(gradient, per_row.where)


def d_kernel_of(config: Config, d_products: Array, unit: Array | None, per_row: PerRow) -> Array:
    hidden = _masked(per_row.hidden, per_row.where)
    if unit is None:
        return _outer(config, hidden, d_products)
    # A sum over the rows needs one unit: the largest. What rows with smaller units lose by it would be lost in the sum
    # anyway.
    largest = jnp.max(unit)
    hidden = (hidden.astype(unit.dtype) * (unit / largest)).astype(hidden.dtype)
    return largest * _outer(config, hidden, d_products)


def _outer(config: Config, hidden: Array, d_products: Array) -> Array:
    """hiddenᵀ·d_products, `[D, V]`, or its transpose."""
    operands = (d_products, hidden) if config.transpose_kernel else (hidden, d_products)
    if hidden.dtype != jnp.bfloat16:
        return _matmul(config, *operands, 0, 0)

    # XLA:CPU converts bfloat16 operands anyway, except for some batches, for which it then has no matmul.
    def of_converted(a: Array, b: Array) -> Array:
        dtype = compute_dtype(a.dtype)
        return _matmul(config, a.astype(dtype), b.astype(dtype), 0, 0)

    return lax.platform_dependent(
        *aligned(operands), cpu=of_converted, default=lambda a, b: _matmul(config, a, b, 0, 0)
    )


def _masked(array: Array, where: Array | None) -> Array:
    """0 in masked rows. In hidden states, a NaN there would reach every row through a matmul."""
    return array if where is None else jnp.where(jnp.expand_dims(where, range(1, array.ndim)), array, 0)


def _kernel(per_row: PerRow, shared: Shared) -> Array:
    return shared.kernel.astype(per_row.hidden.dtype)


def _matmul(config: Config, a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    return lax.dot_general(
        a,
        b,
        (((a_axis,), (b_axis,)), ((), ())),
        precision=config.precision,
        preferred_element_type=compute_dtype(a.dtype),
    )
