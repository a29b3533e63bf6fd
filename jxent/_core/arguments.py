"""Trace-time checks of a caller's arguments, with every message that says how to fix the call.

TypeError for a dtype or type, ValueError for a shape or option. Each function takes the caller's name first and returns
the argument in the form that the rest of the library expects.
"""

import numbers
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from jxent._core import hints
from jxent._core.dtypes import compute_dtype
from jxent._core.shards import VocabAxis, varying_axes

REDUCTIONS = ("none", "sum", "mean", "partial")
_INT32 = np.iinfo(np.int32)
# Tolerance for a floating binary label outside [0, 1]: covers rounding, not labels with another meaning.
ROUNDING = 1e-3
_LABELS_BESIDE = {"logits": "labels", "probs": "labels", "log_probs": "labels", "input": "target"}
_PRECISIONS = (
    "None, 'default', 'high', 'highest', a jax.lax.Precision, a pair of these, or an algorithm of jax.lax.DotAlgorithm "
    "or jax.lax.DotAlgorithmPreset"
)


def as_array(fn: str, name: str, value: Any) -> Array:
    """A list, NumPy or jax array as a jax array that is not weakly typed and whose integers did not wrap."""
    return _as_array(fn, name, value, _clipped)


def _as_array(
    fn: str, name: str, value: Any, narrowed: Callable[[np.ndarray], np.ndarray], wanted: str = "an array of numbers"
) -> Array:
    """`narrowed` converts what jax would truncate: 64-bit integers without x64."""
    if isinstance(value, Array) and not _is_converted(value):
        return value
    if hints.is_record(value):
        raise _refusal(fn, name, value, wanted)
    try:
        array = jnp.asarray(_without_wide(value, narrowed))
    except (TypeError, ValueError) as error:
        raise _refusal(fn, name, value, wanted) from error
    return lax.convert_element_type(array, array.dtype)


def _refusal(fn: str, name: str, value: Any, wanted: str) -> TypeError:
    return TypeError(f"{fn}: {name} must be {wanted}; got {hints.content_of(value)}{hints.content_hint(name, value)}")


def _is_converted(array: Array) -> bool:
    """Whether jax would change its dtype at some point, because it is weakly typed or was made under x64."""
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return False
    return jax.typeof(array).weak_type or jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype


def _without_wide(value: Any, narrowed: Callable[[np.ndarray], np.ndarray]) -> Any:
    """The same numbers, with those that jax would truncate `narrowed` first."""
    if isinstance(value, list | tuple):
        leaves = jax.tree.leaves(value)
        if any(_is_of_jax(leaf) for leaf in leaves if type(leaf) not in (bool, int, float)):
            return jax.tree.map(lambda leaf: _without_wide(leaf, narrowed), value)
    if _is_small_number(value) or _is_of_jax(value):
        return value
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return narrowed(array) if _is_wide(array.dtype) else array


def _is_small_number(value: Any) -> bool:
    """Whether it is a Python number, and not an integer beyond int32."""
    return isinstance(value, float) or (isinstance(value, int) and value == _within_int32(value))


def _is_of_jax(value: Any) -> bool:
    """Whether jax can convert it. False for integers made under x64, which jax truncates outside of x64."""
    is_array = isinstance(value, Array) and (isinstance(value, Tracer) or not _is_wide(value.dtype))
    return is_array or hasattr(value, "__jax_array__")


def _is_wide(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) and jax.dtypes.canonicalize_dtype(dtype) != dtype


def _clipped(value: np.ndarray, ignored: int | None = None) -> np.ndarray:
    """Clips ids to int32. One out of range stays out of range, and none becomes equal to the clipped `ignored`."""
    clipped = np.clip(value, _INT32.min, _INT32.max)
    if ignored is not None and (at := _within_int32(ignored)) in (_INT32.min, _INT32.max):
        beside = at + 1 if at == _INT32.min else at - 1
        clipped = np.where((clipped == at) & (value != ignored), beside, clipped)
    return clipped.astype(np.int32)


def _within_int32(value: int) -> int:
    return min(max(value, _INT32.min), _INT32.max)


def _as_floats(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32)


def as_scores(fn: str, name: str, value: Any) -> Array:
    """Logits, probabilities or log-probabilities, of any floating dtype."""
    array = as_array(fn, name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        hint = (
            f"; did you mean {name}.astype(jnp.float32)"
            if any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.integer, jnp.bool_))
            else ""
        )
        if hint and name in _LABELS_BESIDE:  # Keras takes labels first.
            hint += f", or are {name} and {_LABELS_BESIDE[name]} swapped"
        raise TypeError(f"{fn}: {name} must have a floating dtype; got {array.dtype.name}{hint and hint + '?'}")
    return array


def as_values(fn: str, name: str, value: Any) -> Array:
    """Numbers or bools, in at least float32."""
    array = _as_array(fn, name, value, _as_floats)
    if jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == jnp.bool_:
        return array.astype(jnp.float32)
    array = as_scores(fn, name, array)
    return _cast(array, compute_dtype(array.dtype))


def as_class_axis(fn: str, name: str, scores: Array, axis: Any) -> int:
    """The class axis, counted from the front."""
    index = as_integer(fn, "axis", axis)
    if not -scores.ndim <= index < scores.ndim:
        raise ValueError(f"{fn}: axis={index} is out of range for {name} with shape {scores.shape}")
    index %= scores.ndim
    if scores.shape[index] == 0:
        raise ValueError(f"{fn}: {name} has shape {scores.shape}, which holds zero classes at axis={index}")
    return index


def as_axes(fn: str, name: str, values: Array, axis: Any) -> tuple[int, ...]:
    """The axes of a reduction, counted from the front; None means all."""
    if axis is None:
        return tuple(range(values.ndim))
    axes = tuple(as_integer(fn, "axis", a) for a in (axis if isinstance(axis, tuple | list) else (axis,)))
    if not all(-values.ndim <= a < values.ndim for a in axes):
        raise ValueError(f"{fn}: axis={axis} is out of range for {name} with shape {values.shape}")
    axes = tuple(a % values.ndim for a in axes)
    if len(set(axes)) < len(axes):
        raise ValueError(f"{fn}: axis={axis} names an axis of {name} twice")
    return axes


def as_vocab_axis(fn: str, name: str, scores: Array, value: Any) -> VocabAxis:
    """The names of the `shard_map` axes that split the classes of `scores`, as a tuple, or None."""
    if value is None:
        return None
    names = value if isinstance(value, tuple) else (value,)
    if not names or not all(map(_is_name, names)):
        raise ValueError(
            f"{fn}: vocab_axis_name must be a name, a tuple of names or None; got {hints.kind_of(value)}"
            f"{hints.static_hint('vocab_axis_name', value)}"
        )
    for axis_name in names:
        try:
            lax.axis_size(axis_name)
        except (NameError, TypeError, ValueError) as error:
            raise ValueError(
                f"{fn}: vocab_axis_name={value!r}, but there is no mapped axis {axis_name!r} here; it names an axis of "
                "a jax.shard_map around the call, and is not needed under jit alone"
            ) from error
    missing = [axis_name for axis_name in names if axis_name not in varying_axes(scores)]
    if missing:
        raise ValueError(
            f"{fn}: vocab_axis_name={value!r} must name the axes that split the classes of {name}, but {name} does not "
            f"vary over {missing}: either its in_specs do not split it there, or shard_map was called with "
            "check_vma=False; leave check_vma on, since gradients would be wrong by the size of the axis without it"
        )
    return names


def _is_name(value: Any) -> bool:
    """Whether it can name an axis: jax allows anything hashable."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def check_same_over(fn: str, vocab_axis_name: VocabAxis, **arrays: Array | None) -> None:
    """Checks that per-row arrays are equal on devices that share the row; otherwise gradients would add up wrongly."""
    for name, array in arrays.items():
        if array is not None and varying_axes(array) & set(vocab_axis_name or ()):
            raise ValueError(
                f"{fn}: {name} varies over vocab_axis_name={vocab_axis_name}, but must be the same on all devices of "
                f"those axes; say so in its in_specs, or with jax.lax.pmax({name}, {vocab_axis_name}) if it already is"
            )


def as_integer(fn: str, name: str, value: Any) -> int:
    if isinstance(value, bool | np.bool_ | Tracer):
        raise TypeError(
            f"{fn}: {name} must be a static integer; got {hints.kind_of(value)}{hints.static_hint(name, value)}"
        )
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{fn}: {name} must be a static integer; got {hints.kind_of(value)}") from None


def as_ignore_index(fn: str, value: Any) -> int | None:
    if isinstance(value, tuple | list | set):
        raise TypeError(
            f"{fn}: ignore_index must be a static integer; got {hints.kind_of(value)}; to ignore several ids, pass "
            "where=~jnp.isin(labels, jnp.array([...]))"
        )
    return None if value is None else as_integer(fn, "ignore_index", value)


def as_labels(fn: str, name: str, value: Any, ignored: int | None) -> tuple[Array, int | None]:
    """Labels of any dtype, and `ignored`, which is narrowed to 32 bits if the ids are.

    Other ids beyond 32 bits remain bad ids and are not ignored.
    """
    ignored_as = ignored

    def narrowed(wide: np.ndarray) -> np.ndarray:
        nonlocal ignored_as
        ignored_as = None if ignored is None else _within_int32(ignored)
        return _clipped(wide, ignored)

    return _as_array(fn, name, value, narrowed), ignored_as


def as_class_labels(
    fn: str, scores_name: str, scores: Array, axis: int, labels: Any, ignored: int | None = None
) -> tuple[Array, int | None]:
    """Integer labels of the row shape or floating labels of the full shape, and `ignored` as from `as_labels`."""
    labels, ignored = as_labels(fn, "labels", labels, ignored)
    expected = row_shape(scores, axis)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        if labels.shape == expected:
            return labels, ignored
    elif not jnp.issubdtype(labels.dtype, jnp.floating):
        raise TypeError(
            f"{fn}: labels has dtype {labels.dtype.name}; expected an integer dtype (class ids) or a floating one "
            f"(distributions){hints.label_dtype_hint(labels, scores)}"
        )
    elif labels.shape == scores.shape:
        return labels, ignored
    at_axis = "" if scores_name == "hidden @ kernel" else f" and axis={axis}"
    raise ValueError(
        f"{fn}: labels has shape {labels.shape} and dtype {labels.dtype.name}; expected {expected} of an integer dtype "
        f"(class ids) or {scores.shape} of a floating one (distributions), to go with {scores_name} of shape "
        f"{scores.shape}{at_axis}{hints.label_hint(labels, scores, axis, has_axis=bool(at_axis))}"
    )


def as_sparse_labels(
    fn: str, scores_name: str, scores: Array, axis: int, ids: Any, weights: Any
) -> tuple[Array, Array]:
    """Ids `[..., K]`, and weights of the same shape in the compute dtype."""
    ids, _ = as_labels(fn, "labels.ids", ids, None)
    check_ids_dtype(fn, "labels.ids", ids.dtype)
    weights = as_array(fn, "labels.weights", weights)
    expected = row_shape(scores, axis)
    if not ids.ndim or ids.shape[:-1] != expected or not ids.shape[-1]:
        raise ValueError(
            f"{fn}: labels.ids has shape {ids.shape}; expected {(*expected, 'K')}, K ids per row, to go with "
            f"{scores_name} of shape {scores.shape}"
        )
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        raise TypeError(f"{fn}: labels.weights must have a floating dtype; got {weights.dtype.name}")
    if weights.shape != ids.shape:
        raise ValueError(f"{fn}: labels.weights has shape {weights.shape}; expected that of labels.ids, {ids.shape}")
    return ids, weights.astype(compute_dtype(scores.dtype))


def as_ids(fn: str, name: str, value: Any) -> Array:
    """Integers of any shape."""
    ids, _ = as_labels(fn, name, value, None)
    check_ids_dtype(fn, name, ids.dtype)
    return ids


def check_ids_dtype(fn: str, name: str, dtype: Any, hint: str = "") -> None:
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{fn}: {name} must have an integer dtype (class ids); got {dtype.name}{hint}")


def check_binary_dtype(fn: str, name: str, dtype: Any) -> None:
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
        raise TypeError(f"{fn}: {name} must have a bool, integer or floating dtype; got {dtype.name}")


def as_concrete(fn: str, name: str, value: Any) -> np.ndarray:
    """Numbers as a NumPy array, with 64 bits kept and nothing traced."""
    wanted = "an array of numbers"
    if hints.is_record(value):
        raise _refusal(fn, name, value, wanted)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise _refusal(fn, name, value, wanted) from error
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_):
        raise _refusal(fn, name, value, wanted)
    # NumPy cannot compare ml_dtypes' 2- and 4-bit integers with a number that they do not hold.
    is_narrow = array.dtype.kind not in "iu" and jnp.issubdtype(array.dtype, jnp.integer)
    return array.astype(np.int8) if is_narrow else array


def as_num_classes(fn: str, value: Any) -> int:
    num_classes = as_integer(fn, "num_classes", value)
    if num_classes < 1:
        raise ValueError(f"{fn}: num_classes must be at least 1; got {num_classes}")
    if num_classes > _INT32.max:
        raise ValueError(
            f"{fn}: num_classes must be below 2**31, as ids are int32; got {hints.shortened(str(num_classes))}"
        )
    return num_classes


def as_counts(fn: str, name: str, value: Any) -> Array:
    """`[V]` numbers, in at least float32."""
    counts = as_real(fn, name, value)
    if counts.ndim != 1:
        raise ValueError(f"{fn}: {name} has shape {counts.shape}; expected one axis, a count for each class")
    return _cast(counts, compute_dtype(counts.dtype if jnp.issubdtype(counts.dtype, jnp.floating) else jnp.float32))


def as_binary_labels(fn: str, scores_name: str, scores: Array, labels: Any, name: str = "labels") -> Array:
    """Bool, integer or floating labels, one for each element."""
    labels = as_array(fn, name, labels)
    check_binary_dtype(fn, name, labels.dtype)
    if labels.shape == scores.shape:
        return labels
    hint = ""
    if (*labels.shape, 1) == scores.shape:
        hint = f"; did you mean {name}[..., None]?"
    elif labels.shape == (*scores.shape, 1):
        hint = f"; did you mean {name}.squeeze(-1)?"
    elif labels.shape == scores.shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer):
        hint = f"; for class ids, did you mean a multiclass loss, or jax.nn.one_hot({name}, {scores.shape[-1]})?"
    raise ValueError(
        f"{fn}: {name} has shape {labels.shape}; expected {scores.shape}, the shape of {scores_name}: every element is "
        f"a decision of its own, and nothing is broadcast{hint}"
    )


def as_per_class(fn: str, name: str, value: Any, num_classes: int, dtype: Any) -> Array | None:
    """`[num_classes]` numbers in the compute dtype."""
    if value is None:
        return None
    array = as_real(fn, name, value)
    if array.shape != (num_classes,):
        raise ValueError(f"{fn}: {name} has shape {array.shape}; expected ({num_classes},), one per class")
    return _cast(array, dtype)


def as_per_column(fn: str, name: str, value: Any, scores: Array, dtype: Any, scalar: bool) -> Array | None:
    """`[K]` numbers (or one scalar) for the K columns of a binary loss, in the rank and compute dtype of `scores`."""
    if value is None:
        return None
    array = as_real(fn, name, value)
    wanted = [f"({scores.shape[-1]},), one per column of the last axis"] if scores.ndim else []
    wanted += ["()"] if scalar else []
    if not ((scalar and array.ndim == 0) or (scores.ndim and array.shape == scores.shape[-1:])):
        hint = "; it is not [w_neg, w_pos]: to weight positives against negatives use pos_weight" if not scalar else ""
        expected = f"expected {' or '.join(wanted)}" if wanted else "scores of rank 0 have no columns to weight"
        raise ValueError(f"{fn}: {name} has shape {array.shape}; {expected}{hint}")
    return lax.expand_dims(_cast(array, dtype), range(scores.ndim - array.ndim))


def as_per_row(fn: str, name: str, value: Any, shape: tuple[int, ...], dtype: Any) -> Array | None:
    """Numbers in the compute dtype, broadcast to the row shape."""
    if value is None:
        return None
    return _broadcast_to_rows(fn, name, _cast(as_real(fn, name, value), dtype), shape)


def as_row_mask(fn: str, value: Any, shape: tuple[int, ...]) -> Array | None:
    """A bool mask, broadcast to the row shape."""
    if value is None:
        return None
    mask = _as_array(fn, "where", value, _clipped, "an array of bools")
    if mask.dtype != jnp.bool_:
        array = "where" if hasattr(value, "dtype") else "jnp.asarray(where)"
        hint = f"; did you mean {array} != 0?" if jnp.issubdtype(mask.dtype, jnp.number) else ""
        raise TypeError(f"{fn}: where must have dtype bool; got {mask.dtype.name}{hint}")
    return _broadcast_to_rows(fn, "where", mask, shape)


def _broadcast_to_rows(fn: str, name: str, array: Array, shape: tuple[int, ...]) -> Array:
    fits = array.ndim == len(shape) and all(have in (1, want) for have, want in zip(array.shape, shape, strict=True))
    if not fits:
        raise ValueError(
            f"{fn}: {name} has shape {array.shape}; expected the row shape {shape}, or the same rank with axes of size "
            f"1{hints.row_hint(name, array, shape)}"
        )
    return array if array.shape == shape else jnp.broadcast_to(array, shape)


def as_hyper_parameter(
    fn: str, name: str, value: Any, dtype: Any, low: float = -np.inf, high: float = np.inf
) -> Array | None:
    """A scalar in the compute dtype, possibly traced; None for the number 0. Python numbers must be in [low, high]."""
    check_range(fn, name, value, low, high)
    return None if is_number(value) and value == 0 else as_scalar(fn, name, value, dtype)


def as_scalar(fn: str, name: str, value: Any, dtype: Any) -> Any:
    """A scalar in the compute dtype. A Python number becomes a NumPy one, which jax need not send to a device."""
    if type(value) in (int, float) and _is_small_number(value):
        with np.errstate(over="ignore"):
            return np.asarray(value, dtype)
    scalar = as_real(fn, name, value, "a number")
    if scalar.ndim:
        raise ValueError(f"{fn}: {name} must be a scalar; got shape {scalar.shape}; use jax.vmap to try several")
    return _cast(scalar, dtype)


def as_kernel(fn: str, kernel: Any, hidden: Array, transposed: bool, whose: str = "") -> tuple[Array, int]:
    """The kernel, `[D, V]` or transposed `[V, D]`, for hidden states `[..., D]`; and V. `whose` prefixes the names."""
    kernel = as_scores(fn, f"{whose}kernel", kernel)
    if hidden.ndim == 0:
        raise ValueError(f"{fn}: {whose}hidden has shape (); expected (..., D)")
    depth = hidden.shape[-1]
    wanted, swapped = (f"(V, {depth})", f"({depth}, V)") if transposed else (f"({depth}, V)", f"(V, {depth})")
    if kernel.ndim != 2 or kernel.shape[int(transposed)] != depth:
        hint = ""
        if kernel.ndim == 2 and kernel.shape[int(not transposed)] == depth:
            hint = f"; for a kernel of shape {swapped} pass {whose}transpose_kernel={not transposed}"
        raise ValueError(
            f"{fn}: {whose}kernel has shape {kernel.shape}; expected {wanted}, to go with {whose}hidden of shape "
            f"{hidden.shape} and {whose}transpose_kernel={transposed}{hint}"
        )
    num_classes = kernel.shape[int(not transposed)]
    if num_classes == 0:
        raise ValueError(f"{fn}: {whose}kernel has shape {kernel.shape}, which holds zero classes")
    return kernel, num_classes


def as_logit_scale(fn: str, value: Any, dtype: Any) -> Any:
    """A scalar in the compute dtype, possibly traced; None stays None."""
    if value is None:
        return None
    check_range(fn, "logit_scale", value, -np.inf, np.inf)
    return as_scalar(fn, "logit_scale", value, dtype)


def as_inverse_temperature(fn: str, value: Any, dtype: Any) -> Any:
    """1/T for a positive scalar, possibly traced; None for None and for the number 1."""
    if value is None:
        return None
    number = _number_in(value)
    if is_number(number):
        if not 0 < float(number) < np.inf:
            raise ValueError(f"{fn}: temperature must be above 0 and finite; got {number}")
        if float(number) == 1:
            return None
    return 1 / as_scalar(fn, "temperature", value, dtype)


def check_beta(fn: str, value: Any) -> None:
    if not is_number(value):
        raise TypeError(f"{fn}: beta must be a static number in [0, 1]; got {hints.kind_of(value)}")
    check_range(fn, "beta", value, 0, 1)


def as_softcap(fn: str, value: Any, dtype: Any) -> Any:
    """A positive scalar in the compute dtype, possibly traced; None for None and for the number inf."""
    if value is None:
        return None
    number = _number_in(value)
    if not is_number(number):
        return as_scalar(fn, "logit_softcap", value, dtype)
    with np.errstate(over="ignore", under="ignore"):
        cap = np.asarray(float(number), dtype)
    if not cap > 0:
        raise ValueError(f"{fn}: logit_softcap must be above 0, or None for none; got {number}")
    return None if cap == np.inf else cap


def check_precision(fn: str, value: Any) -> None:
    """Lets `jax.lax.dot_general` judge its `precision`."""
    if value is None:
        return
    operand = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    try:
        jax.eval_shape(lambda a: lax.dot_general(a, a, (((1,), (0,)), ((), ())), precision=value), operand)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{fn}: precision must be {_PRECISIONS}; got {hints.kind_of(value)}") from error


def as_chunk_size(fn: str, value: Any) -> int | None:
    if value is None:
        return None
    size = as_integer(fn, "chunk_size", value)
    if size < 1:
        raise ValueError(f"{fn}: chunk_size must be at least 1, or None for the default; got {size}")
    return size


def check_range(fn: str, name: str, value: Any, low: float, high: float) -> None:
    """Checks that a number lies in [low, high]; jax arrays, which may be traced, are not inspected."""
    value = _number_in(value)
    if is_number(value) and not low <= float(value) <= high:
        wanted = "a number" if low == -np.inf else f"at least {low:g}" if high == np.inf else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{fn}: {name} must be {wanted}; got {value}")


def check_reduction(fn: str, reduction: Any) -> None:
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        choices = ", ".join(repr(choice) for choice in REDUCTIONS)
        raise ValueError(
            f"{fn}: reduction must be one of {choices}; got {hints.shortened(repr(reduction))}"
            f"{hints.reduction_hint(reduction, REDUCTIONS)}"
        )


def check_flag(fn: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(
            f"{fn}: {name} must be True or False; got {hints.kind_of(value)}{hints.static_hint(name, value)}"
        )


def row_shape(scores: Array, axis: int) -> tuple[int, ...]:
    return scores.shape[:axis] + scores.shape[axis + 1 :]


def as_real(fn: str, name: str, value: Any, wanted: str = "an array of numbers") -> Array:
    """Floating or integer numbers of any shape."""
    array = _as_array(fn, name, value, _as_floats, wanted)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        is_mask = name == "sample_weight" and array.dtype == jnp.bool_
        hint = f"; to leave rows out, did you mean where={name}?" if is_mask else ""
        raise TypeError(f"{fn}: {name} must have a floating or integer dtype; got {array.dtype.name}{hint}")
    return array


def _cast(array: Array, dtype: Any) -> Array:
    """`array.astype(dtype)`, but faster if the array already has the dtype."""
    return array if array.dtype == dtype else array.astype(dtype)


def _number_in(value: Any) -> Any:
    """The number in a NumPy array of rank 0; other values unchanged."""
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)
