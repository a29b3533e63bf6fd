"""Who takes part, and how each is prepared for a case: jxent, its peers in JAX, torch, and a floor.

The floor is the least that the machine allows. Forward, all large arguments are read once; with the gradient, another
pass reads them and writes an array like the logits (the sigmoid's loss needs that pass alone). For `linear` it is one
bare matrix product forward and three with the gradients.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.cases import Case, Data
from benchmarks.losses import Call, fused, three_products

PACKAGES = {"keras": "keras", "tokamax chunked_xla": "tokamax"}
CHUNK_SIZES = (512, 2048)


@dataclass(frozen=True)
class Program:
    """A contender prepared for one case.

    Attributes:
        call: runs it once and returns when the result is there.
        outputs: the loss and the gradients by name, from what `call` returned; gradients in the layout of the data.
        output_bytes: of the loss and the gradients.
        compile_seconds: spent before the first call, tracing included; None where nothing is compiled.
        temp_bytes: temporary memory by the compiler's own account; None where there is none.
        residual_bytes: what reverse mode keeps from the forward to the backward pass, arguments included; None where
            it cannot be told.
        device_growth: calls it once and returns the device memory that takes at its peak, where the contender has its
            own account of it.
        restore: puts back arguments that a call overwrites; before a call whose result counts.
    """

    call: Callable[[], Any]
    outputs: Callable[[Any], tuple[float, dict[str, np.ndarray]]]
    output_bytes: int
    compile_seconds: float | None = None
    temp_bytes: int | None = None
    residual_bytes: int | None = None
    device_growth: Callable[[], int | None] | None = None
    restore: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Contender:
    """Somebody's cross entropy.

    Attributes:
        prepare: compiles it, or sets it up otherwise, for a case and its data.
        takes: whether it has a loss for a case.
        why_absent: why it cannot run on this machine at all, or None.
        role: "ours", "peer" or "floor".
    """

    name: str
    prepare: Callable[[Case, Data], Program]
    takes: Callable[[Case], bool]
    why_absent: Callable[[], str | None] = lambda: None
    role: str = "peer"


def everybody() -> list[Contender]:
    # Imported here, since it imports this module.
    torch_losses = importlib.import_module("benchmarks.torch_losses")
    names = ("optax", "optax float32", "jax log_softmax", "jax gather", "optax one-hot", *PACKAGES)
    return [FLOOR, *OURS, *(_peer_in_jax(name) for name in names), *torch_losses.CONTENDERS]


def not_installed(*modules: str) -> str | None:
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"{', '.join(absent)} not installed" if absent else None


def jax_contender(
    name: str, loss_of: Callable[[Case], Call], takes: Callable[[Case], bool], **fields: Any
) -> Contender:
    """A contender written in JAX: `loss_of` returns the mean loss for a case, a function of its data."""
    return Contender(name, partial(_prepare, loss_of), takes, **fields)


def _peer_in_jax(name: str) -> Contender:
    def takes(case: Case) -> bool:
        # A cast to float32 changes nothing in float32, and tokamax has no mask.
        senseless = (name == "optax float32" and case.dtype == "float32") or (
            name == "tokamax chunked_xla" and case.spread == "masked"
        )
        return name in case.loss.timed and not senseless

    why_absent = partial(not_installed, *([PACKAGES[name]] if name in PACKAGES else []))
    return jax_contender(name, lambda case: case.loss.timed[name], takes, why_absent=why_absent)


def _prepare(loss_of: Callable[[Case], Call], case: Case, data: Data) -> Program:
    loss, arrays, count = loss_of(case), tuple(data.values()), len(case.differentiated)
    function = jax.value_and_grad(loss, case.loss.wrt) if case.mode == "grad" else loss
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arrays).compile()
    seconds = time.perf_counter() - start

    def outputs(result: Any) -> tuple[float, dict[str, np.ndarray]]:
        value, gradients = result if case.mode == "grad" else (result, ())
        return float(value), {name: np.asarray(g) for name, g in zip(case.differentiated, gradients, strict=False)}

    def pullback(*arrays: Array) -> Any:
        """What reverse mode keeps, as a pytree."""
        return jax.vjp(lambda *by: loss(*by, *arrays[count:]), *arrays[:count])[1]

    analysis = compiled.memory_analysis()
    return Program(
        call=lambda: jax.block_until_ready(compiled(*arrays)),
        outputs=outputs,
        output_bytes=_tree_bytes(jax.eval_shape(function, *arrays)),
        compile_seconds=seconds,
        temp_bytes=None if analysis is None else analysis.temp_size_in_bytes,
        residual_bytes=_tree_bytes(jax.eval_shape(pullback, *arrays)) if case.mode == "grad" else None,
    )


def _tree_bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _with_chunks(size: int) -> Contender:
    return jax_contender(
        f"jxent, chunks of {size}",
        lambda case: partial(fused, chunk_size=size),
        lambda case: case.kind == "linear" and case.spread == "flat" and case.shape[0] > max(CHUNK_SIZES),
        role="ours",
    )


OURS = [
    jax_contender("jxent", lambda case: case.loss.ours, lambda case: True, role="ours"),
    *(_with_chunks(size) for size in CHUNK_SIZES),
]


def _floor_steps(case: Case, data: Data) -> list[tuple[Callable[..., Any], Sequence[Array]]]:
    if case.is_linear:
        products = three_products if case.mode == "grad" else jnp.matmul
        return [(jax.jit(products), (data["hidden"], data["kernel"]))]
    large = [array for array in data.values() if array.shape == case.shape]
    passes = [_read] if case.mode == "forward" else [_copy] if case.kind == "multilabel" else [_read, _copy]
    # Separate programs: in one, XLA would let the passes share what they read.
    return [(jax.jit(one_pass), large) for one_pass in passes]


def _read(*arrays: Array) -> list[Array]:
    return [jnp.sum(array, dtype=jnp.float32) for array in arrays]


def _copy(first: Array, *others: Array) -> Array:
    """Reads them all and writes something as large as the first, the logits."""
    return sum(others, start=first * 2)


def _prepare_floor(case: Case, data: Data) -> Program:
    steps = _floor_steps(case, data)

    def call() -> None:
        for program, arrays in steps:
            jax.block_until_ready(program(*arrays))

    return Program(call, outputs=lambda result: (math.nan, {}), output_bytes=0)


FLOOR = Contender("floor", _prepare_floor, lambda case: True, role="floor")
