"""The losses of `torch.nn.functional`, argument for argument, for code ported from torch.

They take torch's arguments in torch's order, with the class axis at 1, and return torch's values and gradients,
including the NaN of an empty mean. Each wraps a loss of this package and differs from torch only where its docstring
says so. New code should call the losses directly.
"""

import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jxent._core import arguments
from jxent._core.counts import size_of
from jxent.probs import binary_cross_entropy_from_probs, cross_entropy_from_log_probs
from jxent.sigmoid import sigmoid_binary_cross_entropy
from jxent.softmax import softmax_cross_entropy


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: Any = 0.0,
) -> Array:
    """Multiclass cross entropy from logits, as `torch.nn.functional.cross_entropy`.

    With C classes, p the softmax of a row, w the weights and ε the smoothing, each row's loss is

        ids: −(1−ε)·w_y·log p_y − ε/C·Σ_c w_c log p_c,        distributions: −Σ_c w_c·((1−ε)·q_c + ε/C)·log p_c.

    It deliberately differs from torch in these points:

    - A confident row keeps its digits: torch rounds small losses and their gradients to 0.
    - An ignored row is exactly 0 whatever it holds; torch gives it a NaN gradient if it holds a NaN.
    - A logit of −inf marks a class that does not exist, 0 · log 0 = 0: smoothing goes to the other classes, and a
      target or a weight of 0 costs nothing there. torch gives inf and NaN.
    - A negative `label_smoothing` is an error: torch silently treats it as 0.
    - Ids may have any integer dtype, JAX's default being int32; torch takes int64 and uint8. Dtypes may be mixed.
    - bfloat16 and float16 logits give an accurate float32 loss; torch rounds it to their dtype.
    - A wrong shape, dtype or option raises a ValueError or a TypeError; torch also uses RuntimeErrors. Zero classes are
      an error even if every row is ignored.

    Args:
        input: logits, `[C]`, `[N, C]` or `[N, C, d1, …, dK]`, any floating dtype.
        target: class ids, integers of shape `[]` (or `[1]`), `[N]` or `[N, d1, …, dK]`; or a distribution per row,
            floating, with the shape of `input`.
        weight: `[C]`, the weight w_c of each class. Default: 1.
        size_average: deprecated, use `reduction`. False: "sum". Default: unset.
        ignore_index: a static integer; rows with this id are masked. Must be negative with distributions.
        reduce: deprecated, use `reduction`. False: "none", whatever `size_average` is. Default: unset.
        reduction: "none", "sum" or "mean"; overridden if `size_average` or `reduce` is given.
        label_smoothing: ε in [0, 1], a number or a traced scalar (unchecked).

    Returns:
        "none" gives a loss per row, in the shape of the rows; "sum" their sum; "mean" the sum divided by the Σ w_y of
        the rows not ignored for ids, or by the number of rows, N·d1·…·dK, for distributions, whatever `weight` is; NaN
        if the divisor is 0. All in `promote(input.dtype, float32)`.

    Raises:
        TypeError: an argument has the wrong dtype or type.
        ValueError: an argument has the wrong shape or value.
        IndexError: an id is outside [0, C). Where `target` is traced (under `jit`, for example) its values are unknown,
            and the row's loss and gradient are NaN instead.

    Gradients:
        With respect to `input`, distributions, `weight` and `label_smoothing`, in forward and reverse mode, to any
        order; exactly 0 in ignored rows. In a mean whose divisor is 0, NaN in the other rows.

    Example:
        >>> import jax.numpy as jnp
        >>> from jxent.torch_compat import cross_entropy
        >>> logits = jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])
        >>> weight = jnp.array([1.0, 2.0, 0.5])
        >>> print(f"{cross_entropy(logits, jnp.array([0, 2, -100]), weight, label_smoothing=0.1):.4f}")
        0.5163
        >>> print(cross_entropy(logits, jnp.full(3, -100)))
        nan

    References:
        `torch.nn.functional.cross_entropy`, `torch.nn.CrossEntropyLoss`.

    See also:
        `softmax_cross_entropy`, `torch_compat.nll_loss`.
    """
    return _multiclass(
        "torch_compat.cross_entropy",
        softmax_cross_entropy,
        input,
        target,
        weight,
        ignore_index,
        _reduction("torch_compat.cross_entropy", reduction, size_average, reduce),
        label_smoothing=label_smoothing,
    )


def nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Array:
    """Negative log-likelihood of log-probabilities, as `torch.nn.functional.nll_loss`.

    Each row's loss is −w_y·input_y. It deliberately differs from torch in these points:

    - An entry of −inf marks a class that does not exist, 0 · log 0 = 0: a weight of 0 costs nothing there. torch gives
      NaN.
    - An entry of +inf at the label gives NaN, so that loss scaling sees it; torch gives −inf.
    - Ids may have any integer dtype, JAX's default being int32; torch takes int64 and uint8. Dtypes may be mixed.
    - bfloat16 and float16 inputs give an accurate float32 loss; torch rounds it to their dtype.
    - A wrong shape, dtype or option raises a ValueError or a TypeError; torch also uses RuntimeErrors. Zero classes are
      an error even if every row is ignored.

    Args:
        input: log-probabilities, `[C]`, `[N, C]` or `[N, C, d1, …, dK]`, any floating dtype.
        target: class ids, integers of shape `[]` (or `[1]`), `[N]` or `[N, d1, …, dK]`.
        weight: `[C]`, the weight w_c of each class. Default: 1.
        size_average: deprecated, use `reduction`. False: "sum". Default: unset.
        ignore_index: a static integer; rows with this id are masked.
        reduce: deprecated, use `reduction`. False: "none", whatever `size_average` is. Default: unset.
        reduction: "none", "sum" or "mean"; overridden if `size_average` or `reduce` is given.

    Returns:
        "none" gives a loss per row, in the shape of the rows; "sum" their sum; "mean" the sum divided by the Σ w_y of
        the rows not ignored; NaN if that is 0. All in `promote(input.dtype, float32)`.

    Raises:
        TypeError: an argument has the wrong dtype or type (distributions, which `cross_entropy` takes).
        ValueError: an argument has the wrong shape or value.
        IndexError: an id is outside [0, C). Where `target` is traced (under `jit`, for example) its values are unknown,
            and the row's loss and gradient are NaN instead.

    Gradients:
        With respect to `input` and `weight`, in forward and reverse mode, to any order; exactly 0 in ignored rows. In a
        mean whose divisor is 0, NaN in the other rows.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jxent.torch_compat import nll_loss
        >>> log_probs = jax.nn.log_softmax(jnp.array([[2.0, 0.0], [0.0, 1.0]]))
        >>> print(f"{nll_loss(log_probs, jnp.array([0, 0])):.4f}")
        0.7201

    References:
        `torch.nn.functional.nll_loss`, `torch.nn.NLLLoss`.

    See also:
        `cross_entropy_from_log_probs`, `torch_compat.cross_entropy`.
    """
    fn = "torch_compat.nll_loss"
    reduction = _reduction(fn, reduction, size_average, reduce)
    return _multiclass(
        fn, cross_entropy_from_log_probs, input, target, weight, ignore_index, reduction, takes_soft=False
    )


def binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Array:
    """Binary cross entropy of probabilities, as `torch.nn.functional.binary_cross_entropy`.

    Each element's loss is −weight·(y·max(log p, −100) + (1−y)·max(log(1−p), −100)). It deliberately differs from torch
    in these points:

    - Where p·(1−p) < 1e-12 the gradient is that of each logarithm separately, −y/max(p, 1e-12) and
      (1−y)/max(1−p, 1e-12). torch's, (p−y)/max(p·(1−p), 1e-12), loses one of the two: it is 0, not −1, at p = y = 1.
    - Labels may be bool or integer, and dtypes may be mixed.
    - bfloat16 and float16 inputs give an accurate float32 loss; torch rounds it to their dtype.
    - A wrong shape, dtype, option or value raises a ValueError or a TypeError; torch also uses RuntimeErrors.

    Args:
        input: probabilities, any shape, any floating dtype.
        target: the shape of `input`, in [0, 1]; bool, integer or floating.
        weight: the weight of each element; any shape that broadcasts to that of `input`. Default: 1.
        size_average: deprecated, use `reduction`. False: "sum". Default: unset.
        reduce: deprecated, use `reduction`. False: "none", whatever `size_average` is. Default: unset.
        reduction: "none", "sum" or "mean"; overridden if `size_average` or `reduce` is given.

    Returns:
        "none" gives a loss per element; "sum" their sum; "mean" the sum divided by the number of elements, whatever
        `weight` is; NaN if there are none. All in `promote(input.dtype, float32)`.

    Raises:
        TypeError: an argument has the wrong dtype or type.
        ValueError: an argument has the wrong shape or value; or a number in `input` or `target` is outside [0, 1] or
            NaN. Where they are traced (under `jit`, `grad` or `vmap`) their values are unknown, and the element's loss
            and gradient are NaN instead.

    Gradients:
        With respect to `input`, floating `target` and `weight`, in forward and reverse mode, to any order; finite at 0
        and 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from jxent.torch_compat import binary_cross_entropy
        >>> probs, labels = jnp.array([0.9, 0.0]), jnp.array([1.0, 1.0])
        >>> print(binary_cross_entropy(probs, labels, reduction="none"))
        [  0.10536055 100.        ]

    References:
        `torch.nn.functional.binary_cross_entropy`, `torch.nn.BCELoss`.

    See also:
        `binary_cross_entropy_from_probs`, `torch_compat.binary_cross_entropy_with_logits`.
    """
    fn = "torch_compat.binary_cross_entropy"
    reduction = _reduction(fn, reduction, size_average, reduce)
    probs = arguments.as_scores(fn, "input", input)
    labels = arguments.as_binary_labels(fn, "input", probs, target, "target")
    probs, labels = _in_unit_interval(fn, "input", probs), _in_unit_interval(fn, "target", labels)
    weight = _broadcast(fn, "weight", weight, probs.shape)
    return _binary(fn, binary_cross_entropy_from_probs, probs, labels, reduction, sample_weight=weight)


def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Any = None,
) -> Array:
    """Binary cross entropy from logits, as `torch.nn.functional.binary_cross_entropy_with_logits`.

    Each element's loss is weight·(pos_weight·y·softplus(−x) + (1−y)·softplus(x)). It deliberately differs from torch in
    these points:

    - A logit of ±inf on the right side costs 0, since a term is 0 if its coefficient is 0; torch gives NaN.
    - Labels may be bool or integer, and dtypes may be mixed. One outside [0, 1] by more than rounding gives NaN; torch
      takes any number.
    - bfloat16 and float16 logits give an accurate float32 loss; torch rounds it to their dtype.
    - A wrong shape, dtype or option raises a ValueError or a TypeError; torch also uses RuntimeErrors.

    Args:
        input: logits, any shape, any floating dtype.
        target: the shape of `input`; bool, integer or floating (a probability).
        weight: the weight of each element; any shape that broadcasts to that of `input`. Default: 1.
        size_average: deprecated, use `reduction`. False: "sum". Default: unset.
        reduce: deprecated, use `reduction`. False: "none", whatever `size_average` is. Default: unset.
        reduction: "none", "sum" or "mean"; overridden if `size_average` or `reduce` is given.
        pos_weight: the weight of a positive label relative to a negative one; any shape that broadcasts to that of
            `input`. Default: 1.

    Returns:
        "none" gives a loss per element; "sum" their sum; "mean" the sum divided by the number of elements, whatever the
        weights are; NaN if there are none. All in `promote(input.dtype, float32)`.

    Raises:
        TypeError: an argument has the wrong dtype or type.
        ValueError: an argument has the wrong shape or value.

    Gradients:
        With respect to `input`, floating `target` and both weights, in forward and reverse mode, to any order; finite
        at logits of ±inf.

    Example:
        >>> import jax.numpy as jnp
        >>> from jxent.torch_compat import binary_cross_entropy_with_logits
        >>> logits, labels = jnp.array([[2.0, -1.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [1.0, 1.0]])
        >>> print(f"{binary_cross_entropy_with_logits(logits, labels, pos_weight=jnp.array([3.0, 1.0])):.4f}")
        0.7717

    References:
        `torch.nn.functional.binary_cross_entropy_with_logits`, `torch.nn.BCEWithLogitsLoss`.

    See also:
        `sigmoid_binary_cross_entropy`, `torch_compat.binary_cross_entropy`.
    """
    fn = "torch_compat.binary_cross_entropy_with_logits"
    reduction = _reduction(fn, reduction, size_average, reduce)
    logits = arguments.as_scores(fn, "input", input)
    labels = arguments.as_binary_labels(fn, "input", logits, target, "target")
    weight = _broadcast(fn, "weight", weight, logits.shape)
    pos_weight = None if pos_weight is None else arguments.as_real(fn, "pos_weight", pos_weight)
    if pos_weight is None or pos_weight.shape in ((), logits.shape[-1:]):
        options = {"sample_weight": weight, "pos_weight": pos_weight}
        return _binary(fn, sigmoid_binary_cross_entropy, logits, labels, reduction, **options)

    # The losses take pos_weight per column of the last axis. Flattened, every element is a column.
    options = {
        "sample_weight": None if weight is None else weight.ravel(),
        "pos_weight": jnp.ravel(_broadcast(fn, "pos_weight", pos_weight, logits.shape)),
    }
    loss = _binary(fn, sigmoid_binary_cross_entropy, logits.ravel(), labels.ravel(), reduction, **options)
    return loss.reshape(logits.shape) if reduction == "none" else loss


def _multiclass(
    fn: str,
    loss: Callable[..., Any],
    input: Any,
    target: Any,
    weight: Any,
    ignore_index: Any,
    reduction: str,
    takes_soft: bool = True,
    **options: Any,
) -> Array:
    scores = arguments.as_scores(fn, "input", input)
    ignored = arguments.as_integer(fn, "ignore_index", ignore_index)
    labels, ignored_as = arguments.as_labels(fn, "target", target, ignored)
    if not takes_soft:
        arguments.check_ids_dtype(fn, "target", labels.dtype, "; torch_compat.cross_entropy takes distributions")
    if not scores.ndim:
        raise ValueError(f"{fn}: input has shape (); expected (C,) or (N, C, ...)")
    axis = arguments.as_class_axis(fn, "input", scores, min(scores.ndim - 1, 1))
    is_soft = jnp.issubdtype(labels.dtype, jnp.floating)
    if not is_soft:
        labels = labels.reshape(()) if scores.ndim == labels.ndim == labels.size == 1 else labels
        _check_ids(fn, target, labels, scores.shape[axis], ignored)
    elif ignored >= 0:
        raise ValueError(f"{fn}: ignore_index goes with class ids, but target is a distribution; got {ignored}")
    options |= {"class_weight": weight, "ignore_index": None if is_soft else ignored_as, "axis": axis}

    if reduction == "none":
        return _call(fn, loss, scores, labels, reduction="none", **options)
    mean = _call(fn, loss, scores, labels, reduction="partial", **options)
    if reduction == "sum":
        return mean.total
    divisor = size_of(arguments.row_shape(scores, axis), mean.total.dtype) if is_soft else mean.weight
    # Without the NaN divisor, smoothing could give inf: its total need not be 0 where the weights are.
    return mean.total / jnp.where(divisor == 0, jnp.nan, divisor)


def _binary(fn: str, loss: Callable[..., Any], scores: Array, labels: Array, reduction: str, **options: Any) -> Array:
    if reduction == "none":
        return _call(fn, loss, scores, labels, reduction="none", **options)
    total = _call(fn, loss, scores, labels, reduction="sum", **options)
    return total / size_of(scores.shape, total.dtype) if reduction == "mean" else total


_WORDS = {
    "logits": "input",
    "log_probs": "input",
    "probs": "input",
    "labels": "target",
    "class_weight": "weight",
    "sample_weight": "weight",
}


def _call(fn: str, loss: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Calls a loss of this package, and rewrites its errors in torch's words."""
    try:
        return loss(*args, **options)
    except (TypeError, ValueError) as error:
        if not str(error).startswith(f"{loss.__name__}: "):
            raise
        words = {loss.__name__: fn, **_WORDS}
        message = re.sub(rf"\b({'|'.join(words)})\b", lambda word: words[word[0]], str(error))
        message = re.sub(r"(?:(?<=mean )|(?<= or ))axis=(\d+)", r"jnp.moveaxis(input, \1, 1)", message)
        raise type(error)(message) from None


def _reduction(fn: str, reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """The `reduction` that torch would use, given its deprecated arguments."""
    if size_average is not None or reduce is not None:
        if reduce is not None and not reduce:
            reduction = "none"
        else:
            reduction = "mean" if size_average is None or size_average else "sum"
        message = f"{fn}: size_average and reduce are deprecated; use reduction={reduction!r}"
        warnings.warn(message, DeprecationWarning, stacklevel=3)
    if not isinstance(reduction, str) or reduction not in ("none", "sum", "mean"):
        raise ValueError(f"{fn}: reduction must be one of 'none', 'sum', 'mean'; got {reduction!r}")
    return reduction


def _broadcast(fn: str, name: str, value: Any, shape: tuple[int, ...]) -> Any:
    """Broadcasts a weight to the shape of the elements; None stays None."""
    if value is None:
        return None
    array = arguments.as_real(fn, name, value)
    trailing = shape[len(shape) - array.ndim :]
    if array.ndim > len(shape) or any(have not in (1, want) for have, want in zip(array.shape, trailing, strict=True)):
        raise ValueError(f"{fn}: {name} has shape {array.shape}; expected one that broadcasts to {shape}")
    return jnp.broadcast_to(array, shape)


def _known(fn: str, name: str, value: Any) -> np.ndarray | None:
    """The values as NumPy; None if they are traced or lie on devices of other processes."""
    arrays = [leaf for leaf in jax.tree.leaves(value) if isinstance(leaf, Array)]
    if any(isinstance(array, Tracer) or not array.is_fully_addressable for array in arrays):
        return None
    return arguments.as_concrete(fn, name, value)


def _check_ids(fn: str, target: Any, labels: Array, num_classes: int, ignored: int) -> None:
    """Checks the original `target`, because `labels` are clipped to 32 bits."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return
    ids = _known(fn, "target", labels if hasattr(target, "__jax_array__") else target)
    if ids is None:
        return
    ids = ids.reshape(labels.shape)
    bad = ((ids < 0) | (ids >= num_classes)) & (ids != ignored)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise IndexError(
            f"{fn}: target is {ids[first]} at {first}; expected an id in [0, {num_classes}), or ignore_index={ignored}"
        )


def _in_unit_interval(fn: str, name: str, values: Array) -> Array:
    """Checks that the values lie in [0, 1]; traced ones get NaN where they do not, and so do their gradients."""
    known = _known(fn, name, values)
    if known is None:
        if not jnp.issubdtype(values.dtype, jnp.floating):
            return values
        return values + jnp.where((values >= 0) & (values <= 1), 0, jnp.nan).astype(values.dtype)
    bad = ~((known >= 0) & (known <= 1))
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{fn}: {name} is {known[first]!s} at {first}; expected numbers in [0, 1]")
    return values
