"""Programs for accelerators that are not there: compiled by XLA for TPU and GPU as it ships for them, never run.

libtpu and the CUDA plugin compile for a described device. They do so in a process of their own, one for each of the two,
which answers a request a line:

    with Compilers() as compilers:
        compilers.compiled("TPU v5e", "softmax_cross_entropy-ids", "jxent", "bfloat16")

So the plugins are set up by the environment alone, whatever the process that asks has done with jax before.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from jxent import torch_compat
from tests.losses import LOSSES, VARIANTS
from tools.hlo import collectives

ROWS, CLASSES = 8192, 128256
LINEAR_ROWS, WIDTH = 32768, 4096
SMOOTHING = 0.1
ON_FLOAT32 = "optax on float32"

# The fields of XLA's GpuTargetConfig that its compiler asks for, of an NVIDIA H200 SXM.
_H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98 device_memory_size: 150754820096
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 }
device_description_str: "NVIDIA H200"
"""


class Platform(NamedTuple):
    """What is compiled for.

    Attributes:
        backend: whose process does it, "tpu" or "cuda".
        topology: its devices, as `jax.experimental.topologies.get_topology_desc` is told.
        options: of the compiler.
    """

    backend: str
    topology: dict[str, str]
    options: dict[str, Any] | None


# Autotuning runs programs on the device, which is not there.
_WITHOUT_DEVICE = {"xla_gpu_autotune_level": 0}
PLATFORMS = {
    "TPU v5e": Platform("tpu", {"topology_name": "v5e:2x2"}, None),
    "TPU v6e": Platform("tpu", {"topology_name": "v6e:2x2"}, None),
    "H200": Platform("cuda", {"topology_name": "", "target_config": _H200, "topology": "1x1x4"}, _WITHOUT_DEVICE),
}
# What a backend needs, all of it from the extra `aot`.
DISTRIBUTIONS = {"tpu": ["libtpu"], "cuda": ["jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc"]}
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # What jax keeps of programs for devices that are not there it cannot read back.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    # Else libtpu asks a cloud's server which TPU this is, allows one process at a time, and writes logs.
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    # Else the CUDA plugin refuses to load without cuDNN, cuBLAS, …
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}
_FOREIGN_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_COMPILATION_CACHE_DIR")


@dataclass(frozen=True)
class Case:
    """A call of a public loss that gives one number, of which value and gradient are compiled.

    Attributes:
        function: its name, with its module's if that is not `jxent`.
        losses: "jxent" and its peers → the call.
        shapes: of the arguments, each with a dtype; None stands for the dtype of the case.
        wrt: the arguments that are differentiated.
        splits: ways of splitting the arguments over the four devices → the mesh's axes, and their PartitionSpecs.
    """

    function: str
    losses: dict[str, Callable[..., Any]]
    shapes: tuple[tuple[tuple[int, ...], Any], ...]
    wrt: tuple[int, ...] = (0,)
    splits: dict[str, tuple[dict[str, int], tuple[P, ...]]] | None = None


class Compiled(NamedTuple):
    """What the compiler says, in bytes.

    Attributes:
        temporaries: `peak` without arguments and results.
        peak: what is allocated, of everything.
        temp_size: `temp_size_in_bytes`, which for a TPU is more than the temporaries that its buffer assignment has: by
            the logits of a chunk, where those live in a loop.
        seconds: what compiling took.
        sent: the collectives, those of `tools.hlo`, as lists.
        error: instead of all this, why it did not compile.
    """

    temporaries: int = 0
    peak: int = 0
    temp_size: int = 0
    seconds: float = 0.0
    sent: list[Any] | None = None
    error: str | None = None


def _mean(loss: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return partial(loss, reduction="mean", **options)


def _with_options(logits: Any, labels: Any, class_weight: Any, where: Any) -> Any:
    options = {"class_weight": class_weight, "where": where, "label_smoothing": SMOOTHING}
    return jxent.softmax_cross_entropy(logits, labels, reduction="mean", **options)


def _optax_with_options(logits: Any, labels: Any, class_weight: Any, where: Any) -> Any:
    smooth = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), SMOOTHING)
    rows = optax.softmax_cross_entropy(logits, smooth * class_weight[None, :].astype(logits.dtype))
    return jnp.sum(jnp.where(where, rows, 0)) / jnp.sum(jnp.where(where, class_weight[labels], 0))


def _optax_ids(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _optax_soft(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy(logits, labels).mean()


def _optax_focal_ids(logits: Any, labels: Any) -> Any:
    """Optax has none; this is the paper's formula on its cross entropy."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean((1 - jnp.exp(-loss)) ** 2 * loss)


def _optax_poly1_ids(logits: Any, labels: Any) -> Any:
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.losses.poly_loss_cross_entropy(logits, one_hot).mean()


def _optax_poly1_soft(logits: Any, labels: Any) -> Any:
    return optax.losses.poly_loss_cross_entropy(logits, labels).mean()


def _optax_sigmoid(logits: Any, labels: Any) -> Any:
    return optax.sigmoid_binary_cross_entropy(logits, labels.astype(logits.dtype)).mean()


def _optax_sigmoid_focal(logits: Any, labels: Any) -> Any:
    return optax.sigmoid_focal_loss(logits, labels).mean()


def _plain_log_probs_ids(log_probs: Any, labels: Any) -> Any:
    return -jnp.mean(jnp.take_along_axis(log_probs, labels[:, None], 1))


def _plain_log_probs_soft(log_probs: Any, labels: Any) -> Any:
    return -jnp.mean(jnp.sum(labels * log_probs, 1))


def _plain_probs_ids(probs: Any, labels: Any) -> Any:
    return -jnp.mean(jnp.log(jnp.take_along_axis(probs, labels[:, None], 1)))


def _plain_probs_soft(probs: Any, labels: Any) -> Any:
    return -jnp.mean(jnp.sum(labels * jnp.log(probs), 1))


def _plain_binary_probs(probs: Any, labels: Any) -> Any:
    return -jnp.mean(labels * jnp.log(probs) + (1 - labels) * jnp.log1p(-probs))


def _upcast(loss: Callable[..., Any]) -> Callable[..., Any]:
    return lambda scores, *others: loss(scores.astype(jnp.float32), *others)


def _optax_materialised(hidden: Any, kernel: Any, labels: Any) -> Any:
    return _optax_ids((hidden @ kernel).astype(jnp.float32), labels)


def _optax(loss: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """As it is called, and as it has to be called for a loss that is not rounded to bfloat16."""
    return {"optax": loss, ON_FLOAT32: _upcast(loss)}


# The natural peers of each loss of tests/losses.py: optax's where it has one, else the formula.
PEERS = {
    "softmax_cross_entropy-ids": _optax(_optax_ids),
    "softmax_cross_entropy-soft": _optax(_optax_soft),
    "softmax_focal_loss-ids": {"formula on optax": _optax_focal_ids},
    "softmax_focal_loss-soft": {},
    "poly1_cross_entropy-ids": _optax(_optax_poly1_ids),
    "poly1_cross_entropy-soft": _optax(_optax_poly1_soft),
    "cross_entropy_from_probs-ids": {"formula": _plain_probs_ids},
    "cross_entropy_from_probs-soft": {"formula": _plain_probs_soft},
    "cross_entropy_from_log_probs-ids": {"formula": _plain_log_probs_ids},
    "cross_entropy_from_log_probs-soft": {"formula": _plain_log_probs_soft},
    "sigmoid_binary_cross_entropy-hard": _optax(_optax_sigmoid),
    "sigmoid_binary_cross_entropy-soft": _optax(_optax_sigmoid),
    "sigmoid_focal_loss-soft": _optax(_optax_sigmoid_focal),
    "binary_cross_entropy_from_probs-soft": {"formula": _plain_binary_probs},
}
_SCORES = ((ROWS, CLASSES), None)
_LABELS = {"ids": ((ROWS,), jnp.int32), "soft": _SCORES, "hard": ((ROWS, CLASSES), jnp.bool_)}
_OPTIONS = (((CLASSES,), jnp.float32), ((ROWS,), jnp.bool_))
_LINEAR = (((LINEAR_ROWS, WIDTH), None), ((WIDTH, CLASSES), None), ((LINEAR_ROWS,), jnp.int32))
_DATA, _VOCAB, _BOTH = {"data": 4}, {"classes": 4}, {"data": 2, "classes": 2}
_ROW, _COLUMN = P("data"), P(None, "classes")


def _case_of(loss: Any) -> Case:
    splits = {"classes": (_VOCAB, (_COLUMN, P())), "both": (_BOTH, (P("data", "classes"), _ROW))}
    return Case(
        loss.call.__name__,
        {"jxent": _mean(loss.call), **PEERS[loss.name]},
        (_SCORES, _LABELS[loss.name.rsplit("-", 1)[1]]),
        splits=splits if loss.name == "softmax_cross_entropy-ids" else None,
    )


CASES = {loss.name: _case_of(loss) for loss in LOSSES + VARIANTS} | {
    "softmax_cross_entropy-weights, smoothing and mask": Case(
        "softmax_cross_entropy",
        {"jxent": _with_options, **_optax(_optax_with_options)},
        (_SCORES, _LABELS["ids"], *_OPTIONS),
    ),
    "torch_compat.cross_entropy": Case(
        "torch_compat.cross_entropy", {"jxent": torch_compat.cross_entropy}, (_SCORES, _LABELS["ids"])
    ),
    "torch_compat.nll_loss": Case("torch_compat.nll_loss", {"jxent": torch_compat.nll_loss}, (_SCORES, _LABELS["ids"])),
    "torch_compat.binary_cross_entropy": Case(
        "torch_compat.binary_cross_entropy", {"jxent": torch_compat.binary_cross_entropy}, (_SCORES, _SCORES)
    ),
    "torch_compat.binary_cross_entropy_with_logits": Case(
        "torch_compat.binary_cross_entropy_with_logits",
        {"jxent": torch_compat.binary_cross_entropy_with_logits},
        (_SCORES, _SCORES),
    ),
    "linear_softmax_cross_entropy-ids": Case(
        "linear_softmax_cross_entropy",
        {"jxent": _mean(jxent.linear_softmax_cross_entropy), "optax on logits": _optax_materialised},
        _LINEAR,
        wrt=(0, 1),
        splits={
            "rows": (_DATA, (_ROW, P(), _ROW)),
            "classes": (_VOCAB, (P(), _COLUMN, P())),
            "both": (_BOTH, (_ROW, _COLUMN, _ROW)),
        },
    ),
}


def missing(platform: str) -> str | None:
    """The first of the packages that a platform needs which is not installed."""
    for name in DISTRIBUTIONS[PLATFORMS[platform].backend]:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            return name
    return None


class Compilers:
    """The processes that compile, each started when it is first needed."""

    def __init__(self):
        self._processes = {}
        self._open = ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._open.close()

    def compiled(self, platform: str, case: str, who: str, dtype: str, split: str | None = None) -> Compiled:
        """What its compiler says of a case, for "jxent" or one of the peers; a RuntimeError if that breaks down."""
        process, log = self._process(PLATFORMS[platform].backend)
        answer = ""
        if process.poll() is None:
            process.stdin.write(json.dumps([platform, case, who, dtype, split]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        if not answer:
            process.wait()
            log.seek(0)
            raise RuntimeError(f"the compiler for {platform} ended ({process.returncode}):\n{log.read()[-4000:]}")
        return Compiled(**json.loads(answer))

    def _process(self, backend: str) -> tuple[subprocess.Popen, Any]:
        if backend not in self._processes:
            environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN_FLAGS}
            log = self._open.enter_context(tempfile.TemporaryFile("w+", errors="replace"))  # noqa: SIM115
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.compilers"],
                cwd=Path(__file__).parents[1],
                env=environment | _ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            # It ends when nothing can follow on its stdin.
            self._processes[backend] = self._open.enter_context(process), log
        return self._processes[backend]


def _answer(platform: str, case: str, who: str, dtype: str, split: str | None) -> Compiled:
    backend, topology, options = PLATFORMS[platform]
    devices = topologies.get_topology_desc(platform=backend, **topology).devices
    function, arguments = _program(CASES[case], who, dtype, split, devices)
    lowered = jax.jit(function).lower(*arguments)
    start = time.perf_counter()
    try:
        program = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        # That it does not fit is an answer; anything else is not.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(error=str(error).split("\n", 1)[0])
    taken = program.memory_analysis()
    # What is allocated is more than what is held at any time, if it has gaps; jax 0.10 does not tell it.
    peak = max(taken.peak_memory_in_bytes, getattr(taken, "total_allocation_bytes", 0))
    arguments_and_results = taken.argument_size_in_bytes + taken.output_size_in_bytes - taken.alias_size_in_bytes
    return Compiled(
        temporaries=peak - arguments_and_results,
        peak=peak,
        temp_size=taken.temp_size_in_bytes,
        seconds=time.perf_counter() - start,
        sent=[collective._asdict() for collective in collectives(program)],
    )


def _program(case: Case, who: str, dtype: str, split: str | None, devices: Any) -> tuple[Any, list[Any]]:
    """Value and gradient of a loss, and its arguments."""
    axes, specs = ({"all": 1}, (P(),) * len(case.shapes)) if split is None else case.splits[split]
    count = int(np.prod(list(axes.values())))
    grid = np.array(devices[:count]).reshape(tuple(axes.values()))
    mesh = Mesh(grid, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
    arguments = [
        jax.ShapeDtypeStruct(shape, fixed or jnp.dtype(dtype), sharding=NamedSharding(mesh, spec))
        for (shape, fixed), spec in zip(case.shapes, specs, strict=True)
    ]
    return jax.value_and_grad(case.losses[who], case.wrt), arguments


def _serve() -> None:
    """Answers requests, a line each; whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for request in sys.stdin:
        print(json.dumps(_answer(*json.loads(request))._asdict()), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
