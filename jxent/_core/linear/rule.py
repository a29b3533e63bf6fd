"""The losses of rows of hidden states and a kernel, while holding the logits of only one chunk of rows at a time.

With W the kernel, b the bias and `a = softcap(hidden·W + b)` the logits of a chunk, the loss of its rows is that of
`row_loss`. For cotangents g of the loss and k of log_z, one of each per row,

    G = ∂(g·loss + k·log_z)/∂(hidden·W)        d_hidden = G·Wᵀ        d_W = Σ_chunks hiddenᵀ·G

The matmuls take operands in the dtype of `hidden` and return the compute dtype, in which everything between them runs.
G (`d_products`) is cast once, before its two matmuls, and each gradient once, after it is summed and scaled.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jxent._core.dtypes import compute_dtype
from jxent._core.linear import passes
from jxent._core.linear.meshes import added_up, gathered, on_devices, placed
from jxent._core.linear.records import (
    Config,
    Cotangents,
    Evaluated,
    Gradients,
    LinearAux,
    PerRow,
    Shared,
    mapped,
)
from jxent._core.shards import VocabAxis, aligned, along, summed, varying_axes
from jxent._core.silence import silenced
from jxent._core.targets import is_ids


def evaluate_linear(config: Config, per_row: PerRow, shared: Shared, coefficient: Array | None) -> Evaluated:
    """Evaluates rows of any shape; if each has a coefficient, Σ coefficient·loss takes the place of their loss."""
    if 0 in per_row.hidden.shape[:-1]:
        return _of_no_rows(config, per_row, coefficient)
    per_row, shared, coefficient = placed(config.placement, (per_row, shared, coefficient))
    shared = shared._replace(kernel=gathered(per_row.hidden, shared.kernel, config.transpose_kernel))
    if shared.teacher_kernel is not None:
        teacher_kernel = gathered(per_row.hidden, shared.teacher_kernel, config.teacher_transpose_kernel)
        shared = shared._replace(teacher_kernel=teacher_kernel)
    evaluated: Evaluated
    if coefficient is None:
        evaluated = linear_rows(config, per_row, shared)
    else:
        evaluated = linear_total(config, per_row, shared, coefficient)
    if evaluated.mass is not None:
        distributions = per_row.labels, shared.class_weight, per_row.where, evaluated.mass
        distributions = aligned(distributions, apart_from=config.vocab_axis_name)
        mass = _differentiable_mass(config.vocab_axis_name, *distributions)
        evaluated = evaluated._replace(mass=mass)
    aux = evaluated.aux
    if aux is None:
        return evaluated
    log_z = aux.log_z if coefficient is None else _differentiable_log_z(config, per_row, shared, aux.log_z)
    return evaluated._replace(aux=aux._replace(log_z=log_z, nll=lax.stop_gradient(aux.nll)))


def _of_no_rows(config: Config, per_row: PerRow, coefficient: Array | None) -> Evaluated:
    """The result without any rows, made from `hidden` so that it varies like `hidden` over batches and devices."""
    loss = jnp.sum(per_row.hidden, -1, dtype=compute_dtype(per_row.hidden.dtype))
    aux = LinearAux(loss, loss.astype(jnp.int32), loss) if config.with_aux else None
    mass = None if is_ids(per_row.labels) else loss
    total = loss if coefficient is None else jnp.sum(coefficient * loss)
    if coefficient is None and per_row.entries is None and is_ids(per_row.labels) and per_row.labels.ndim > loss.ndim:
        total = jnp.broadcast_to(loss[..., None], per_row.labels.shape)
    return Evaluated(total, loss if config.with_entropy else None, aux, mass)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear_rows(config: Config, per_row: PerRow, shared: Shared) -> Evaluated:
    """The loss of each row. The backward pass computes the logits again, since the cotangents arrive only then."""
    return _evaluate(config, per_row, shared)


def _linear_rows_fwd(config: Config, per_row: PerRow, shared: Shared) -> tuple[Any, Any]:
    requested, per_row, shared = _with_requested(per_row, shared)
    return _evaluate(config, per_row, shared), (requested, per_row, shared)


def _linear_rows_bwd(config: Config, residuals: Any, cotangents: Any) -> tuple[Any, Any]:
    d_log_z = None if cotangents.aux is None else cotangents.aux.log_z
    present = map(_or_none, (cotangents.loss, cotangents.entropy, d_log_z))
    gradients = _pulled(config, residuals, Cotangents(*present))
    return gradients.per_row, gradients.shared


linear_rows.defvjp(_linear_rows_fwd, _linear_rows_bwd, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear_total(config: Config, per_row: PerRow, shared: Shared, coefficient: Array) -> Evaluated:
    """Σ coefficient·loss in place of the loss; its gradient is made in the forward pass, which has the logits.

    The other results get their gradients from `_differentiable_log_z` and `_differentiable_mass`.
    """
    evaluated = _evaluate(config, per_row, shared)
    return evaluated._replace(loss=jnp.sum(coefficient * silenced(evaluated.loss, coefficient)))


def _linear_total_fwd(config: Config, per_row: PerRow, shared: Shared, coefficient: Any) -> tuple[Any, Any]:
    (requested, per_row, shared), of_coefficient = _with_requested(per_row, shared), _requested(coefficient)
    evaluated, gradients = _differentiate(config, per_row, shared, Cotangents(coefficient.value), requested)
    loss = evaluated.loss
    total = jnp.sum(coefficient.value * silenced(loss, coefficient.value))
    return evaluated._replace(loss=total), (requested, of_coefficient, loss, gradients)


def _linear_total_bwd(config: Config, residuals: Any, cotangents: Any) -> tuple[Any, Any, Any]:
    requested, of_coefficient, loss, gradients = residuals
    d_total = _or_none(cotangents.loss)
    if d_total is None:
        return None, None, None
    gradients = requested.finished(jax.tree.map(lambda gradient: d_total * gradient, gradients))
    return gradients.per_row, gradients.shared, of_coefficient and of_coefficient.finished(d_total * loss)


linear_total.defvjp(_linear_total_fwd, _linear_total_bwd, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable_log_z(config: Config, per_row: PerRow, shared: Shared, log_z: Array) -> Array:
    """`log_z`, which `linear_total` computed from the same rows, plus a gradient. Only a backward pass through it
    computes the logits again; reading `log_z` stays free.
    """
    return log_z


def _differentiable_log_z_fwd(config: Config, per_row: PerRow, shared: Shared, log_z: Any) -> tuple[Array, Any]:
    return log_z.value, _with_requested(per_row, shared)


def _differentiable_log_z_bwd(config: Config, residuals: Any, d_log_z: Array) -> tuple[Any, Any, None]:
    gradients = _pulled(config, residuals, Cotangents(log_z=d_log_z))
    return gradients.per_row, gradients.shared, None


_differentiable_log_z.defvjp(_differentiable_log_z_fwd, _differentiable_log_z_bwd, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable_mass(
    vocab_axis_name: VocabAxis, labels: Array, class_weight: Array | None, where: Array | None, mass: Array
) -> Array:
    """`mass`, which was computed from the same distributions, plus a gradient."""
    return mass


def _differentiable_mass_fwd(
    vocab_axis_name: VocabAxis, labels: Array, class_weight: Any, where: Any, mass: Array
) -> tuple[Array, Any]:
    return mass, (labels, class_weight, where)


def _differentiable_mass_bwd(vocab_axis_name: VocabAxis, residuals: Any, d_mass: Array) -> tuple[Any, Any, None, None]:
    labels, class_weight, where = residuals

    def plain(labels: Array, class_weight: Array | None) -> Array:
        q = labels.astype(d_mass.dtype)
        q = q if where is None else jnp.where(where[..., None], q, 0)
        t = q if class_weight is None else q * along(class_weight, q.ndim, q.ndim - 1)
        return summed(jnp.sum(t, -1), vocab_axis_name)

    return *jax.vjp(plain, labels, class_weight)[1](d_mass), None, None


_differentiable_mass.defvjp(_differentiable_mass_fwd, _differentiable_mass_bwd)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Requested:
    """For an array whose gradient is requested: its dtype, and the axes of a `shard_map` over which it varies."""

    dtype: Any
    varying: frozenset[Any]
    is_sent_narrow: bool

    def finished(self, gradient: Array) -> Array:
        """Adds the gradient over the devices that share the array, then casts it, so that no device's part is rounded.
        Gradients of hidden states are cast first: they are sent row by row, and halving the bytes is worth the
        rounding.
        """
        if self.is_sent_narrow:
            return added_up(gradient.astype(self.dtype), self.varying)
        return added_up(gradient, self.varying).astype(self.dtype)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _AllRequested:
    """A `_Requested` in the place of each array whose gradient is requested, None elsewhere."""

    per_row: PerRow
    shared: Shared

    def finished(self, gradients: Gradients) -> Gradients:
        def finish(requested: _Requested, gradient: Array) -> Array:
            return requested.finished(gradient)

        return Gradients(mapped(finish, self.per_row, gradients.per_row), mapped(finish, self.shared, gradients.shared))


def _with_requested(per_row: PerRow, shared: Shared) -> tuple[_AllRequested, PerRow, Shared]:
    """Splits what `symbolic_zeros` passes to a forward rule: which gradients are requested, and the arrays."""
    for_rows, for_shared = (mapped(_requested, arguments) for arguments in (per_row, shared))
    if for_rows.hidden is not None:
        for_rows = for_rows._replace(hidden=replace(for_rows.hidden, is_sent_narrow=True))
    per_row, shared = (mapped(lambda a: a.value, arguments) for arguments in (per_row, shared))
    return _AllRequested(for_rows, for_shared), per_row, shared


def _requested(a: Any) -> _Requested | None:
    if not (a.perturbed and jnp.issubdtype(a.value.dtype, jnp.floating)):
        return None
    return _Requested(a.value.dtype, varying_axes(a.value), False)


def _pulled(config: Config, residuals: Any, cotangents: Cotangents) -> Gradients:
    """The gradients for given cotangents of the rows."""
    requested, per_row, shared = residuals
    _, gradients = _differentiate(config._replace(with_aux=False), per_row, shared, cotangents, requested)
    return requested.finished(gradients)


def _evaluate(config: Config, per_row: PerRow, shared: Shared) -> Evaluated:
    return on_devices(
        config.placement,
        partial(passes.evaluate, config.within()),
        (per_row, shared),
        _results(config, is_ids(per_row.labels)),
    )


def _differentiate(
    config: Config, per_row: PerRow, shared: Shared, cotangents: Cotangents, requested: _AllRequested
) -> tuple[Evaluated, Gradients]:
    """The result of `_evaluate`, and the gradients of Σ cotangent·row in the compute dtype."""
    results = _results(config, is_ids(per_row.labels)), Gradients(requested.per_row, requested.shared)

    def differentiated(per_row: PerRow, shared: Shared, cotangents: Cotangents) -> tuple[Evaluated, Gradients]:
        evaluated, gradients = passes.differentiate(config.within(), per_row, shared, cotangents, results[1])
        own_axes = () if config.placement is None else config.placement.split_axes

        def added(gradient: Array, argument: Array) -> Array:
            return added_up(gradient, varying_axes(argument), own_axes)

        return evaluated, Gradients(mapped(added, gradients.per_row, per_row), mapped(added, gradients.shared, shared))

    return on_devices(config.placement, differentiated, (per_row, shared, cotangents), results)


def _results(config: Config, are_ids: bool) -> Any:
    """An `Evaluated` with None where the result has None."""
    here: Any = ...
    return Evaluated(
        loss=here,
        entropy=here if config.with_entropy else None,
        aux=LinearAux(here, here, here) if config.with_aux else None,
        mass=None if are_ids else here,
    )


def _or_none(cotangent: Any) -> Any:
    return None if isinstance(cotangent, SymbolicZero) else cotangent
