"""What goes through the fused loss: arrays by what they belong to, and what is known of them when they are traced."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from jxent._core.linear.meshes import Placement
from jxent._core.shards import VocabAxis
from jxent._core.targets import NO_CLASS


class PerRow(NamedTuple):
    """What belongs to the rows: hidden states `[N, D]`, of `Targets` what has a row axis, None as there, and the arguments
    `[N, …]` of a `row_loss`.
    """

    hidden: Array
    labels: Array
    label_weight: Array | None
    where: Array | None
    row_args: tuple[Array, ...] = ()
    entries: Array | None = None
    teacher_hidden: Array | None = None


class Shared(NamedTuple):
    """What all rows share: the kernel, `[V]` numbers and scalars in the compute dtype. All but the kernel may be None."""

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
    """What is known when the program is traced.

    Attributes:
        chunk_size: the rows of a chunk, or None.
        transpose_kernel: whether the kernel is `[V, D]`.
        precision: of the matmuls, as `jax.lax.dot_general` takes it.
        vocab_axis_name: the axes of a `shard_map` that split V, or None.
        with_aux: whether a `LinearAux` is asked for; else it is None.
        with_entropy: whether the entropy of each row is.
        row_loss: what makes the loss of a row's log-probability, entropy and `row_args`; None for cross entropy.
        beta: of a divergence from the teacher, which is then the loss; else None.
        teacher_transpose_kernel: whether the teacher's kernel is `[V, E]`.
        no_class: as in `Targets`.
        placement: how Explicit axes of a mesh split the arrays, or None for no such axes.
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
    """Of each row.

    Attributes:
        loss: without its weight.
        entropy: −Σ p log p, 0 where masked; None where it is not asked for.
        aux: None where it is not asked for.
        mass: Σ_c w_c q_c of a distribution, 0 where masked; None for ids.
    """

    loss: Array
    entropy: Array | None
    aux: LinearAux | None
    mass: Array | None


class Cotangents(NamedTuple):
    """Of each row, or None where there is none."""

    loss: Array | None = None
    entropy: Array | None = None
    log_z: Array | None = None


class Gradients(NamedTuple):
    """None where they are not asked for."""

    rows: PerRow
    shared: Shared


def mapped(f: Callable[..., Any], arguments: Any, *others: Any) -> Any:
    """`f` of each field that is not None, and of each entry of one that is a tuple."""

    def of(field: Any, *rest: Any) -> Any:
        if field is None:
            return None
        return tuple(map(of, field, *rest)) if isinstance(field, tuple) else f(field, *rest)

    return type(arguments)(*map(of, arguments, *others))
