"""What is measured: which loss, on which shape, in which dtype, forward or with its gradient; and the arguments."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.losses import LOSSES, Loss

# Kind of case → its loss in LOSSES.
KINDS = {
    "ids": "ids",
    "soft": "distributions",
    "weighted": "weights, smoothing, mask",
    "segmentation": "segmentation, classes second",
    "multilabel": "sigmoid",
    "log-probs": "ids, of log-probabilities",
    "linear": "fused",
    "ppo": "ppo",
}
SHORT = {"float32": "f32", "bfloat16": "bf16"}
LOGIT_SCALE = 3.0
FLAT_SCALE = 0.1  # of hidden states: the logits of a model that was just initialised
ORDER = ("logits", "hidden", "kernel", "labels", "class_weight", "old_log_prob", "advantage", "where")
MASKED = {"weighted": 0.1, "masked": 0.5}  # share of the rows that do not count

Data = Mapping[str, Array]


@dataclass(frozen=True)
class Case:
    """One loss, a mean, to be evaluated (`forward`) or differentiated too (`grad`).

    `shape` is (N, V) of the logits; (B, V, H, W) for segmentation; (N, D, V) for linear and ppo, whose logits are
    `hidden [N, D] @ kernel [D, V]`. Those are close to each other (`flat`), with half the rows masked (`masked`), or
    the label's is well above the rest (`peaked`).
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
    def loss(self) -> Loss:
        return LOSSES[KINDS[self.kind]]

    @property
    def is_linear(self) -> bool:
        return self.kind in ("linear", "ppo")

    @property
    def axis(self) -> int:
        return 1 if self.kind == "segmentation" else -1

    @property
    def num_classes(self) -> int:
        return self.shape[self.axis]

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.shape[:1] + self.shape[2:] if self.kind == "segmentation" else self.shape[:1]

    @property
    def differentiated(self) -> tuple[str, ...]:
        return ("hidden", "kernel") if self.is_linear else ("logits",)

    def with_rows(self, rows: int) -> Case:
        return replace(self, shape=(rows, *self.shape[1:]))


def make_data(case: Case) -> dict[str, Array]:
    """The arguments of the loss, in its order: random, never zero, made once and the same for both modes."""
    seed = zlib.crc32(repr((case.kind, case.shape, case.spread)).encode())
    # "rbg" is the cheapest generator.
    key = jax.random.key(seed, impl="rbg")
    data = jax.block_until_ready(jax.jit(_make_data, static_argnums=1)(key, replace(case, mode="")))
    return {name: data[name] for name in ORDER if name in data}  # jit returns them sorted by name


def rows_of(data: Data, rows: int) -> dict[str, Array]:
    """The first rows of the data of a case."""
    return {name: array if name in ("kernel", "class_weight") else array[:rows] for name, array in data.items()}


def _make_data(key: Array, case: Case) -> dict[str, Array]:
    keys = iter(jax.random.split(key, 6))
    labels = jax.random.randint(next(keys), case.row_shape, 0, case.num_classes, jnp.int32)
    rows_in_float32 = (jax.random.normal(next(keys), case.row_shape, jnp.float32) for _ in range(2))
    masked = MASKED.get(case.kind, MASKED.get(case.spread))
    where = {} if masked is None else {"where": jax.random.bernoulli(next(keys), 1 - masked, case.row_shape)}
    if case.is_linear:
        data = {**_hidden_and_kernel(next(keys), case, labels), "labels": labels}
        if case.kind == "ppo":
            # Old log-probabilities near those of a flat policy, so that some ratios are clipped.
            noise, advantage = rows_in_float32
            data |= {"old_log_prob": 0.2 * noise - math.log(case.num_classes), "advantage": advantage}
        return data | where
    logits = _normal(next(keys), case.shape, LOGIT_SCALE, case.dtype)
    if case.kind == "log-probs":
        logits = jax.nn.log_softmax(logits.astype(jnp.float32)).astype(case.dtype)
    if case.kind == "soft":
        labels = jax.nn.softmax(_normal(next(keys), case.shape, LOGIT_SCALE, "float32")).astype(case.dtype)
    if case.kind == "multilabel":
        labels = jax.random.bernoulli(next(keys), 0.1, case.shape).astype(case.dtype)
    data = {"logits": logits, "labels": labels}
    if case.kind == "weighted":
        # Representable in bfloat16, so that casting them to the dtype of the logits is exact.
        weight = jax.random.uniform(next(keys), (case.num_classes,), jnp.bfloat16, 0.5, 2.0)
        data["class_weight"] = weight.astype(jnp.float32)
    return data | where


def _hidden_and_kernel(key: Array, case: Case, labels: Array) -> dict[str, Array]:
    a, b = jax.random.split(key)
    n, d, v = case.shape
    kernel = _normal(b, (d, v), 1 / math.sqrt(d), case.dtype)
    hidden = _normal(a, (n, d), 1.0 if case.spread == "peaked" else FLAT_SCALE, case.dtype)
    if case.spread == "peaked":
        # The columns have length 1, so the label's logit is about log V + 2 and its probability well above a half.
        hidden = hidden + jnp.asarray(math.log(v) + 2, hidden.dtype) * kernel[:, labels].T
    return {"hidden": hidden, "kernel": kernel}


def _normal(key: Array, shape: tuple[int, ...], scale: float, dtype: str) -> Array:
    return jax.random.normal(key, shape, jnp.dtype(dtype)) * jnp.asarray(scale, dtype)


def cross(kinds, shapes, spreads=("",), modes=("forward", "grad"), dtypes=("float32", "bfloat16")) -> list[Case]:
    """All combinations."""
    each = product(kinds, shapes, dtypes, spreads, modes)
    return [Case(kind, shape, dtype, mode, spread) for kind, shape, dtype, spread, mode in each]


QUICK = [
    *cross(["ids"], [(64, 1000)], modes=["grad"], dtypes=["bfloat16"]),
    *cross(["log-probs"], [(16, 100)], modes=["forward"], dtypes=["float32"]),
    *cross(["soft", "weighted", "multilabel"], [(16, 100)], modes=["grad"], dtypes=["float32"]),
    *cross(["segmentation"], [(2, 5, 4, 4)], modes=["grad"], dtypes=["float32"]),
    *cross(["linear"], [(64, 32, 512)], ["masked"], modes=["grad"], dtypes=["bfloat16"]),
    *cross(["ppo"], [(64, 32, 512)], ["flat"], modes=["grad"], dtypes=["float32"]),
]
CPU = [
    *cross(
        ["ids"], [(65536, 7), (16384, 100), (8192, 1000), (4096, 3000), (4096, 32768), (2048, 50257), (1024, 128256)]
    ),
    *cross(["soft", "weighted", "multilabel"], [(8192, 1000)]),
    *cross(["segmentation"], [(8, 21, 128, 128)]),
    *cross(["linear"], [(512, 256, 4096)], ["flat", "peaked"]),
    *cross(["linear", "ppo"], [(2048, 512, 32768)], ["flat"], modes=["grad"]),
]
# Too large for a CPU. The most important come first.
DEVICE = [
    *cross(["linear"], [(4096, 4096, 128256), (32768, 2560, 128256)], ["flat", "masked"], ["grad"], ["bfloat16"]),
    *cross(["ids", "soft", "log-probs"], [(8192, 128256)], modes=["grad"], dtypes=["bfloat16"]),
    *cross(["ids", "soft", "log-probs"], [(8192, 128256)], modes=["forward"], dtypes=["bfloat16"]),
    *cross(["linear"], [(8192, 4096, 128256)], ["peaked"], ["grad"], ["bfloat16"]),
    *cross(["ids", "soft"], [(8192, 128256)], dtypes=["float32"]),
    *cross(["ids"], [(65536, 7), (8192, 1000), (4096, 32768)], dtypes=["bfloat16"]),
]


def preset(*, quick: bool, on_cpu: bool) -> list[Case]:
    return QUICK if quick else CPU if on_cpu else DEVICE
