"""What a contender is, and what it makes of a case."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.cases import CROSS_ENTROPIES, Case
from benchmarks.data import Data


def optional(module: str) -> Any:
    """Imports what not everybody has installed; anything to a type checker."""
    return importlib.import_module(module)


@dataclass(frozen=True)
class Program:
    """A contender, ready to run on one case.

    Attributes:
        call: runs it once and returns when the result is there.
        outputs: the loss and the gradients by name, of what `call` returned; gradients in the layout of the data.
        output_bytes: of the loss and the gradients.
        compile_seconds: what was spent before the first call, tracing included; None where nothing is compiled.
        temp_bytes: temporary memory by the compiler's own account; None where there is none.
        residual_bytes: what reverse mode keeps from the forward to the backward pass, arguments included; None where
            it cannot be told.
        device_growth: calls it once and returns what that takes of the device's memory at its peak, where the
            contender has its own account of it.
        restore: puts arguments back that a call overwrites; before a call whose result counts.
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
        prepare: compiles it, or readies it otherwise, for a case and its data.
        kinds: the kinds of case that it has a loss for.
        modules: what has to be importable, beside what the extra "bench" brings.
        applies: further conditions on a case.
        missing: why it cannot run on this machine at all, or None.
        role: "ours", "peer" or "floor".
    """

    name: str
    prepare: Callable[[Case, Data], Program]
    kinds: tuple[str, ...] = CROSS_ENTROPIES
    modules: tuple[str, ...] = ()
    applies: Callable[[Case], bool] = field(default=lambda case: True)
    missing: Callable[[], str | None] = field(default=lambda: None)
    role: str = "peer"

    def why_absent(self) -> str | None:
        """Why it cannot run on this machine, or None."""
        absent = [module for module in self.modules if importlib.util.find_spec(module) is None]
        return f"{', '.join(absent)} not installed" if absent else self.missing()

    def takes(self, case: Case) -> bool:
        return case.kind in self.kinds and self.applies(case)
