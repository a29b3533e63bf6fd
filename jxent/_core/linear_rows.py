"""Rows of hidden states and a kernel → their losses, without ever holding the logits of more rows than one chunk's.

With W the kernel, b the bias and `a = softcap(hidden·W + b)` the logits of a chunk, the loss of its rows is that of
`softmax_rows`, and for cotangents g, one a row,

    d_logits = ∂(g·loss)/∂(hidden·W)        d_hidden = d_logits·Wᵀ        d_W = Σ_chunks hiddenᵀ·d_logits

The matmuls run in the dtype of `hidden` with results in the compute dtype, in which all between them is computed;
`d_logits` is cast once, before its two matmuls, and the gradients once, when all is summed and scaled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jxent._core.chunks import CHUNK_BYTES, map_chunks, padding, plan_chunks
from jxent._core.dtypes import compute_dtype
from jxent._core.shards import VocabAxis, aligned, varying_axes
from jxent._core.softmax_rows import predicted_ids, row_losses
from jxent._core.targets import Targets, is_ids


class PerRow(NamedTuple):
    """What belongs to the rows: hidden states `[N, D]`, and of `Targets` what has a row axis; None as there."""

    hidden: Array
    labels: Array
    label_weight: Array | None
    where: Array | None


class Shared(NamedTuple):
    """What all rows share: the kernel, `[V]` numbers and scalars in the compute dtype. All but the kernel may be None."""

    kernel: Array
    bias: Array | None
    logit_softcap: Array | None
    class_weight: Array | None
    smoothing: Array | None
    z_loss: Array | None


class Config(NamedTuple):
    """What is known when the program is traced.

    Attributes:
        chunk_size: the rows of a chunk, or None.
        transpose_kernel: whether the kernel is `[V, D]`.
        precision: of the matmuls, as `jax.lax.dot_general` takes it.
        vocab_axis_name: the axes of a `shard_map` that split V, or None.
        with_aux: whether `log_z` and `predicted` are asked for; else they are None.
        num_devices: how many share each chunk, where XLA is left to find out how.
    """

    chunk_size: int | None
    transpose_kernel: bool
    precision: Any
    vocab_axis_name: VocabAxis
    with_aux: bool
    num_devices: int = 1


class LinearAux(NamedTuple):
    """`[N]` each: the log-normaliser and the class with the highest logit. Not differentiated."""

    log_z: Array
    predicted: Array


def evaluate_linear(
    config: Config, rows: PerRow, shared: Shared, coefficient: Array | None
) -> tuple[Array, LinearAux | None]:
    """The loss of each row; or, with a coefficient for each, Σ coefficient·loss. Rows may have any shape."""
    shape = rows.hidden.shape[:-1]
    rows, shared, coefficient = _aligned(config, rows, shared, coefficient)
    num_rows = math.prod(shape)
    rows, coefficient = jax.tree.map(lambda a: a.reshape(num_rows, *a.shape[len(shape) :]), (rows, coefficient))
    rows, coefficient = _padded(config, rows, shared, coefficient)

    def unflattened(per_row: Array) -> Array:
        return per_row[:num_rows].reshape(shape)

    result: Any
    if coefficient is None:
        result = linear_rows(config, rows, shared)
    else:
        result = linear_total(config, rows, shared, coefficient)
    loss, aux = result
    loss = unflattened(loss) if coefficient is None else loss
    return loss, jax.tree.map(lambda a: lax.stop_gradient(unflattened(a)), aux)


def _padded(config: Config, rows: PerRow, shared: Shared, coefficient: Array | None) -> tuple[PerRow, Array | None]:
    """With masked rows at the end, where the number of rows is symbolic."""
    more = padding(*_sizes(config, rows, shared))
    if isinstance(more, int):
        return rows, coefficient
    rows = rows._replace(where=jnp.ones(rows.hidden.shape[:1], jnp.bool_) if rows.where is None else rows.where)
    return jax.tree.map(lambda a: jnp.pad(a, ((0, more), *[(0, 0)] * (a.ndim - 1))), (rows, coefficient))


def _aligned(config: Config, rows: PerRow, shared: Shared, coefficient: Array | None) -> tuple[PerRow, Shared, Any]:
    """Lets each argument vary over the axes of a `shard_map` that its cotangent varies over: outside the rules, so that
    jax adds the cotangents over the axes that the argument itself did not vary over. The kernel alone stays as it is:
    jax would add its cotangent as cast to its dtype, and so the rules add it themselves, before they cast.

    What stands beside classes gets a part of its cotangent from each device that has some of them; what belongs to whole
    rows gets all of it.
    """
    kernel = shared.kernel
    rows, shared, coefficient = aligned((rows, shared, coefficient), apart_from=config.vocab_axis_name)
    beside_classes = {
        "rows": {"hidden": rows.hidden} | ({} if is_ids(rows.labels) else {"labels": rows.labels}),
        "shared": {name: getattr(shared, name) for name in ("kernel", "bias", "logit_softcap", "class_weight")},
    }
    beside_classes = aligned(beside_classes)
    shared = shared._replace(**beside_classes["shared"] | {"kernel": kernel})
    return rows._replace(**beside_classes["rows"]), shared, coefficient


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear_rows(config: Config, rows: PerRow, shared: Shared) -> tuple[Array, LinearAux | None]:
    """The loss of each row. Its backward pass makes the logits again: the cotangents come only then."""
    return _evaluate(config, rows, shared)


def _linear_rows_fwd(config: Config, rows: PerRow, shared: Shared) -> tuple[Any, Any]:
    (rows, d_rows), (shared, d_shared) = _with_wanted(rows), _with_wanted(shared)
    wanted = _Wanted(d_rows, d_shared, varying_axes(shared.kernel))
    return _evaluate(config, rows, shared), (wanted, rows, shared)


def _linear_rows_bwd(config: Config, residuals: Any, cotangents: Any) -> tuple[PerRow, Shared]:
    wanted, rows, shared = residuals
    _, gradients = _differentiate(config, rows, shared, cotangents[0], wanted)
    return wanted.cast(*gradients)


linear_rows.defvjp(_linear_rows_fwd, _linear_rows_bwd, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear_total(config: Config, rows: PerRow, shared: Shared, coefficient: Array) -> tuple[Array, LinearAux | None]:
    """Σ coefficient·loss. Its gradient is made in the forward pass, where the logits of each chunk are at hand."""
    loss, aux = _evaluate(config, rows, shared)
    return jnp.sum(coefficient * loss), aux


def _linear_total_fwd(config: Config, rows: PerRow, shared: Shared, coefficient: Any) -> tuple[Any, Any]:
    (rows, d_rows), (shared, d_shared) = _with_wanted(rows), _with_wanted(shared)
    wanted, coefficient = _Wanted(d_rows, d_shared, varying_axes(shared.kernel)), coefficient.value
    (loss, aux), gradients = _differentiate(config, rows, shared, coefficient, wanted)
    return (jnp.sum(coefficient * loss), aux), (wanted, loss, gradients)


def _linear_total_bwd(config: Config, residuals: Any, cotangents: Any) -> tuple[PerRow, Shared, Array]:
    wanted, loss, gradients = residuals
    d_total = cotangents[0]
    return *wanted.cast(*jax.tree.map(lambda gradient: d_total * gradient, gradients)), d_total * loss


linear_total.defvjp(_linear_total_fwd, _linear_total_bwd, symbolic_zeros=True)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Wanted:
    """Whose gradients are asked for: in the place of each such array its dtype, elsewhere None.

    Attributes:
        rows: of what is one a row.
        shared: of what all rows share.
        kernel_axes: the axes of a `shard_map` over which the kernel varies.
    """

    rows: PerRow
    shared: Shared
    kernel_axes: frozenset[Any]

    def cast(self, d_rows: Any, d_shared: Any) -> tuple[Any, Any]:
        """The gradients in the dtypes of their arrays; the kernel's first added up over the devices that share it."""
        if d_shared.kernel is not None:
            axes = tuple(sorted(varying_axes(d_shared.kernel) - self.kernel_axes, key=str))
            d_shared = d_shared._replace(kernel=lax.psum(d_shared.kernel, axes) if axes else d_shared.kernel)
        return _mapped(lax.convert_element_type, d_rows, self.rows), _mapped(
            lax.convert_element_type, d_shared, self.shared
        )


def _widened(rows: PerRow, shared: Shared) -> Shared:
    """With the kernel as varying as the rows: once, outside of the loop over the chunks."""
    return shared._replace(kernel=aligned((rows.hidden, shared.kernel))[1])


def _evaluate(config: Config, rows: PerRow, shared: Shared) -> tuple[Array, LinearAux | None]:
    shared = _widened(rows, shared)

    def evaluated(chunk: PerRow) -> tuple[Any, tuple[()]]:
        return _chunk_losses(config, _products(config, chunk, shared), chunk, shared), ()

    return map_chunks(evaluated, rows, plan_chunks(*_sizes(config, rows, shared)))[0]


def _differentiate(
    config: Config, rows: PerRow, shared: Shared, coefficient: Array, wanted: _Wanted
) -> tuple[tuple[Array, LinearAux | None], tuple[PerRow, Shared]]:
    """What `_evaluate` gives, and the gradients of Σ coefficient·loss: in the compute dtype, None where unwanted."""
    shared = _widened(rows, shared)

    def differentiated(chunk: tuple[PerRow, Array]) -> tuple[Any, Shared]:
        (rows, coefficient), dtype = chunk, chunk[0].hidden.dtype

        def losses(products: Array, wanted_rows: PerRow, wanted_shared: Shared) -> tuple[Array, LinearAux | None]:
            return _chunk_losses(config, products, _merged(wanted_rows, rows), _merged(wanted_shared, shared))

        products = _products(config, rows, shared)
        wanted_rows = _selected(rows._replace(hidden=None), wanted.rows)
        wanted_shared = _selected(shared._replace(kernel=None), wanted.shared)
        loss, pull, aux = jax.vjp(losses, products, wanted_rows, wanted_shared, has_aux=True)
        d_products, d_rows, d_shared = pull(coefficient)
        d_products = d_products.astype(dtype)
        if wanted.rows.hidden is not None:
            d_rows = d_rows._replace(hidden=_d_hidden(config, d_products, rows, shared))
        if wanted.shared.kernel is not None:
            d_shared = d_shared._replace(kernel=_d_kernel(config, d_products, rows))
        return (loss, aux, d_rows), d_shared

    (loss, aux, d_rows), d_shared = map_chunks(
        differentiated, (rows, coefficient), plan_chunks(*_sizes(config, rows, shared))
    )
    return (loss, aux), (d_rows, d_shared)


def _chunk_losses(config: Config, products: Array, rows: PerRow, shared: Shared) -> tuple[Array, LinearAux | None]:
    """From hidden·W on: all of this is differentiated by jax, `row_losses` by its own rule."""
    logits = products if shared.bias is None else products + shared.bias[None, :]
    if shared.logit_softcap is not None:
        logits = softcap(logits, shared.logit_softcap)
    targets = Targets(
        labels=rows.labels,
        class_weight=shared.class_weight,
        label_weight=rows.label_weight,
        smoothing=shared.smoothing,
        sample_weight=None,
        where=rows.where,
        axis=1,
        vocab_axis_name=config.vocab_axis_name,
    )
    loss, state = row_losses(logits, targets, shared.z_loss)
    if not config.with_aux:
        return loss, None
    return loss, LinearAux(lax.stop_gradient(state.log_z), predicted_ids(logits, state, targets))


def softcap(logits: Array, cap: Array) -> Array:
    """cap·tanh(logits/cap), but −inf stays −inf: such a class does not exist. A cap of inf is none."""
    is_dead, is_none = logits == -jnp.inf, cap == jnp.inf
    cap = jnp.where(is_none, 1, cap)
    capped = jnp.where(is_dead, -jnp.inf, cap * jnp.tanh(jnp.where(is_dead, 0, logits) / cap))
    return jnp.where(is_none, logits, capped)


def _sizes(config: Config, rows: PerRow, shared: Shared) -> tuple[int, int | None, int, int]:
    """What chunks are planned from."""
    num_classes = shared.kernel.shape[int(not config.transpose_kernel)]
    itemsize = compute_dtype(rows.hidden.dtype).itemsize
    budget = config.num_devices * max(CHUNK_BYTES, shared.kernel.size * itemsize // config.num_devices // 4)
    return rows.hidden.shape[0], config.chunk_size, num_classes * itemsize, budget


def _products(config: Config, rows: PerRow, shared: Shared) -> Array:
    """hidden·W, `[C, V]`."""
    return _matmul(config, _counted(rows), _kernel(rows, shared), 1, int(config.transpose_kernel))


def _d_hidden(config: Config, d_products: Array, rows: PerRow, shared: Shared) -> Array:
    gradient = _matmul(config, d_products, _kernel(rows, shared), 1, int(not config.transpose_kernel))
    return gradient if rows.where is None else jnp.where(rows.where[:, None], gradient, 0)


def _d_kernel(config: Config, d_products: Array, rows: PerRow) -> Array:
    operands = (d_products, _counted(rows)) if config.transpose_kernel else (_counted(rows), d_products)
    return _matmul(config, *operands, 0, 0)


def _counted(rows: PerRow) -> Array:
    """The hidden states, 0 in masked rows: in a matmul, a NaN there would reach every row."""
    return rows.hidden if rows.where is None else jnp.where(rows.where[:, None], rows.hidden, 0)


def _kernel(rows: PerRow, shared: Shared) -> Array:
    return shared.kernel.astype(rows.hidden.dtype)


def _matmul(config: Config, a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    return lax.dot_general(
        a,
        b,
        (((a_axis,), (b_axis,)), ((), ())),
        precision=config.precision,
        preferred_element_type=compute_dtype(a.dtype),
    )


def _with_wanted(arguments: Any) -> tuple[Any, Any]:
    """What `symbolic_zeros` hands a forward rule → the arrays, and the dtypes of those that are differentiated."""

    def dtype_if_wanted(a: Any) -> Any:
        return a.value.dtype if a.perturbed and jnp.issubdtype(a.value.dtype, jnp.floating) else None

    return _mapped(lambda a: a.value, arguments), _mapped(dtype_if_wanted, arguments)


def _selected(arrays: Any, wanted: Any) -> Any:
    """The arrays that are wanted, in the compute dtype, so that their cotangents are too; None for the others."""
    return _mapped(lambda dtype, a: None if a is None else a.astype(compute_dtype(a.dtype)), wanted, arrays)


def _merged(some: Any, arrays: Any) -> Any:
    return type(arrays)(*(b if a is None else a for a, b in zip(some, arrays, strict=True)))


def _mapped(f: Callable[..., Any], arguments: Any, *others: Any) -> Any:
    """`f` of each field that is not None."""
    fields = zip(arguments, *others, strict=True)
    return type(arguments)(*(None if field[0] is None else f(*field) for field in fields))
