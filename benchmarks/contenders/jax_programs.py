"""A loss written in JAX, compiled ahead of time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array

from benchmarks.cases import Case
from benchmarks.contenders.base import Contender, Program
from benchmarks.data import Data

Loss = Callable[[Data], Array]


def jax_contender(name: str, loss_of: Callable[[Case], Loss], **fields: Any) -> Contender:
    """A contender from a function that makes, of a case, a function of its data that returns the mean loss."""
    return Contender(name, partial(prepare, loss_of), **fields)


def prepare(loss_of: Callable[[Case], Loss], case: Case, data: Data) -> Program:
    loss = loss_of(case)
    by = {name: data[name] for name in case.differentiated}
    rest = {name: array for name, array in data.items() if name not in by}

    def loss_by(by: Data, rest: Data) -> Array:
        return loss({**by, **rest})

    start = time.perf_counter()
    function = jax.value_and_grad(loss_by) if case.mode == "grad" else loss_by
    compiled = jax.jit(function).lower(by, rest).compile()
    seconds = time.perf_counter() - start
    analysis = compiled.memory_analysis()

    return Program(
        call=lambda: jax.block_until_ready(compiled(by, rest)),
        outputs=partial(outputs, case),
        output_bytes=tree_bytes(jax.eval_shape(function, by, rest)),
        compile_seconds=seconds,
        temp_bytes=None if analysis is None else analysis.temp_size_in_bytes,
        residual_bytes=residual_bytes(loss_by, by, rest) if case.mode == "grad" else None,
    )


def outputs(case: Case, result: Any) -> tuple[float, dict[str, np.ndarray]]:
    loss, gradients = result if case.mode == "grad" else (result, {})
    return float(loss), {name: np.asarray(gradient) for name, gradient in gradients.items()}


def residual_bytes(loss_by: Callable[[Data, Data], Array], by: Data, rest: Data) -> int:
    """What `jax.vjp` keeps, found without running anything: its second result is a pytree of just that."""
    return tree_bytes(jax.eval_shape(lambda by, rest: jax.vjp(lambda by: loss_by(by, rest), by)[1], by, rest))


def tree_bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
