"""Reductions of per-row losses, `Mean` pairs that add up across microbatches and devices, and a weighted mean."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax import Array, export, lax

from jxent._core import arguments
from jxent._core.binary_targets import BinaryTargets, split_like_elements
from jxent._core.calls import naming_arguments
from jxent._core.counts import count, size_of
from jxent._core.signatures import ArrayLike, Scalar


@partial(export.register_namedtuple_serialization, serialized_name="jxent.Mean")
class Mean(NamedTuple):
    """A weighted mean before its division: `total / weight`.

    Averaging the means of unequal parts does not give the mean of the whole; adding these pairs does. Over microbatches,
    differentiate `total`, add `total`, `weight` and the gradients, and divide once. Over devices, see the guide "Masks,
    weights and the right mean": in a `shard_map`, jax itself adds up the gradient of a parameter that all devices share.

    A pytree of two arrays of equal shape and dtype. `+` adds two of them field by field, and accepts the 0 that `sum`
    starts from.

    Attributes:
        total: the weighted sum, a floating scalar (or a batch of them under `vmap`).
        weight: the sum of the weights, the same shape and dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), jnp.array([0, 1, 0])
        >>> parts = [
        ...     jxent.softmax_cross_entropy(logits[i:j], labels[i:j], reduction="partial") for i, j in ((0, 1), (1, 3))
        ... ]
        >>> print(f"{sum(parts).value():.4f}")
        0.3778
        >>> print(f"{jxent.softmax_cross_entropy(logits, labels, reduction='mean'):.4f}")
        0.3778

    See also:
        `weighted_mean`, and `reduction="partial"` of every loss.
    """

    total: Array
    weight: Array

    # Makes NumPy scalars and arrays defer to the operators below; they would treat the tuple as an array.
    __array_ufunc__ = None

    def __add__(self, other: Any) -> Mean:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Adds field by field.

        Args:
            other: a `Mean`, or the number 0.

        Raises:
            TypeError: `other` is neither.
        """
        if isinstance(other, Mean):
            return Mean(self.total + other.total, self.weight + other.weight)
        if arguments.is_number(other) and other == 0:
            return self
        # NotImplemented would let Python concatenate tuples.
        raise TypeError(f"Mean: can add another Mean or 0; got {type(other).__name__}; a Mean of one batch is .value()")

    __radd__ = __add__

    def __mul__(self, other: Any) -> NoReturn:
        """Not supported: Python would repeat the tuple."""
        raise TypeError(
            f"Mean: cannot be multiplied by {type(other).__name__}; scale .value(), or the total alone: "
            "mean._replace(total=factor * mean.total)"
        )

    __rmul__ = __mul__

    def value(self, empty: Scalar = 0.0) -> Array:
        """The quotient `total / weight`.

        Args:
            empty: the value where the weight is exactly 0; a scalar.

        Returns:
            An array of the fields' shape and dtype.

        Raises:
            TypeError: `empty` is not a number.
            ValueError: `empty` is not a scalar.

        Gradients:
            With respect to `total` and `weight`, in forward and reverse mode, to any order; 0 where the weight is
            exactly 0.
        """
        return _quotient("Mean.value", jnp.asarray(self.total), jnp.asarray(self.weight), empty)

    def psum(self, axis_name: Hashable) -> Mean:
        """Adds both fields over a mapped axis, as `jax.lax.psum` does; `.value()` is then the mean of the whole axis.

        The average of per-device means differs from it wherever the devices' weights differ.

        Args:
            axis_name: the name, or a tuple of names, of axes of a `shard_map`, `vmap` or `pmap` around the call.

        Returns:
            The `Mean` over the whole axis, equal on all of its devices.

        Raises:
            ValueError: there is no such axis around the call.
        """
        try:
            return Mean(lax.psum(self.total, axis_name), lax.psum(self.weight, axis_name))
        except NameError as error:
            raise ValueError(
                f"Mean.psum: there is no mapped axis {axis_name!r} here; it names an axis of a jax.shard_map or a "
                "jax.vmap around the call, and is not needed under jit alone"
            ) from error


@naming_arguments
def weighted_mean(
    values: ArrayLike,
    *,
    where: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    axis: int | tuple[int, ...] | None = None,
    empty: Scalar = 0.0,
) -> Array:
    """Weighted mean over the unmasked values: for per-row losses and metrics.

    `Σ m·s·v / Σ m·s`, with m from `where` and s from `sample_weight`.

    Args:
        values: `[...]`, floating, integer or bool. The result has dtype `promote(values, float32)` (float32 for
            integers and bools).
        where: bool, the shape of `values`, or the same rank with axes of size 1. Values where it is False are left out,
            whatever they hold. Default: no mask.
        sample_weight: floating or integer, shaped like `where`. Default: 1.
        axis: the axis or axes to reduce. Default: all.
        empty: a scalar, the result where the weights sum to exactly 0.

    Returns:
        `values` without the reduced axes.

    Raises:
        TypeError: `where` is not bool; `sample_weight`, `values` or `empty` is not numeric; or `axis` is not static
            integers.
        ValueError: a shape does not fit, `empty` is not a scalar, or `axis` is out of range or repeated.

    Gradients:
        With respect to `values` and `sample_weight`, in forward and reverse mode, to any order. Exactly 0 at masked
        values, and everywhere if the weights sum to exactly 0.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> hits = jnp.array([1.0, 0.0, jnp.nan])
        >>> print(jxent.weighted_mean(hits, where=jnp.array([True, True, False])))
        0.5

    References:
        `numpy.average`, plus a mask and a defined result when nothing is left.

    See also:
        `Mean`.
    """
    fn = "weighted_mean"
    values = arguments.as_values(fn, "values", values)
    where = arguments.as_row_mask(fn, where, values.shape)
    sample_weight = arguments.as_per_row(fn, "sample_weight", sample_weight, values.shape, values.dtype)
    axes = arguments.as_axes(fn, "values", values, axis)
    total = jnp.sum(weighted(values, sample_weight, where), axes)
    return _quotient(fn, total, _total_weight(jnp.ones_like(values), None, sample_weight, where, axes), empty)


def reduce_rows(
    loss: Array, row_weight: Array | None, sample_weight: Array | None, where: Array | None, reduction: str
) -> Array | Mean:
    """Reduces per-row losses as `reduction` says. None stands for ones."""
    if reduction == "none":
        return weighted(loss, sample_weight, where)
    total = jnp.sum(weighted(loss, sample_weight, where))
    return reduce_total(total, jnp.ones_like(loss), row_weight, sample_weight, where, reduction)


@partial(jax.jit, static_argnums=(0, 1))
def reduce_elements(
    terms: Callable[..., Array], reduction: str, scores: Array, targets: BinaryTargets, *options: Array | None
) -> Array | Mean:
    """A binary loss from checked arguments. Jitted, so an eager call runs one compiled function."""
    targets, options = split_like_elements(scores, (targets, options))
    return reduce_rows(terms(scores, targets, *options), targets.row_weight(), None, targets.where, reduction)


def reduce_total(
    total: Array,
    ones: Array,
    row_weight: Array | None,
    sample_weight: Array | None,
    where: Array | None,
    reduction: str,
) -> Array | Mean:
    """Turns Σ m·s·row into "sum", "mean" or "partial". `ones` has the shape and dtype of the rows."""
    if reduction == "sum":
        return total
    mean = Mean(total, _total_weight(ones, row_weight, sample_weight, where, tuple(range(ones.ndim))))
    return mean if reduction == "partial" else mean.value()


def _total_weight(
    ones: Array, row_weight: Array | None, sample_weight: Array | None, where: Array | None, axes: tuple[int, ...]
) -> Array:
    """Σ m·s·w over `axes`."""
    if row_weight is None and sample_weight is None:
        if where is None:
            return size_of([ones.shape[axis] for axis in axes], ones.dtype)
        return count(where, axes, ones.dtype)
    return jnp.sum(weighted(ones if row_weight is None else row_weight, sample_weight, where), axes)


def weighted(values: Array, sample_weight: Array | None, where: Array | None) -> Array:
    """m·s·v. Masks both factors before the product, so that nothing in a masked entry reaches it or its gradient."""
    if where is not None:
        values = jnp.where(where, values, 0)
    if sample_weight is None:
        return values
    if where is not None:
        sample_weight = jnp.where(where, sample_weight, 0)
    return sample_weight * values


def _quotient(fn: str, total: Array, weight: Array, empty: Any) -> Array:
    is_empty = weight == 0
    quotient = jnp.where(is_empty, 0, total) / jnp.where(is_empty, 1, weight)
    if not arguments.is_number(empty):
        empty = arguments.as_scalar(fn, "empty", empty, quotient.dtype)
    return jnp.where(is_empty, jnp.asarray(empty, quotient.dtype), quotient)
