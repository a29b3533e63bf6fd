"""Rows of hidden states and a kernel → their losses, without ever holding the logits of more rows than one chunk's.

With W the kernel, b the bias and `a = softcap(hidden·W + b)` the logits of a chunk, the loss of its rows is that of
`row_loss`, and for cotangents g of the loss and k of log_z, one of each a row,

    G = ∂(g·loss + k·log_z)/∂(hidden·W)        d_hidden = G·Wᵀ        d_W = Σ_chunks hiddenᵀ·G

The matmuls run in the dtype of `hidden` with results in the compute dtype, in which all between them is computed;
G (`d_products`) is cast once, before its two matmuls, and the gradients once, when all is summed and scaled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jxent._core.dtypes import compute_dtype
from jxent._core.linear.chunks import ChunkPlan, chunk_rows_allowed, map_chunks, padding, plan_chunks
from jxent._core.linear.meshes import Placement, added_up, gathered, num_sharing, on_devices, placed
from jxent._core.rows.losses import evaluate, row_log_z, row_loss, row_nll, row_predicted
from jxent._core.shards import VocabAxis, aligned, varying_axes
from jxent._core.silence import silenced
from jxent._core.targets import NO_CLASS, Targets, is_ids


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
        with_aux: whether a `LinearAux` is asked for; else it is None.
        no_class: as in `Targets`.
        placement: how Explicit axes of a mesh split the arrays, or None for no such axes.
    """

    chunk_size: int | None
    transpose_kernel: bool
    precision: Any
    vocab_axis_name: VocabAxis
    with_aux: bool
    no_class: int = NO_CLASS
    placement: Placement | None = None

    def within(self) -> "Config":
        """For a device by itself."""
        if self.placement is None:
            return self
        vocab = (self.vocab_axis_name or ()) + self.placement.class_axes
        return self._replace(vocab_axis_name=vocab or None, placement=None)


class LinearAux(NamedTuple):
    """Of each row the log-normaliser, differentiable; the class with the highest logit; −log p of the label."""

    log_z: Array
    predicted: Array
    nll: Array


class Evaluated(NamedTuple):
    """Of each row."""

    loss: Array
    aux: LinearAux | None


class Cotangents(NamedTuple):
    """Of each row, or None where there is none."""

    loss: Array | None
    log_z: Array | None


class Gradients(NamedTuple):
    """None where they are not asked for."""

    rows: PerRow
    shared: Shared


def evaluate_linear(
    config: Config, rows: PerRow, shared: Shared, coefficient: Array | None
) -> tuple[Array, LinearAux | None]:
    """The loss of each row; or, with a coefficient for each, Σ coefficient·loss. Rows may have any shape."""
    if 0 in rows.hidden.shape[:-1]:
        return _of_no_rows(config, rows, coefficient)
    rows, shared, coefficient = placed(config.placement, (rows, shared, coefficient))
    shared = shared._replace(kernel=gathered(rows.hidden, shared.kernel, config.transpose_kernel))
    result: Any
    if coefficient is None:
        result = linear_rows(config, rows, shared)
    else:
        result = linear_total(config, rows, shared, coefficient)
    loss, aux = result
    if aux is None:
        return loss, None
    log_z = aux.log_z if coefficient is None else _differentiable_log_z(config, rows, shared, aux.log_z)
    return loss, aux._replace(log_z=log_z, nll=lax.stop_gradient(aux.nll))


def _of_no_rows(config: Config, rows: PerRow, coefficient: Array | None) -> tuple[Array, LinearAux | None]:
    """Made of `hidden`, so that it varies as that does, over batches and devices."""
    loss = jnp.sum(rows.hidden, -1, dtype=compute_dtype(rows.hidden.dtype))
    aux = LinearAux(loss, loss.astype(jnp.int32), loss) if config.with_aux else None
    return loss if coefficient is None else jnp.sum(coefficient * loss), aux


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear_rows(config: Config, rows: PerRow, shared: Shared) -> Evaluated:
    """The loss of each row. Its backward pass makes the logits again: the cotangents come only then."""
    return _evaluate(config, rows, shared)


def _linear_rows_fwd(config: Config, rows: PerRow, shared: Shared) -> tuple[Any, Any]:
    wanted, rows, shared = _with_wanted(rows, shared)
    return _evaluate(config, rows, shared), (wanted, rows, shared)


def _linear_rows_bwd(config: Config, residuals: Any, cotangents: Any) -> tuple[Any, Any]:
    d_log_z = None if cotangents.aux is None else cotangents.aux.log_z
    gradients = _pulled(config, residuals, Cotangents(_or_none(cotangents.loss), _or_none(d_log_z)))
    return gradients.rows, gradients.shared


linear_rows.defvjp(_linear_rows_fwd, _linear_rows_bwd, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear_total(config: Config, rows: PerRow, shared: Shared, coefficient: Array) -> tuple[Array, LinearAux | None]:
    """Σ coefficient·loss. Its gradient is made in the forward pass, where the logits of each chunk are at hand.

    That of the aux is not: `_differentiable_log_z` is for this.
    """
    loss, aux = _evaluate(config, rows, shared)
    return jnp.sum(coefficient * silenced(loss, coefficient)), aux


def _linear_total_fwd(config: Config, rows: PerRow, shared: Shared, coefficient: Any) -> tuple[Any, Any]:
    (wanted, rows, shared), of_coefficient = _with_wanted(rows, shared), _wanted(coefficient)
    (loss, aux), gradients = _differentiate(config, rows, shared, Cotangents(coefficient.value, None), wanted)
    total = jnp.sum(coefficient.value * silenced(loss, coefficient.value))
    return (total, aux), (wanted, of_coefficient, loss, gradients)


def _linear_total_bwd(config: Config, residuals: Any, cotangents: Any) -> tuple[Any, Any, Any]:
    wanted, of_coefficient, loss, gradients = residuals
    d_total = _or_none(cotangents[0])
    if d_total is None:
        return None, None, None
    gradients = wanted.finished(jax.tree.map(lambda gradient: d_total * gradient, gradients))
    return gradients.rows, gradients.shared, of_coefficient and of_coefficient.finished(d_total * loss)


linear_total.defvjp(_linear_total_fwd, _linear_total_bwd, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable_log_z(config: Config, rows: PerRow, shared: Shared, log_z: Array) -> Array:
    """`log_z`, which `linear_total` has made of the same rows, with its gradient. Where that is asked for the logits are
    made again, which nobody pays for who only looks at `log_z`.
    """
    return log_z


def _differentiable_log_z_fwd(config: Config, rows: PerRow, shared: Shared, log_z: Any) -> tuple[Array, Any]:
    return log_z.value, _with_wanted(rows, shared)


def _differentiable_log_z_bwd(config: Config, residuals: Any, d_log_z: Array) -> tuple[Any, Any, None]:
    gradients = _pulled(config, residuals, Cotangents(None, d_log_z))
    return gradients.rows, gradients.shared, None


_differentiable_log_z.defvjp(_differentiable_log_z_fwd, _differentiable_log_z_bwd, symbolic_zeros=True)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Wanted:
    """Of an array whose gradient is asked for: its dtype, and the axes of a `shard_map` over which it varies."""

    dtype: Any
    varying: frozenset[Any]
    is_sent_narrow: bool

    def finished(self, gradient: Array) -> Array:
        """Added up over the devices that share the array, and cast to its dtype: in this order, lest each device's part
        is rounded. Hidden states are sent by the row, and half as many bytes are worth that.
        """
        if self.is_sent_narrow:
            return added_up(gradient.astype(self.dtype), self.varying)
        return added_up(gradient, self.varying).astype(self.dtype)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _AllWanted:
    """In the place of each array whose gradient is asked for a `_Wanted`, elsewhere None."""

    rows: PerRow
    shared: Shared

    def finished(self, gradients: Gradients) -> Gradients:
        def finish(wanted: _Wanted, gradient: Array) -> Array:
            return wanted.finished(gradient)

        return Gradients(_mapped(finish, self.rows, gradients.rows), _mapped(finish, self.shared, gradients.shared))


def _with_wanted(rows: PerRow, shared: Shared) -> tuple[_AllWanted, PerRow, Shared]:
    """Of what `symbolic_zeros` hands a forward rule: whose gradients are asked for, and the arrays."""
    of_rows, of_shared = (_mapped(_wanted, arguments) for arguments in (rows, shared))
    if of_rows.hidden is not None:
        of_rows = of_rows._replace(hidden=replace(of_rows.hidden, is_sent_narrow=True))
    rows, shared = (_mapped(lambda a: a.value, arguments) for arguments in (rows, shared))
    return _AllWanted(of_rows, of_shared), rows, shared


def _wanted(a: Any) -> _Wanted | None:
    if not (a.perturbed and jnp.issubdtype(a.value.dtype, jnp.floating)):
        return None
    return _Wanted(a.value.dtype, varying_axes(a.value), False)


def _pulled(config: Config, residuals: Any, cotangents: Cotangents) -> Gradients:
    """The gradients that belong to the cotangents of the rows."""
    wanted, rows, shared = residuals
    _, gradients = _differentiate(config._replace(with_aux=False), rows, shared, cotangents, wanted)
    return wanted.finished(gradients)


def _evaluate(config: Config, rows: PerRow, shared: Shared) -> Evaluated:
    return on_devices(config.placement, partial(_evaluate_own, config.within()), (rows, shared), _results(config))


def _differentiate(
    config: Config, rows: PerRow, shared: Shared, cotangents: Cotangents, wanted: _AllWanted
) -> tuple[Evaluated, Gradients]:
    """What `_evaluate` gives, and the gradients of Σ cotangent·row in the compute dtype."""

    def differentiated(rows: PerRow, shared: Shared, cotangents: Cotangents) -> tuple[Evaluated, Gradients]:
        evaluated, gradients = _differentiate_own(config.within(), rows, shared, cotangents, wanted)
        own_axes = () if config.placement is None else config.placement.split_axes

        def added(gradient: Array, argument: Array) -> Array:
            return added_up(gradient, varying_axes(argument), own_axes)

        return evaluated, Gradients(_mapped(added, gradients.rows, rows), _mapped(added, gradients.shared, shared))

    results = _results(config), Gradients(wanted.rows, wanted.shared)
    return on_devices(config.placement, differentiated, (rows, shared, cotangents), results)


def _results(config: Config) -> Any:
    """What an `Evaluated` has None for, this has too."""
    here: Any = ...
    return Evaluated(here, LinearAux(here, here, here) if config.with_aux else None)


def _evaluate_own(config: Config, rows: PerRow, shared: Shared) -> Evaluated:
    shape = rows.hidden.shape[:-1]
    (rows, shared, _), plan = _prepared(config, rows, shared, Cotangents(None, None))

    def evaluated(chunk: PerRow) -> tuple[Evaluated, tuple[()]]:
        loss, _, aux = _chunk_rows(config, _products(config, chunk, shared), chunk, shared)
        return Evaluated(loss, aux), ()

    return _unflattened(shape, map_chunks(evaluated, rows, plan)[0])


def _differentiate_own(
    config: Config, rows: PerRow, shared: Shared, cotangents: Cotangents, wanted: _AllWanted
) -> tuple[Evaluated, Gradients]:
    shape = rows.hidden.shape[:-1]
    (rows, shared, cotangents), plan = _prepared(config, rows, shared, cotangents)

    def differentiated(chunk: tuple[PerRow, Cotangents]) -> tuple[Any, Shared]:
        rows, cotangents = chunk

        def of_chunk(products: Array, wanted_rows: PerRow, wanted_shared: Shared) -> Any:
            loss, log_z, aux = _chunk_rows(config, products, _merged(wanted_rows, rows), _merged(wanted_shared, shared))
            return _given(cotangents, (loss, log_z)), Evaluated(loss, aux)

        products = _products(config, rows, shared)
        wanted_rows = _selected(rows._replace(hidden=None), wanted.rows, products.dtype)
        wanted_shared = _selected(shared._replace(kernel=None), wanted.shared, products.dtype)
        _, pull, evaluated = jax.vjp(of_chunk, products, wanted_rows, wanted_shared, has_aux=True)
        d_products, d_rows, d_shared = pull(_given(cotangents, cotangents))
        d_products, unit = _narrowed(d_products, rows.hidden.dtype)
        if wanted.rows.hidden is not None:
            d_rows = d_rows._replace(hidden=_d_hidden(config, d_products, unit, rows, shared))
        if wanted.shared.kernel is not None:
            d_shared = d_shared._replace(kernel=_d_kernel(config, d_products, unit, rows))
        return (evaluated, d_rows), d_shared

    (evaluated, d_rows), d_shared = map_chunks(differentiated, (rows, cotangents), plan)
    evaluated, d_rows = _unflattened(shape, (evaluated, d_rows))
    return evaluated, Gradients(d_rows, d_shared)


def _prepared(
    config: Config, rows: PerRow, shared: Shared, cotangents: Cotangents
) -> tuple[tuple[PerRow, Shared, Cotangents], ChunkPlan]:
    """Rows along one axis, which the plan cuts into chunks. Where their number is symbolic it takes masked ones more."""
    shape = rows.hidden.shape[:-1]
    num_rows = math.prod(shape)
    rows, shared, cotangents = _aligned(config, rows, shared, cotangents)
    rows, cotangents = jax.tree.map(lambda a: a.reshape(num_rows, *a.shape[len(shape) :]), (rows, cotangents))
    chunk_rows = config.chunk_size or _chunk_rows_allowed(config, rows, shared)
    is_fixed = config.chunk_size is not None
    more = padding(num_rows, chunk_rows, is_fixed)
    if not isinstance(more, int):
        rows = rows._replace(where=jnp.ones(rows.hidden.shape[:1], jnp.bool_) if rows.where is None else rows.where)
        rows, cotangents = jax.tree.map(lambda a: jnp.pad(a, ((0, more), *[(0, 0)] * (a.ndim - 1))), (rows, cotangents))
    return (rows, shared, cotangents), plan_chunks(num_rows + more, chunk_rows, is_fixed)


def _unflattened(shape: tuple[int, ...], of_rows: Any) -> Any:
    num_rows = math.prod(shape)
    return jax.tree.map(lambda a: a[:num_rows].reshape(*shape, *a.shape[1:]), of_rows)


def _aligned(config: Config, rows: PerRow, shared: Shared, cotangents: Cotangents) -> tuple[PerRow, Shared, Cotangents]:
    """Lets each argument vary over the axes of a `shard_map` that its gradient varies over: here and not by itself within
    the loop, where its gradient would be added over the devices for each chunk.

    What stands beside classes gets a part of its gradient from each device that has some of them; what belongs to whole
    rows gets all of it.
    """
    rows, shared, cotangents = aligned((rows, shared, cotangents), apart_from=config.vocab_axis_name)
    beside_classes = {
        "rows": {"hidden": rows.hidden} | ({} if is_ids(rows.labels) else {"labels": rows.labels}),
        "shared": {name: getattr(shared, name) for name in ("kernel", "bias", "logit_softcap", "class_weight")},
    }
    beside_classes = aligned(beside_classes)
    rows, shared = rows._replace(**beside_classes["rows"]), shared._replace(**beside_classes["shared"])
    return rows, shared, cotangents


def _chunk_rows_allowed(config: Config, rows: PerRow, shared: Shared) -> int:
    num_classes, depth = (shared.kernel.shape[i ^ config.transpose_kernel] for i in (1, 0))
    itemsize = compute_dtype(rows.hidden.dtype).itemsize
    return chunk_rows_allowed(num_classes, depth, itemsize, num_sharing(rows.hidden))


def _chunk_rows(config: Config, products: Array, rows: PerRow, shared: Shared) -> tuple[Array, Array, LinearAux | None]:
    """From hidden·W on, differentiated by jax, the rows by their own rule: the loss and log_z of each row, and the aux."""
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
        no_class=config.no_class,
    )
    state = evaluate(logits, targets, aux=config.with_aux)
    loss = row_loss(state, targets, shared.z_loss)
    log_z = row_log_z(state, targets)
    if not config.with_aux:
        return loss, log_z, None
    return loss, log_z, LinearAux(log_z, row_predicted(state, targets), row_nll(state, targets))


def softcap(logits: Array, cap: Array) -> Array:
    """cap·tanh(logits/cap), but −inf stays −inf: such a class does not exist. A cap of inf is none."""
    is_dead, is_none = logits == -jnp.inf, cap == jnp.inf
    cap = jnp.where(is_none, 1, cap)
    capped = jnp.where(is_dead, -jnp.inf, cap * jnp.tanh(jnp.where(is_dead, 0, logits) / cap))
    return jnp.where(is_none, logits, capped)


def _products(config: Config, rows: PerRow, shared: Shared) -> Array:
    """hidden·W, `[C, V]`."""
    return _matmul(config, _counted(rows), _kernel(rows, shared), 1, int(config.transpose_kernel))


def _narrowed(d_products: Array, dtype: Any) -> tuple[Array, Array | None]:
    """The gradient of the products in the dtype of their operands, and what a unit of each row of it stands for: a power
    of two, `[C, 1]`, or None for 1.

    The coefficient of a row (its weight, the loss scale) may lie far from 1, and float16 reaches from 6e-8 to 65504. So
    there the highest entry of each row comes to 2¹⁴ or so, whatever the coefficient is.
    """
    if dtype != jnp.float16:
        return d_products.astype(dtype), None
    highest = lax.stop_gradient(jnp.max(jnp.abs(d_products), 1, keepdims=True))
    # Rounded to no mantissa at all it is a power of two. Rows of 0 and of NaN get the lowest unit, which hides no other's.
    unit = lax.reduce_precision(highest, jnp.finfo(highest.dtype).nexp, 0)
    unit = jnp.where(unit < jnp.inf, jnp.maximum(unit, 2.0**-100), 2.0**-100) * 2.0**-14
    return (d_products / unit).astype(dtype), unit


def _d_hidden(config: Config, d_products: Array, unit: Array | None, rows: PerRow, shared: Shared) -> Array:
    gradient = _matmul(config, d_products, _kernel(rows, shared), 1, int(not config.transpose_kernel))
    gradient = gradient if unit is None else gradient * unit
    return gradient if rows.where is None else jnp.where(rows.where[:, None], gradient, 0)


def _d_kernel(config: Config, d_products: Array, unit: Array | None, rows: PerRow) -> Array:
    hidden = _counted(rows)
    if unit is None:
        return _outer(config, hidden, d_products)
    # A sum over the rows has one unit: that of the row whose gradient is the highest. What the others lose by it is lost
    # in that sum anyway.
    highest = jnp.max(unit)
    hidden = (hidden.astype(unit.dtype) * (unit / highest)).astype(hidden.dtype)
    return highest * _outer(config, hidden, d_products)


def _outer(config: Config, hidden: Array, d_products: Array) -> Array:
    """hiddenᵀ·d_products, `[D, V]`, or its transpose."""
    operands = (d_products, hidden) if config.transpose_kernel else (hidden, d_products)
    if hidden.dtype != jnp.bfloat16:
        return _matmul(config, *operands, 0, 0)

    # XLA:CPU converts such operands anyway, but for some batches of them, for which it then has no matmul.
    def of_converted(a: Array, b: Array) -> Array:
        dtype = compute_dtype(a.dtype)
        return _matmul(config, a.astype(dtype), b.astype(dtype), 0, 0)

    return lax.platform_dependent(
        *aligned(operands), cpu=of_converted, default=lambda a, b: _matmul(config, a, b, 0, 0)
    )


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


def _or_none(cotangent: Any) -> Any:
    return None if isinstance(cotangent, SymbolicZero) else cotangent


def _given(cotangents: Cotangents, values: Any) -> tuple[Any, ...]:
    """Those of the values that have a cotangent."""
    return tuple(value for value, cotangent in zip(values, cotangents, strict=True) if cotangent is not None)


def _selected(arrays: Any, wanted: Any, dtype: Any) -> Any:
    """The arrays that are wanted, in the compute dtype, so that their cotangents are too; None for the others."""
    return _mapped(lambda _, a: None if a is None else a.astype(dtype), wanted, arrays)


def _merged(some: Any, arrays: Any) -> Any:
    return type(arrays)(*(b if a is None else a for a, b in zip(some, arrays, strict=True)))


def _mapped(f: Callable[..., Any], arguments: Any, *others: Any) -> Any:
    """`f` of each field that is not None."""
    fields = zip(arguments, *others, strict=True)
    return type(arguments)(*(None if field[0] is None else f(*field) for field in fields))
