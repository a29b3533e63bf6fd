"""The words of error messages: what came, and what was likely meant."""

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
    rows = scores.shape[:axis] + scores.shape[axis + 1 :]
    to_ids = "" if jnp.issubdtype(labels.dtype, jnp.integer) else ".astype(jnp.int32)"
    others = [a for a in range(scores.ndim) if labels.shape == scores.shape[:a] + scores.shape[a + 1 :]]
    hint = ""
    if to_ids and labels.shape == rows:
        hint = f"; for class ids, did you mean labels{to_ids}?"
    elif labels.shape == (*rows[:axis], 1, *rows[axis:]):
        hint = f"; did you mean labels.squeeze({-1 if axis == scores.ndim - 1 else axis}){to_ids}?"
    elif to_ids:
        pass
    elif labels.shape == scores.shape:
        hint = "; for one-hot labels, did you mean labels.astype(jnp.float32)?"
    elif has_axis and others:
        hint = f"; did you mean axis={others[0]}?"
    elif labels.ndim and labels.ndim != len(rows) and labels.size == math.prod(rows):
        hint = f"; did you mean labels.reshape({rows})?"
    return hint


def row_hint(name: str, array: Array, rows: tuple[int, ...]) -> str:
    if array.shape == (*rows, 1):
        return f"; did you mean {name}.squeeze(-1)?"
    if array.ndim and array.shape == rows[:-1]:
        return f"; for one a row, did you mean {name}[..., None]?"
    if array.ndim and array.shape == rows[1:]:
        return f"; did you mean {name}[None]?"
    return ""


def holds_text(value: Any) -> bool:
    """Whether text is in a list: jax asks NumPy for a dtype of that name then, which warns for some letters."""
    return isinstance(value, str | list | tuple) and any(isinstance(leaf, str) for leaf in jax.tree.leaves(value))


def content_of(value: Any) -> str:
    """What came instead of numbers, in a few words."""
    kind = type(value).__name__
    if isinstance(value, str):
        return f"{kind} {shortened(repr(value))}"
    if holds_text(value):
        return f"{kind} of text"
    if isinstance(value, list | tuple):
        try:
            value = np.asarray(value)
        except ValueError:
            return f"{kind} whose parts differ in shape"
    if not isinstance(value, np.ndarray):
        return kind
    if value.dtype.kind == "O" and all(isinstance(entry, int) for entry in value.flat):
        are_wide = any(not -(2**63) <= entry < 2**64 for entry in value.flat)
        return f"{kind} of integers beyond 64 bits" if are_wide else f"{kind} of dtype object"
    return f"{kind} of {'text' if value.dtype.kind in 'US' else f'dtype {value.dtype.name}'}"


def content_hint(name: str, value: Any) -> str:
    if name == "class_weight" and isinstance(value, dict):
        return "; did you mean a list of its values, in the order of the ids?"
    if name == "class_weight" and isinstance(value, str) and value == "balanced":
        return "; did you mean balanced_class_weights(class_counts(labels, num_classes))?"
    content = content_of(value)
    if name in ("labels", "target") and content.endswith("of text"):
        return f"; for class names, np.unique({name}, return_inverse=True) gives ids"
    if content.endswith("of dtype object"):
        return f"; did you mean np.asarray({name}, dtype=...), with a dtype of numbers?"
    return "; leave it out for the default" if value is None and name in _WITH_DEFAULT else ""


def static_hint(name: str, value: Any) -> str:
    return f"; under jax.jit, name {name} in static_argnames or close over it" if isinstance(value, Tracer) else ""


def kind_of(value: Any) -> str:
    if isinstance(value, Tracer):
        return f"a traced value ({value.aval.str_short()})"
    return f"{shortened(repr(value))} ({type(value).__name__})"


def shortened(text: str) -> str:
    """One line of it at most."""
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
