"""The least that the machine allows: the logits' bytes once through its memory, or the matrix products alone.

Forward, all large arguments are read once. With the gradient, a pass that reads them and writes an array of the size of
the logits comes after that; the sigmoid's loss needs that pass alone. A row that stays on the chip between its two passes
would be read once less. For `linear`, one matrix product forward and three with the gradients, their [N, V] side written
out or read like any other matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.cases import Case
from benchmarks.contenders.base import Contender, Program
from benchmarks.data import Data

Step = tuple[Callable[..., Any], Sequence[Array]]


def read(*arrays: Array) -> list[Array]:
    return [jnp.sum(array, dtype=jnp.float32) for array in arrays]


def copy(logits: Array, *others: Array) -> Array:
    """Reads them all and writes something as large as the logits."""
    return sum(others, start=logits * 2)


def gradient_by_hidden(d_logits: Array, kernel: Array) -> Array:
    return d_logits @ kernel.T


def gradient_by_kernel(hidden: Array, d_logits: Array) -> Array:
    return hidden.T @ d_logits


def linear_steps(case: Case, data: Data) -> list[Step]:
    hidden, kernel = data["hidden"], data["kernel"]
    if case.mode == "forward":
        return [(jnp.matmul, (hidden, kernel))]
    d_logits = jax.random.normal(jax.random.key(0, impl="rbg"), (len(hidden), case.num_classes), hidden.dtype)
    return [
        (jnp.matmul, (hidden, kernel)),
        (gradient_by_hidden, (d_logits, kernel)),
        (gradient_by_kernel, (hidden, d_logits)),
    ]


def logits_steps(case: Case, data: Data) -> list[Step]:
    large = [data["logits"], *([data["labels"]] if case.kind in ("soft", "multilabel") else [])]
    if case.mode == "forward":
        return [(read, large)]
    return [(copy, large)] if case.kind == "multilabel" else [(read, large), (copy, large)]


def prepare(case: Case, data: Data) -> Program:
    steps = (linear_steps if case.kind == "linear" else logits_steps)(case, data)
    # Apart: together in one program, the passes could share what they read.
    compiled = [(jax.jit(step).lower(*arguments).compile(), arguments) for step, arguments in steps]

    def call() -> None:
        for step, arguments in compiled:
            jax.block_until_ready(step(*arguments))

    return Program(call, outputs=lambda result: (float("nan"), {}), output_bytes=0)


CONTENDERS = [Contender("floor", prepare, role="floor")]
