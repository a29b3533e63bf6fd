"""Records of the fused loss: its arrays, grouped by what they belong to, and its static options."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from jxent._core.linear.meshes import Placement
from jxent._core.shards import VocabAxis
from jxent._core.targets import NO_CLASS


class PerRow(NamedTuple):
    """Arrays with a row axis: hidden states `[N, D]`, those of `Targets` (or None, as there), and the `row_args` of a
    row loss, `[N, …]`.
    """

    hidden: Array
    labels: Array
    label_weight: Array | None
    where: Array | None
    row_args: tuple[Array, ...] = ()
    entries: Array | None = None
    teacher_hidden: Array | None = None


class Shared(NamedTuple):
    """What all rows share: the kernel, and `[V]` arrays and scalars in the compute dtype, which may be None."""

    kernel: Array
    bias: Array | None
    logit_scale: Array | None
    logit_softcap: Array | None
    class_weight: Array | None
    smoothing: Array | None
    z_loss: Array | None
    inverse_temperature: Array | None = None
    teacher_kernel: Array | None = None
    teacher_bias: Array | None = None


class Config(NamedTuple):
    """The static options.

    Attributes:
        chunk_size: the rows of a chunk, or None.
        transpose_kernel: whether the kernel is `[V, D]`.
        precision: of the matmuls, as `jax.lax.dot_general` takes it.
        vocab_axis_name: the axes of a `shard_map` that split V, or None.
        with_aux: whether to make a `LinearAux`, which is None otherwise.
        with_entropy: whether to make the entropy of each row.
        row_loss: computes a row's loss from its log-probability, entropy and `row_args`; None for cross entropy.
        beta: makes the loss a divergence from the teacher; else None.
        teacher_transpose_kernel: whether the teacher's kernel is `[V, E]`.
        no_class: as in `Targets`.
        placement: how Explicit axes of a mesh split the arrays; None without such axes.
    """

    chunk_size: int | None
    transpose_kernel: bool
    precision: Any
    vocab_axis_name: VocabAxis
    with_aux: bool = False
    with_entropy: bool = False
    row_loss: Callable[..., Array] | None = None
    beta: float | None = None
    teacher_transpose_kernel: bool = False
    no_class: int = NO_CLASS
    placement: Placement | None = None

    def within(self) -> "Config":
        """The options on a single device."""
        if self.placement is None:
            return self
        vocab = (self.vocab_axis_name or ()) + self.placement.class_axes
        return self._replace(vocab_axis_name=vocab or None, placement=None)


class LinearAux(NamedTuple):
    """Per row: log_z, differentiable; the class with the highest logit; −log p of the label."""

    log_z: Array
    predicted: Array
    nll: Array


class Evaluated(NamedTuple):
    """The evaluated rows.

    Attributes:
        loss: without its weight.
        entropy: −Σ p log p, 0 in masked rows; None if not requested.
        aux: None if not requested.
        mass: Σ_c w_c q_c of a distribution, 0 in masked rows; None for ids.
    """

    loss: Array
    entropy: Array | None
    aux: LinearAux | None
    mass: Array | None


class Cotangents(NamedTuple):
    """One cotangent per row, or None if there is none."""

    loss: Array | None = None
    entropy: Array | None = None
    log_z: Array | None = None


class Gradients(NamedTuple):
    """None for gradients that are not requested."""

    per_row: PerRow
    shared: Shared


def mapped(f: Callable[..., Any], arguments: Any, *more: Any) -> Any:
    """Applies `f` to each field that is not None, and to each entry of a field that is a tuple."""

    def apply(field: Any, *rest: Any) -> Any:
        if field is None:
            return None
        return tuple(map(apply, field, *rest)) if isinstance(field, tuple) else f(field, *rest)

    return type(arguments)(*map(apply, arguments, *more))
