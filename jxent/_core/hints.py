"""Parts of error messages: what was passed, and what was likely meant."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

_WITH_DEFAULT = ("label_smoothing", "z_loss", "gamma", "epsilon", "beta", "tau", "empty")


def label_dtype_hint(labels: Array, scores: Array) -> str:
    if labels.dtype != jnp.bool_:
        return ""
    return f"; did you mean labels.astype(jnp.{'float32' if labels.shape == scores.shape else 'int32'})?"


def label_hint(labels: Array, scores: Array, axis: int, has_axis: bool) -> str:
    row_shape = scores.shape[:axis] + scores.shape[axis + 1 :]
    to_ids = "" if jnp.issubdtype(labels.dtype, jnp.integer) else ".astype(jnp.int32)"
    fitting = [a for a in range(scores.ndim) if labels.shape == scores.shape[:a] + scores.shape[a + 1 :]]
    hint = ""
    if to_ids and labels.shape == row_shape:
        hint = f"; for class ids, did you mean labels{to_ids}?"
    elif labels.shape == (*row_shape[:axis], 1, *row_shape[axis:]):
        hint = f"; did you mean labels.squeeze({-1 if axis == scores.ndim - 1 else axis}){to_ids}?"
    elif to_ids:
        pass
    elif labels.shape == scores.shape:
        hint = "; for one-hot labels, did you mean labels.astype(jnp.float32)?"
    elif has_axis and fitting:
        # If several axes fit, torch's comes first.
        fitting.sort(key=lambda a: a != 1)
        hint = f"; did you mean {' or '.join(f'axis={a}' for a in fitting)}?"
    elif labels.ndim and labels.ndim != len(row_shape) and labels.size == math.prod(row_shape):
        hint = f"; did you mean labels.reshape({row_shape})?"
    return hint


def row_hint(name: str, array: Array, row_shape: tuple[int, ...]) -> str:
    if array.shape == (*row_shape, 1):
        return f"; did you mean {name}.squeeze(-1)?"
    if array.ndim and array.shape == row_shape[:-1]:
        return f"; for one per row, did you mean {name}[..., None]?"
    if array.ndim and array.shape == row_shape[1:]:
        return f"; did you mean {name}[None]?"
    return ""


def holds_text(value: Any) -> bool:
    return isinstance(value, str | list | tuple) and any(isinstance(leaf, str) for leaf in jax.tree.leaves(value))


def is_record(value: Any) -> bool:
    """Whether it is a named tuple, such as `Mean`, or a list of named tuples."""
    parts = value if type(value) in (list, tuple) else (value,)
    return any(isinstance(part, tuple) and hasattr(part, "_fields") for part in parts)


def content_of(value: Any) -> str:
    """Describes briefly what was passed instead of numbers."""
    kind = type(value).__name__
    if isinstance(value, str):
        return f"{kind} {shortened(repr(value))}"
    if isinstance(value, int):
        return f"{kind} beyond 64 bits"
    if is_record(value):
        return f"{kind} of {type(value[0]).__name__}" if isinstance(value, list) else kind
    return f"{kind}{_content_of_many(value)}"


def _content_of_many(value: Any) -> str:
    if holds_text(value):
        return " of text"
    if isinstance(value, list | tuple):
        try:
            value = np.asarray(value)
        except ValueError:
            return " whose parts differ in shape"
    if not isinstance(value, np.ndarray):
        return ""
    if value.dtype.kind == "O" and all(isinstance(entry, int) for entry in value.flat):
        are_wide = any(not -(2**63) <= entry < 2**64 for entry in value.flat)
        return " of integers beyond 64 bits" if are_wide else " of dtype object"
    return f" of {'text' if value.dtype.kind in 'US' else f'dtype {value.dtype.name}'}"


def content_hint(name: str, value: Any) -> str:
    if name == "class_weight" and isinstance(value, dict):
        return "; did you mean a list of its values, in the order of the ids?"
    if name == "class_weight" and isinstance(value, str) and value == "balanced":
        return "; did you mean balanced_class_weights(class_counts(labels, num_classes))?"
    if callable(getattr(value, "value", None)) and is_record(value):
        return "; did you mean its .value()?"
    content = content_of(value)
    if name in ("labels", "target") and content.endswith("of text"):
        return f"; for class names, np.unique({name}, return_inverse=True) gives ids"
    if content.endswith("of dtype object"):
        return f"; did you mean np.asarray({name}, dtype=...), with a dtype of numbers?"
    return "; leave it out for the default" if value is None and name in _WITH_DEFAULT else ""


def reduction_hint(reduction: Any, choices: tuple[str, ...]) -> str:
    meant = str(reduction).lower() if reduction is None or isinstance(reduction, str) else ""
    return f"; did you mean {meant!r}?" if meant in choices else ""


def static_hint(name: str, value: Any) -> str:
    return f"; under jax.jit, name {name} in static_argnames or close over it" if isinstance(value, Tracer) else ""


def kind_of(value: Any) -> str:
    if isinstance(value, Tracer):
        return f"a traced value ({value.aval.str_short()})"
    return f"{shortened(repr(value))} ({type(value).__name__})"


def shortened(text: str) -> str:
    """At most one line of `text`."""
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
