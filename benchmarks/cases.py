"""What is measured: which loss, on which shape, in which dtype, forward or with its gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

CROSS_ENTROPIES = ("ids", "soft", "weighted", "segmentation", "multilabel", "linear")
KINDS = (*CROSS_ENTROPIES, "ppo")
SHORT = {"float32": "f32", "bfloat16": "bf16"}
BYTES = {"float32": 4, "bfloat16": 2}
LABEL_SMOOTHING = 0.1  # of "weighted", which has class weights and a mask too


ENTROPY_BONUS = 0.01


def clipped(log_prob: Any, entropy: Any, old_log_prob: Any, advantage: Any) -> Any:
    """The loss of PPO, row by row."""
    ratio = jnp.exp(log_prob - old_log_prob)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage) - ENTROPY_BONUS * entropy


@dataclass(frozen=True)
class Case:
    """One loss, a mean, to be evaluated (`forward`) or differentiated too (`grad`).

    `shape` is (N, V) of the logits; (B, V, H, W) for segmentation; (N, D, V) for linear and ppo, whose logits are
    `hidden [N, D] @ kernel [D, V]`, close to each other (`flat`) or with the label's well above the rest (`peaked`).
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    mode: str
    spread: str = ""

    @property
    def name(self) -> str:
        size = "x".join(map(str, self.shape))
        return "-".join(filter(None, [self.kind, size, SHORT[self.dtype], self.spread, self.mode]))

    @property
    def is_linear(self) -> bool:
        return self.kind in ("linear", "ppo")

    @property
    def num_classes(self) -> int:
        return self.shape[1] if self.kind == "segmentation" else self.shape[-1]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of one label per row; for multi-label, where every logit has its own, that of the logits."""
        if self.kind == "segmentation":
            return self.shape[:1] + self.shape[2:]
        return self.shape if self.kind == "multilabel" else self.shape[:1]

    @property
    def axis(self) -> int:
        return 1 if self.kind == "segmentation" else -1

    @property
    def differentiated(self) -> tuple[str, ...]:
        return ("hidden", "kernel") if self.is_linear else ("logits",)

    @property
    def logits_bytes(self) -> int:
        rows = self.shape[0] if self.is_linear else math.prod(self.shape) // self.num_classes
        return rows * self.num_classes * BYTES[self.dtype]

    @property
    def argument_bytes(self) -> int:
        """Of the large arguments."""
        if self.is_linear:
            n, d, v = self.shape
            return (n * d + d * v) * BYTES[self.dtype]
        return self.logits_bytes * (2 if self.kind in ("soft", "multilabel") else 1)

    @property
    def flops(self) -> int:
        """Of the matrix products of a linear case."""
        return 2 * math.prod(self.shape) * (3 if self.mode == "grad" else 1) if self.is_linear else 0

    def with_rows(self, rows: int) -> Case:
        return replace(self, shape=(rows, *self.shape[1:]))


def cross(kinds, shapes, spreads=("",), modes=("forward", "grad"), dtypes=("float32", "bfloat16")) -> list[Case]:
    """All combinations; those that share their data follow each other."""
    return [
        Case(kind, shape, dtype, mode, spread)
        for kind in kinds
        for shape in shapes
        for dtype in dtypes
        for spread in spreads
        for mode in modes
    ]


SPREADS = ("flat", "peaked")
QUICK = [
    *cross(["ids"], [(64, 1000)], dtypes=["bfloat16"]),
    *cross(["soft", "weighted", "multilabel"], [(64, 100)], modes=["grad"], dtypes=["float32"]),
    *cross(["segmentation"], [(2, 5, 16, 16)], modes=["grad"], dtypes=["float32"]),
    *cross(["linear"], [(64, 32, 512)], ["peaked"], modes=["grad"], dtypes=["bfloat16"]),
    *cross(["ppo"], [(64, 32, 512)], ["flat"], modes=["grad"], dtypes=["float32"]),
]
DEFAULT = [
    *cross(
        ["ids"],
        [(65536, 7), (16384, 100), (8192, 1000), (4096, 3000), (4096, 32768), (2048, 50257), (1024, 128256)],
    ),
    *cross(["soft", "weighted", "multilabel"], [(8192, 1000)]),
    *cross(["segmentation"], [(8, 21, 128, 128)]),
    *cross(["linear"], [(512, 256, 4096)], SPREADS),
    *cross(["linear", "ppo"], [(2048, 512, 32768)], ["flat"], modes=["grad"]),
]
FULL = [
    *DEFAULT,
    *cross(["ids"], [(2048, 128256)]),
    *cross(["soft", "weighted"], [(65536, 7), (2048, 32768)]),
    *cross(["linear"], [(2048, 512, 32768)], ["flat"], modes=["forward"]),
    *cross(["linear"], [(2048, 512, 32768)], ["peaked"]),
]
# Minutes per call, or more than its memory, on a CPU of today.
ACCELERATOR = [
    *cross(["ids", "soft"], [(8192, 128256)]),
    *cross(["linear"], [(4096, 4096, 128256), (8192, 4096, 128256)], SPREADS),
]


def preset(name: str, *, accelerator: bool) -> list[Case]:
    """The cases of `--quick`, the default, or `--full`, which has more where there is an accelerator."""
    if name == "full" and accelerator:
        return [*FULL, *ACCELERATOR]
    return {"quick": QUICK, "default": DEFAULT, "full": FULL}[name]
