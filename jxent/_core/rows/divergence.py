"""The divergence of a student's softmax from a teacher's, row by row, in a form that does not cancel.

Let t and s be the probabilities of teacher and student, r = log(s/t) for each class, and

    φ(p, q) = q − p + p·log(p/q) ≥ 0        = p·f(log(q/p)),        f(r) = expm1(r) − r

Every divergence here is a sum of φ over the classes, since the q − p that φ adds to p·log(p/q) sums to 0:

    KL(t‖s) = Σ φ(t, s)        KL(s‖t) = Σ φ(s, t)        JSD_β = Σ β·φ(t, m) + (1−β)·φ(s, m),    m = β·t + (1−β)·s

Near t = s, the terms of Σ t·log(t/s) are of first order and both signs, and cancel to second order. φ is never negative,
and an error ε in log z, which shifts every r, adds only ε²/2 to the sum. r comes from the difference of the logits.

The slopes with respect to the logits x of the student and y of the teacher (the temperature changes both) are

    KL(t‖s):  ∂/∂x = s − t = t·expm1(r)             ∂/∂y = t·(log(t/s) − KL(t‖s))
    KL(s‖t):  ∂/∂x = s·(log(s/t) − KL(s‖t))         ∂/∂y = t − s
    JSD_β:    ∂/∂x = (1−β)·s·(log(s/m) − KL(s‖m))   ∂/∂y = β·t·(log(t/m) − KL(t‖m))

In these, ε is of first order. The KL divergences here are therefore the plain sums Σ p·log(p/q), which contain the same ε,
so that it cancels; and from s − t, whose log has no partner, s·ε is subtracted: the plain sum differs from Σ φ by ε.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jxent._core.dtypes import compute_dtype
from jxent._core.rows import rule
from jxent._core.rows.rule import Rows, softmax_rows
from jxent._core.rows.state import Wanted
from jxent._core.shards import VocabAxis, summed
from jxent._core.silence import scaled_logits


class Config(NamedTuple):
    """The class axis, the mesh axes of a `shard_map` that split it, and β."""

    axis: int
    vocab_axis_name: VocabAxis
    beta: float


class Inputs(NamedTuple):
    """The logits of both, `1 / T` or None, the mask or None, and what `softmax_rows` makes of both with that scale."""

    student: Array
    teacher: Array
    scale: Array | None
    where: Array | None
    of_student: Rows
    of_teacher: Rows


def divergence(
    axis: int,
    vocab_axis_name: VocabAxis,
    beta: float,
    student: Array,
    teacher: Array,
    inverse_temperature: Array | None,
    where: Array | None,
) -> Array:
    """The divergence of each row: KL(t‖s) for β = 0, KL(s‖t) for 1, else JSD_β; in the compute dtype of the student.

    Differentiable with respect to the student and the temperature. A teacher of another compute dtype is copied to it.
    """
    teacher, dtype = lax.stop_gradient(teacher), compute_dtype(student.dtype)
    teacher = teacher if compute_dtype(teacher.dtype) == dtype else teacher.astype(dtype)
    config = rule.Config(axis, Wanted(), vocab_axis_name)
    of_student, of_teacher = (
        softmax_rows(config, scaled_logits(x, inverse_temperature), None, None, None, where) for x in (student, teacher)
    )
    inputs = Inputs(student, teacher, inverse_temperature, where, of_student, of_teacher)
    row, *_ = _row(Config(axis, vocab_axis_name, beta), inputs)
    # A row without any class is NaN, whatever the other one has. A factor, since a selected NaN would have no gradient.
    row = row * jnp.where(jnp.isnan(of_student.excess + of_teacher.excess), jnp.nan, 1)
    return row if where is None else jnp.where(where, row, 0)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _row(config: Config, inputs: Inputs) -> tuple[Array, ...]:
    """The divergence, and for a KL divergence Σ p·log(p/q) as it stands, with what is infinite in it as a number."""
    beta, classes = config.beta, _classes(config, inputs)
    terms = [_divergence_of(beta, classes)]
    if beta in {0, 1}:
        (_, of_s, of_t), (m_over_s, m_over_t) = classes, _log_ratios(beta, classes)
        terms.append(of_s.p * _finite(-m_over_s) if beta == 1 else of_t.p * _finite(-m_over_t))
    return tuple(summed([jnp.sum(term, config.axis) for term in terms], config.vocab_axis_name))


# The slopes are total: they include what the tangents of the two `Rows` would contribute. The barriers of `prevent_cse`
# stop XLA for GPU from storing both softmaxes between the sums and the slopes, as two float32 arrays.
def _row_jvp(config: Config, primals: Any, tangents: Any) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    (inputs,), (d_inputs,) = primals, tangents
    sums = _row(config, inputs)
    perturbed = (None if isinstance(d, SymbolicZero) else d for d in (d_inputs.student, d_inputs.scale))
    d_row = jax.checkpoint(partial(_tangent, config), prevent_cse=True)(sums, inputs, *perturbed)
    return sums, (d_row,) * len(sums)


_row.defjvp(_row_jvp, symbolic_zeros=True)


def _tangent(
    config: Config, sums: tuple[Array, ...], inputs: Inputs, d_student: Array | None, d_scale: Array | None
) -> Array:
    """Linear in the last two, for which None is zero."""
    axis, vocab_axis_name, beta = config
    scale, classes = inputs.scale, _classes(config, inputs)
    r, of_s, of_t = classes
    m_over_s, m_over_t = _log_ratios(beta, classes)
    row, *expected = (jnp.expand_dims(of_row, axis) for of_row in sums)

    def slope_of(of: _Class, log_ratio: Array) -> Array:
        surprise = _finite(-log_ratio)
        if expected:
            return of.p * (surprise - expected[0])
        (kl,) = summed([jnp.sum(of.p * surprise, axis)], vocab_axis_name)
        return of.p * (surprise - jnp.expand_dims(kl, axis))

    def difference() -> Array:
        """The slope s − t, less the error in r, by which `expected` differs from the divergence."""
        gap = jnp.where(r < 1, of_t.p * jnp.expm1(jnp.minimum(r, 1)), of_s.p - of_t.p)
        gap = jnp.where(of_t.is_dead, of_s.p, jnp.where(of_s.is_dead, -of_t.p, gap))
        error = expected[0] - row if beta == 1 else row - expected[0]
        return gap - of_s.p * jnp.where(jnp.isfinite(row), error, 0)

    slope = difference() if beta == 0 else (1 - beta or 1) * slope_of(of_s, m_over_s)
    slope = jnp.where(of_s.is_dead, 0, slope)
    terms = jnp.zeros_like(slope)
    if d_student is not None:
        d_x = d_student.astype(row.dtype)
        terms = slope * (d_x if scale is None else scale * d_x)
    if d_scale is not None:
        of_teacher = -difference() if beta == 1 else (beta or 1) * slope_of(of_t, m_over_t)
        # The tangent meets the logits first: their product with an infinite row's slope may overflow.
        terms = terms + slope * (of_s.logits * d_scale) + of_teacher * (of_t.logits * d_scale)
    (d_row,) = summed([jnp.sum(terms, axis)], vocab_axis_name)
    return d_row


class _Class(NamedTuple):
    """For each class: whether it is dead, its logit before the temperature (0 where dead), and its probability."""

    is_dead: Array
    logits: Array
    p: Array


def _classes(config: Config, inputs: Inputs) -> tuple[Array, _Class, _Class]:
    """The log-ratio r (0 where either class is dead) and the classes of both. All classes of a masked row are dead."""
    student, teacher, scale, where, of_student, of_teacher = inputs
    factor = 1 if scale is None else scale

    def along(of_row: Any) -> Array:
        return jnp.expand_dims(of_row, config.axis)

    def of(logits: Array, rows: Rows) -> _Class:
        x = logits.astype(rows.excess.dtype)
        x = x if where is None else jnp.where(along(where), x, -jnp.inf)
        is_dead = x == -jnp.inf
        x = jnp.where(is_dead, 0, x)
        d = x * factor - along(jnp.where(jnp.isfinite(rows.row_max), rows.row_max, 0))
        return _Class(is_dead, x, jnp.where(is_dead, 0, jnp.exp(jnp.where(is_dead, 0, d))) / (1 + along(rows.excess)))

    s, t = of(student, of_student), of(teacher, of_teacher)
    gap = of_student.row_max - of_teacher.row_max + jnp.log1p(of_student.excess) - jnp.log1p(of_teacher.excess)
    gap = gap if where is None else jnp.where(where, gap, 0)
    r = jnp.where(s.is_dead | t.is_dead, 0, (s.logits - t.logits) * factor - along(gap))
    return r, s, t


def _divergence_of(beta: float, classes: tuple[Array, _Class, _Class]) -> Array:
    """What each class adds to the divergence."""
    r, (s_is_dead, _, s), (t_is_dead, _, t) = classes
    if beta == 0:
        return jnp.where(t_is_dead, s, jnp.where(s_is_dead, _infinite(t), _phi(t, s, r)))
    if beta == 1:
        return jnp.where(s_is_dead, t, jnp.where(t_is_dead, _infinite(s), _phi(s, t, -r)))
    m = beta * t + (1 - beta) * s
    m_over_s, m_over_t = _log_ratios(beta, classes)
    both = beta * _phi(t, m, m_over_t) + (1 - beta) * _phi(s, m, m_over_s)
    # Where one of the two is dead, φ of the other; the general form would multiply 0 by inf.
    of_one = -(1 - beta) * m_over_s * s, -beta * m_over_t * t
    return jnp.where(t_is_dead, of_one[0], jnp.where(s_is_dead, of_one[1], both))


def _log_ratios(beta: float, classes: tuple[Array, _Class, _Class]) -> tuple[Array, Array]:
    """log(m/s) and log(m/t), each in the form whose exponential does not overflow; 0 for a dead class."""
    r, of_s, of_t = classes
    only_s = jnp.where(of_s.is_dead, 0, math.log1p(-beta) if beta < 1 else -jnp.inf)
    only_t = jnp.where(of_t.is_dead, 0, math.log(beta) if beta else -jnp.inf)
    if beta in {0, 1}:
        m_over_s, m_over_t = -beta * r, (1 - beta) * r
    else:
        low, high = jnp.minimum(r, 1), jnp.maximum(r, -1)
        m_over_t, m_over_s = jnp.log1p((1 - beta) * jnp.expm1(low)), jnp.log1p(beta * jnp.expm1(-high))
        # m is at least β·t and (1−β)·s, also where β is too close to 0 or 1 for the dtype.
        m_over_t, m_over_s = jnp.maximum(m_over_t, math.log(beta)), jnp.maximum(m_over_s, math.log1p(-beta))
        m_over_t, m_over_s = jnp.where(r < 1, m_over_t, m_over_s + r), jnp.where(r > -1, m_over_s, m_over_t - r)
    return jnp.where(of_t.is_dead, only_s, m_over_s), jnp.where(of_s.is_dead, only_t, m_over_t)


def _finite(x: Array) -> Array:
    """At most the largest number, so that in a slope a cotangent of 0 stays 0."""
    return jnp.minimum(x, jnp.finfo(x.dtype).max)


def _infinite(p: Array) -> Array:
    """The divergence of probability p from a class that the other does not have."""
    return jnp.where(p == 0, 0, jnp.inf)


def _phi(p: Array, q: Array, r: Array) -> Array:
    """φ(p, q), where r = log(q/p)."""
    return jnp.where(r < 1, p * _excess_of_exp(jnp.minimum(r, 1)), q - p - p * r)


def _excess_of_exp(r: Array) -> Array:
    """Expm1(r) − r. Near 0 by its series, r²·Σ rᵏ/(k+2)!"""
    small = jnp.where(jnp.abs(r) < 0.1, r, 0)
    series = jnp.zeros_like(r)
    for k in reversed(range(9)):
        series = series * small + 1 / math.factorial(k + 2)
    return jnp.where(jnp.abs(r) < 0.1, small * small * series, jnp.expm1(r) - r)
