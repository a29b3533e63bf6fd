"""Rows of a student's and a teacher's logits → the divergence of the two softmaxes, in a form that does not cancel.

With t and s the probabilities of teacher and student, r = log(s/t) of each class, and

    φ(p, q) = q − p + p·log(p/q) ≥ 0        = p·f(log(q/p)),        f(r) = expm1(r) − r

every divergence here is a sum of φ over the classes, since what φ adds to p·log(p/q) sums to 0:

    KL(t‖s) = Σ φ(t, s)        KL(s‖t) = Σ φ(s, t)        JSD_β = Σ β·φ(t, m) + (1−β)·φ(s, m),    m = β·t + (1−β)·s

Near t = s, Σ t·log(t/s) is a sum of terms of first order and both signs, which cancel to second order. No φ is negative, and
an error ε of log z, which shifts every r, adds ε²/2 to the sum. r itself comes from the difference of the logits.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jxent._core.dtypes import compute_dtype
from jxent._core.rows.rule import Config, Rows, softmax_rows
from jxent._core.rows.state import Wanted
from jxent._core.shards import VocabAxis, summed
from jxent._core.silence import scaled_logits


def divergence(
    axis: int,
    vocab_axis_name: VocabAxis,
    beta: float,
    student: Array,
    teacher: Array,
    inverse_temperature: Array | None,
    where: Array | None,
) -> Array:
    """Of each row; KL(t‖s) for a β of 0, KL(s‖t) for 1, else JSD_β. Differentiable by the student and the temperature.

    In the compute dtype of the student. A teacher with another one is copied to it.
    """
    teacher, dtype = lax.stop_gradient(teacher), compute_dtype(student.dtype)
    teacher = teacher if compute_dtype(teacher.dtype) == dtype else teacher.astype(dtype)
    config = Config(axis, Wanted(), vocab_axis_name)
    of_student, of_teacher = (
        softmax_rows(config, scaled_logits(x, inverse_temperature), None, None, None, where) for x in (student, teacher)
    )
    total = jax.checkpoint(partial(_total, axis, beta), prevent_cse=False)
    (row,) = summed([total(student, teacher, inverse_temperature, where, of_student, of_teacher)], vocab_axis_name)
    # Where one has no class at all the other may have been selected. A factor, since a NaN that is selected has no gradient.
    row = row * jnp.where(jnp.isnan(of_student.excess + of_teacher.excess), jnp.nan, 1)
    return row if where is None else jnp.where(where, row, 0)


def _total(
    axis: int,
    beta: float,
    student: Array,
    teacher: Array,
    scale: Array | None,
    where: Array | None,
    of_student: Rows,
    of_teacher: Rows,
) -> Array:
    def along(of_row: Any) -> Array:
        return jnp.expand_dims(of_row, axis)

    def counted(values: Array) -> Array:
        values = values.astype(of_student.excess.dtype)
        return values if where is None else jnp.where(along(where), values, 0)

    def probability(logits: Array, is_dead: Array, rows: Rows) -> Array:
        d = jnp.where(is_dead, 0, logits) * factor - along(jnp.where(jnp.isfinite(rows.row_max), rows.row_max, 0))
        return jnp.where(is_dead, 0, jnp.exp(d)) / (1 + along(rows.excess))

    factor = 1 if scale is None else scale
    x, y = counted(student), counted(teacher)
    x_dead, y_dead = x == -jnp.inf, y == -jnp.inf
    s, t = probability(x, x_dead, of_student), probability(y, y_dead, of_teacher)
    gap = of_student.row_max - of_teacher.row_max + jnp.log1p(of_student.excess) - jnp.log1p(of_teacher.excess)
    gap = gap if where is None else jnp.where(where, gap, 0)
    both_live = ~(x_dead | y_dead)
    r = jnp.where(both_live, jnp.where(both_live, x - y, 0) * factor - along(gap), 0)
    return jnp.sum(_of_class(beta, s, t, r, x_dead, y_dead), axis)


def _of_class(beta: float, s: Array, t: Array, r: Array, s_is_dead: Array, t_is_dead: Array) -> Array:
    """`r` is 0 where either class is dead."""
    if beta == 0:
        return jnp.where(t_is_dead, s, jnp.where(s_is_dead, _infinite(t), _phi(t, s, r)))
    if beta == 1:
        return jnp.where(s_is_dead, t, jnp.where(t_is_dead, _infinite(s), _phi(s, t, -r)))
    m = beta * t + (1 - beta) * s
    # log(m/t) and log(m/s), each from where its exponential does not overflow.
    low, high = jnp.minimum(r, 1), jnp.maximum(r, -1)
    m_over_t, m_over_s = jnp.log1p((1 - beta) * jnp.expm1(low)), jnp.log1p(beta * jnp.expm1(-high))
    m_over_t, m_over_s = jnp.where(r < 1, m_over_t, m_over_s + r), jnp.where(r > -1, m_over_s, m_over_t - r)
    both = beta * _phi(t, m, m_over_t) + (1 - beta) * _phi(s, m, m_over_s)
    of_one = -(1 - beta) * math.log1p(-beta) * s, -beta * math.log(beta) * t
    return jnp.where(t_is_dead, of_one[0], jnp.where(s_is_dead, of_one[1], both))


def _infinite(p: Array) -> Array:
    """What the other does not have at all."""
    return jnp.where(p == 0, 0, p + jnp.inf)


def _phi(p: Array, q: Array, r: Array) -> Array:
    """φ(p, q), where r = log(q/p)."""
    return jnp.where(r < 1, p * _excess_of_exp(jnp.minimum(r, 1)), q - p - p * r)


@jax.custom_jvp
def _excess_of_exp(r: Array) -> Array:
    """Expm1(r) − r. Near 0 by its series, r²·Σ rᵏ/(k+2)!"""
    small = jnp.where(jnp.abs(r) < 0.1, r, 0)
    series = jnp.zeros_like(r)
    for k in reversed(range(9)):
        series = series * small + 1 / math.factorial(k + 2)
    return jnp.where(jnp.abs(r) < 0.1, small * small * series, jnp.expm1(r) - r)


def _excess_of_exp_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (r,), (d_r,) = primals, tangents
    return _excess_of_exp(r), jnp.expm1(r) * d_r


_excess_of_exp.defjvp(_excess_of_exp_jvp)
