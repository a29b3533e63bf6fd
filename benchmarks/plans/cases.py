"""Which programs are compiled, in groups that can be made separately."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import jax

from benchmarks.losses import LOSSES, THREE_PRODUCTS
from tools.aot import PLATFORMS, Program

MODES = ("forward", "gradient")
DTYPES = ("bfloat16", "float32")
TPUS = ("TPU v5e", "TPU v6e")
# Vocabularies of real models; then primes, two of them next to a power of two.
VOCABULARIES = (32000, 50257, 50304, 100277, 128256, 129280, 151936, 152064, 201088, 256000, 262144)
ODD_VOCABULARIES = (32749, 65537, 99991, 131071)
# Width and vocabulary of the output layers of real models.
HEADS = ((4096, 128256), (2560, 151936), (2304, 262144), (768, 50257))


@dataclass(frozen=True)
class Case:
    """One loss, a mean: its value (`forward`), or that and the gradient (`gradient`).

    `shape` is (N, V) of the logits, (B, V, H, W) or (B, H, W, V) for segmentation, (N, D, V) for the fused loss.
    """

    loss: str
    shape: tuple[int, ...]
    dtype: str
    mode: str


@dataclass(frozen=True)
class Group:
    """Cases that share a table.

    Attributes:
        about: what it says above the table.
        quick: the cases that `--quick` makes.
        has_peers: whether jxent's peers are compiled too.
    """

    title: str
    about: str
    cases: list[Case]
    quick: list[Case]
    platforms: tuple[str, ...] = tuple(PLATFORMS)
    has_peers: bool = True

    def who(self, case: Case) -> list[str]:
        """Whose losses are compiled, jxent's last."""
        is_here = {"tokamax": importlib.util.find_spec("tokamax") is not None}
        peers = [name for name in LOSSES[case.loss].peers if is_here.get(name, True)]
        return [*(peers if self.has_peers else []), "jxent"]


def _cross(
    losses: Iterable[str],
    shapes: Iterable[tuple[int, ...]],
    dtypes: Iterable[str] = DTYPES,
    modes: Iterable[str] = MODES,
) -> list[Case]:
    return [Case(*each) for each in product(losses, shapes, dtypes, modes)]


def _sweep(mode: str, vocabularies: Iterable[int]) -> list[Case]:
    shapes = [(4096, v) for v in vocabularies]
    return _cross(["ids", "distributions", "smoothing"], shapes, ["bfloat16"], [mode])


_SWEEP = (
    "4096 rows in bfloat16: planned cycles for 1000 logits. The last row is the largest over the smallest; a vocabulary"
    " that costs much more than the others has fallen off a cliff of the compiler's."
)
_OF_PROBABILITIES = [
    f"{labels}, of {scores}" for labels in ("ids", "distributions") for scores in ("probabilities", "log-probabilities")
]
_IMAGES = {"segmentation, classes second": (16, 21, 256, 256), "segmentation, classes last": (16, 256, 256, 21)}

GROUPS = {
    "softmax": Group(
        "Large vocabularies",
        "8192 rows of 128256 classes. optax has the logits cast to float32 first, since its loss of bfloat16 logits is"
        " rounded to bfloat16; focal and z-loss are formulas on it.",
        cases=_cross(
            ["ids", "distributions", "smoothing", "weights, smoothing, mask", "focal", "poly-1", "z-loss"],
            [(8192, 128256)],
        ),
        quick=_cross(["ids"], [(8192, 128256)], ["bfloat16"]),
    ),
    "few": Group(
        "Few classes, and segmentation",
        "The images are 16 of 256 × 256 pixels with 21 classes, on the second axis or on the last.",
        cases=[
            *_cross(["ids", "distributions"], [(65536, 7), (65536, 10)]),
            *(case for loss, shape in _IMAGES.items() for case in _cross([loss], [shape])),
        ],
        quick=_cross(["ids"], [(65536, 10)], ["bfloat16"]),
    ),
    "binary": Group(
        "Binary losses",
        "8192 × 32768 labels, each in the dtype of its logit. *formula* is the textbook's, in float32.",
        cases=_cross(["sigmoid", "sigmoid focal", "binary, of probabilities"], [(8192, 32768)]),
        quick=_cross(["sigmoid"], [(8192, 32768)], ["bfloat16"]),
    ),
    "probabilities": Group(
        "Losses of probabilities and log-probabilities",
        "4096 rows of 32768 classes. *gather* takes each row's entry at its id, *formula* is −(q · log p).sum()"
        " in float32.",
        cases=_cross(_OF_PROBABILITIES, [(4096, 32768)]),
        quick=_cross(_OF_PROBABILITIES[:1], [(4096, 32768)], ["bfloat16"]),
    ),
    "fused": Group(
        "The fused loss over the heads of language models",
        "Value, and gradient by hidden states [N, D] and kernel [D, V], in bfloat16. *three products* makes the logits"
        " and multiplies them by both, without any loss; optax has materialised logits, cast to float32; tokamax is its"
        " `chunked_xla`.",
        cases=_cross(
            ["fused"], [(n, *head) for head in HEADS for n in (4096, 8192, 32768)], ["bfloat16"], ["gradient"]
        ),
        quick=_cross(["fused"], [(4096, 768, 50257)], ["bfloat16"], ["gradient"]),
    ),
    "sweep": Group(
        "Over the vocabularies, forward",
        _SWEEP,
        cases=_sweep("forward", VOCABULARIES + ODD_VOCABULARIES),
        quick=_sweep("forward", VOCABULARIES[:1]),
        platforms=TPUS,
    ),
    "sweep-gradient": Group(
        "Over the vocabularies, with the gradient",
        _SWEEP + " jxent's alone.",
        cases=_sweep("gradient", VOCABULARIES + ODD_VOCABULARIES),
        quick=_sweep("gradient", VOCABULARIES[:1]),
        platforms=TPUS,
        has_peers=False,
    ),
}


def program(loss: str, shape: list[int], dtype: str, mode: str, who: str) -> Program:
    """The program of one contender in a case."""
    described = LOSSES[loss]
    call = described.calls()[who]
    arguments = described.arguments(tuple(shape), dtype)
    # Three products have no value to differentiate.
    if mode == "gradient" and who != THREE_PRODUCTS:
        return Program(jax.value_and_grad(call, described.wrt), arguments)
    return Program(call, arguments)
