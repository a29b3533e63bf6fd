"""The least that the machine allows: the logits' bytes once through its memory, or the matrix products alone.

Forward, all large arguments are read once. With the gradient, a pass that reads them and writes an array of the size of
the logits comes after that; the sigmoid's loss needs that pass alone. A row that stays on the chip between its two passes
would be read once less. For `linear`, one matrix product forward and three with the gradients, their [N, V] side written
out or read like any other matrix; into the dtype of its operands or into float32, whichever is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.cases import KINDS, Case
from benchmarks.contenders.base import Contender, Program
from benchmarks.data import Data

Step = tuple[Callable[..., Any], Sequence[Array]]


def read(*arrays: Array) -> list[Array]:
    return [jnp.sum(array, dtype=jnp.float32) for array in arrays]


def copy(first: Array, *others: Array) -> Array:
    """Reads them all and writes something as large as the first, the logits."""
    return sum(others, start=first * 2)


def logits(dtype: str, hidden: Array, kernel: Array) -> Array:
    return jnp.matmul(hidden, kernel, preferred_element_type=dtype)


def gradient_by_hidden(dtype: str, d_logits: Array, kernel: Array) -> Array:
    return jnp.matmul(d_logits, kernel.T, preferred_element_type=dtype)


def gradient_by_kernel(dtype: str, hidden: Array, d_logits: Array) -> Array:
    return jnp.matmul(hidden.T, d_logits, preferred_element_type=dtype)


def linear_steps(case: Case, data: Data) -> list[Step]:
    hidden, kernel = data["hidden"], data["kernel"]
    if case.mode == "forward":
        products = [(logits, (hidden, kernel))]
    else:
        d_logits = jax.random.normal(jax.random.key(0, impl="rbg"), (len(hidden), case.num_classes), hidden.dtype)
        products = [
            (logits, (hidden, kernel)),
            (gradient_by_hidden, (d_logits, kernel)),
            (gradient_by_kernel, (hidden, d_logits)),
        ]
    dtypes = dict.fromkeys((case.dtype, "float32"))
    return [
        min((compiled(partial(product, dtype), arguments) for dtype in dtypes), key=seconds_of)
        for product, arguments in products
    ]


def logits_steps(case: Case, data: Data) -> list[Step]:
    large = [data["logits"], *([data["labels"]] if case.kind in ("soft", "multilabel") else [])]
    passes = [read] if case.mode == "forward" else [copy] if case.kind == "multilabel" else [read, copy]
    # In programs of their own: together the passes could share what they read.
    return [compiled(one_pass, large) for one_pass in passes]


def compiled(function: Callable[..., Any], arguments: Sequence[Array]) -> Step:
    return jax.jit(function).lower(*arguments).compile(), arguments


def seconds_of(step: Step) -> float:
    """The least of three calls."""
    program, arguments = step
    jax.block_until_ready(program(*arguments))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def prepare(case: Case, data: Data) -> Program:
    steps = (linear_steps if case.is_linear else logits_steps)(case, data)

    def call() -> None:
        for program, arguments in steps:
            jax.block_until_ready(program(*arguments))

    return Program(call, outputs=lambda result: (float("nan"), {}), output_bytes=0)


CONTENDERS = [Contender("floor", prepare, kinds=KINDS, role="floor")]
