"""Multiclass losses from logits."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jxent._core import arguments
from jxent._core.dtypes import compute_dtype
from jxent._core.softmax_rows import Rows, predicted_ids, softmax_rows
from jxent._core.targets import Targets, make_targets
from jxent.reduction import reduce_rows


class CrossEntropyAux(NamedTuple):
    """What a loss learned about each row on the way: for metrics only, cut off from differentiation.

    A pytree of two arrays of the row shape, under every reduction.

    Attributes:
        log_z: the log of the softmax's normaliser, in the result dtype; 0 in masked rows.
        predicted: int32, the class with the highest logit, the lowest such id on ties; −1 where the row is masked, holds
            NaN or has no logit above −inf.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
        >>> loss, aux = jxent.softmax_cross_entropy(logits, labels, reduction="mean", return_aux=True)
        >>> print(aux.predicted == labels)
        [ True False]

    See also:
        `softmax_cross_entropy`.
    """

    log_z: Array
    predicted: Array


def softmax_cross_entropy(
    logits: Any,
    labels: Any,
    *,
    class_weight: Any = None,
    sample_weight: Any = None,
    where: Any = None,
    ignore_index: int | None = None,
    label_smoothing: Any = 0.0,
    z_loss: Any = 0.0,
    axis: int = -1,
    reduction: str = "none",
    vocab_axis_name: Any = None,
    return_aux: bool = False,
) -> Any:
    """Cross entropy of a softmax over logits, against class ids or distributions.

    With V classes, `p = softmax(logits)` and `q` the target distribution of a row, each row's loss is

        −Σ_c w_c · q_c · log p_c  +  z_loss · log_z²,        log_z = log Σ_c exp(logits_c).

    It is formed without cancellation: the loss and the gradient of a confident row keep their digits down to 1e-38,
    where a plain logsumexp gives 0. A logit of −inf is a class that does not exist: its probability and gradient are 0.

    Args:
        logits: `[..., V, ...]` with V at `axis`, any floating dtype; every other axis is a row axis, and there may be
            none. It alone sets the result dtype, `promote(logits.dtype, float32)`; bfloat16 and float16 logits are
            never copied whole to float32.
        labels: class ids, integers of the row shape; or a distribution per row, floating, with the shape of `logits`.
            Never broadcast. An id outside [0, V) in a row that counts makes its loss and gradient NaN. Distributions
            are neither normalised nor checked.
        class_weight: `[V]`, the weight w_c of each class. Default: 1.
        sample_weight: the weight of each row; the row shape, or its rank with axes of size 1. Default: 1.
        where: bool, shaped like `sample_weight`. Rows that are False are exactly 0 in value and in every gradient,
            whatever they hold; a sample weight of 0 does not promise that (0·NaN is NaN). Default: all rows count.
        ignore_index: a static integer; rows with this id are masked, as by `where`. Not for distributions.
        label_smoothing: ε in [0, 1], a number or a traced scalar (then unchecked): q ← (1−ε)·q + ε/V', with V' the
            number of logits above −inf in the row.
        z_loss: the factor of log_z², a number or a traced scalar. Class weights do not touch this term.
        axis: the class axis.
        reduction: "none" for a loss per row, "sum", "mean" or "partial" (see Returns).
        vocab_axis_name: inside `jax.shard_map`, the name (or a tuple of names) of the mesh axes that split the classes.
            `logits`, distributions and `class_weight` are then one device's part, device i holding the classes from
            i·V on; ids, V' and everything returned are of all devices. Pad the classes with logits of −inf if need be.
            Rows that other axes split are this device's alone: add them up by `Mean.psum`. Default: each device has all
            classes. Under `jit` alone, arrays may be split in any way without this.
        return_aux: whether to return a `CrossEntropyAux` too.

    Returns:
        By `reduction`, with m, s, the mask and the sample weight of a row: "none" the row shape, m·s·loss; "sum" their
        sum; "mean" that divided by Σ m·s·v, where v is the class weight of the id, or Σ_c w_c q_c of the distribution
        (0 where the sum of weights is exactly 0); "partial" the undivided pair, a `Mean`. All in the result dtype. With
        `return_aux`, a pair of this and a `CrossEntropyAux`.

    Raises:
        TypeError: a dtype or a kind of argument does not fit (integer logits, bool labels, a float mask, a traced
            `ignore_index`).
        ValueError: a shape or an option does not fit (labels of shape (N, 1), one-hot integers, an unknown
            `reduction`, smoothing outside [0, 1], `ignore_index` with distributions); or `vocab_axis_name` is no axis
            that splits `logits`, or `check_vma` of the `shard_map` is off (gradients would be wrong).

    Gradients:
        By `logits`, distributions, `class_weight`, `sample_weight`, `label_smoothing` and `z_loss`, each in its own
        dtype, in both directions and any order. Reverse mode keeps the arguments and O(rows) numbers. Exactly 0 in
        masked rows and at logits of −inf; `p − onehot` (finite) where the loss is inf because the label's logit is
        −inf; NaN in rows with a bad id, a NaN, a +inf or no logit above −inf. float16 gradients of a mean underflow
        at V of some ten thousands, as everybody's do: scale the loss.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jxent
        >>> logits = jnp.array([[20.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
        >>> labels = jnp.array([0, -100])
        >>> loss = jxent.softmax_cross_entropy(logits, labels, ignore_index=-100)
        >>> print([f"{row:.3e}" for row in loss])
        ['4.122e-09', '0.000e+00']
        >>> grad = jax.grad(lambda x: jxent.softmax_cross_entropy(x, labels, ignore_index=-100, reduction="mean"))
        >>> print([f"{element:.3e}" for element in grad(logits)[0]])
        ['-4.122e-09', '2.061e-09', '2.061e-09']

    References:
        `torch.nn.functional.cross_entropy` (mean over the weights of the labels, ε/V smoothing);
        `optax.softmax_cross_entropy_with_integer_labels`; Szegedy et al. 2016, "Rethinking the Inception
        Architecture", section 7 (label smoothing); Chowdhery et al. 2022, "PaLM", section 5 (z-loss).

    See also:
        `cross_entropy_from_log_probs`, `sigmoid_binary_cross_entropy`, `Mean`.
    """
    fn = "softmax_cross_entropy"
    logits = arguments.as_scores(fn, "logits", logits)
    axis = arguments.as_class_axis(fn, "logits", logits, axis)
    vocab_axis_name = arguments.as_vocab_axis(fn, "logits", logits, vocab_axis_name)
    z_factor = arguments.as_hyper_parameter(fn, "z_loss", z_loss, compute_dtype(logits.dtype))
    arguments.check_reduction(fn, reduction)
    arguments.check_flag(fn, "return_aux", return_aux)

    targets = make_targets(
        fn,
        "logits",
        logits,
        labels,
        class_weight=class_weight,
        sample_weight=sample_weight,
        where=where,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        axis=axis,
        vocab_axis_name=vocab_axis_name,
    )
    rows = _rows(logits, targets)

    spread_loss = None if rows.spread is None else rows.spread.loss
    loss = targets.row_loss(rows.label.loss, spread_loss, rows.live_classes)
    if z_factor is not None:
        loss = loss + z_factor * jnp.square(rows.log_z)

    result = reduce_rows(loss, targets.row_weight(rows.label.mass), targets.sample_weight, targets.where, reduction)
    return (result, _aux(logits, rows, targets)) if return_aux else result


def _rows(logits: Array, targets: Targets) -> Rows:
    smooth = targets.smoothing is not None
    where, axis, vocab_axis_name = targets.where, targets.axis, targets.vocab_axis_name
    return softmax_rows(logits, targets.labels, targets.class_weight, where, axis, smooth, vocab_axis_name)


def _aux(logits: Array, rows: Rows, targets: Targets) -> CrossEntropyAux:
    predicted = predicted_ids(logits, rows, targets.where, targets.axis, targets.vocab_axis_name)
    return CrossEntropyAux(lax.stop_gradient(rows.log_z), predicted)
