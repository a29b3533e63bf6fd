"""Compiles programs for TPU and GPU with the real XLA compilers, without the devices and without running anything.

    python -m tools.aot my_losses.py:old my_losses.py:new --args 'bf16[8192,128256]' 's32[8192]' --wrt 0 --parts 8

prints what each compiler plans for these functions of arrays: cycles (TPU), bytes moved (GPU) and temporary memory,
with the most expensive parts. With `--wrt` it compiles value and gradient; a result that is not a scalar is summed
first. From a script:

    with Compilers() as compilers:
        compiled = compilers.compiled("TPU v5e", "my_losses.py:program", dtype="bfloat16")

where `my_losses.program(dtype="bfloat16")` returns a `Program`. libtpu and the CUDA plugin compile for a described
device, each in its own process. Only the environment sets that process up, whatever the caller has done with jax
before.
"""

import argparse
import importlib
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tools import planned
from tools.hlo import collectives

ROOT = Path(__file__).resolve().parents[1]
_MOST_PARTS = 40

# The fields of XLA's GpuTargetConfig that its compiler needs, for an NVIDIA H200 SXM.
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
    """A platform to compile for.

    Attributes:
        backend: whose process compiles, "tpu" or "cuda".
        topology: the devices, in the words of `jax.experimental.topologies.get_topology_desc`.
        options: of the compiler.
    """

    backend: str
    topology: dict[str, str]
    options: dict[str, Any] | None


# Autotuning would run programs on the missing device.
_WITHOUT_DEVICE = {"xla_gpu_autotune_level": 0}
PLATFORMS = {
    "TPU v5e": Platform("tpu", {"topology_name": "v5e:2x2"}, None),
    "TPU v6e": Platform("tpu", {"topology_name": "v6e:2x2"}, None),
    "H200": Platform("cuda", {"topology_name": "", "target_config": _H200, "topology": "1x1x4"}, _WITHOUT_DEVICE),
}
# The packages that a backend needs, all from the extra `aot`.
DISTRIBUTIONS = {"tpu": ["libtpu"], "cuda": ["jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc"]}
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # jax cannot read cached programs for missing devices back.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    # Otherwise libtpu asks a cloud server which TPU this is, allows one process at a time, and writes logs.
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    # Otherwise the CUDA plugin refuses to load without cuDNN, cuBLAS, …
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}
_FOREIGN_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_COMPILATION_CACHE_DIR")


class Program(NamedTuple):
    """What to compile.

    Attributes:
        function: a function of arrays.
        arguments: the shape and dtype of each argument.
        axes: the mesh axes of the participating devices, with their sizes.
        specs: how each argument is split over them; None for no split.
    """

    function: Callable[..., Any]
    arguments: Sequence[tuple[tuple[int, ...], Any]]
    axes: Mapping[str, int] = MappingProxyType({"all": 1})
    specs: Sequence[P] | None = None


class Compiled(NamedTuple):
    """The compiler's report.

    Attributes:
        temporaries: in bytes, `peak` without arguments and results.
        peak: in bytes, everything that is allocated.
        planned: cycles on a TPU, bytes moved on a GPU, as read by `tools.planned`, like the next four.
        gathered: how many of the planned bytes are whole operands of gathers.
        missing: what has no estimate → how often it runs.
        open_loops: how many loops have a trip count that depends on the data; they are counted once.
        parts: name, operation, number of runs, and cycles or bytes, of the most expensive parts.
        seconds: the compile time.
        sent: the collectives from `tools.hlo`, as dicts.
        error: why it did not compile, instead of all this; contains RESOURCE_EXHAUSTED if it does not fit.
    """

    temporaries: int = 0
    peak: int = 0
    planned: int = 0
    gathered: int = 0
    missing: Mapping[str, int] = MappingProxyType({})
    open_loops: int = 0
    parts: Sequence[Any] = ()
    seconds: float = 0.0
    sent: Sequence[dict[str, Any]] = ()
    error: str | None = None


def missing(platform: str) -> str | None:
    """The first package that a platform needs and that is not installed."""
    for name in DISTRIBUTIONS[PLATFORMS[platform].backend]:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            return name
    return None


class Compilers:
    """The compiling processes, each started on first use."""

    def __init__(self):
        self._processes = {}
        self._open = ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._open.close()

    def compiled(self, platform: str, make_program: str, **options: Any) -> Compiled:
        """A platform's report on a program.

        Args:
            platform: one of `PLATFORMS`.
            make_program: "module:function" or "file.py:function", which returns a `Program`; called in the compiling
                process.
            options: its keyword arguments, which must be JSON.

        Raises:
            RuntimeError: that process ends.
        """
        process, log = self._process(PLATFORMS[platform].backend)
        answer = ""
        if process.poll() is None:
            process.stdin.write(json.dumps([platform, make_program, options]) + "\n")
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
            path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
            log = self._open.enter_context(tempfile.TemporaryFile("w+", errors="replace"))  # noqa: SIM115
            process = subprocess.Popen(
                [sys.executable, "-c", "from tools import aot; aot.serve()"],
                env=environment | _ENVIRONMENT | {"PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            # The process ends when its stdin is closed.
            self._processes[backend] = self._open.enter_context(process), log
        return self._processes[backend]


def serve() -> None:
    """Answers the requests of `Compilers`, one per line; anything that libraries print goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for request in sys.stdin:
        platform, make_program, options = json.loads(request)
        try:
            answer = _compiled(platform, _named(make_program)(**options))
        except Exception as error:  # the next request may succeed
            traceback.print_exc()
            answer = Compiled(error=f"{type(error).__name__}: {str(error).split(chr(10), 1)[0]}")
        print(json.dumps(answer._asdict(), default=dict), file=answers, flush=True)


def _named(name: str) -> Any:
    """The function named "module:function" or "file.py:function"; a file is executed once."""
    module, _, function = name.rpartition(":")
    if not module.endswith(".py"):
        return getattr(importlib.import_module(module), function)
    path = str(Path(module).resolve())
    if path not in sys.modules:
        sys.path.append(str(Path(path).parent))
        spec = importlib.util.spec_from_file_location(path, path)
        sys.modules[path] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[path])
        except BaseException:
            # Otherwise the next request would find the half-executed module.
            del sys.modules[path]
            raise
    return getattr(sys.modules[path], function)


def _compiled(platform: str, program: Program) -> Compiled:
    backend, topology, options = PLATFORMS[platform]
    devices = topologies.get_topology_desc(platform=backend, **topology).devices
    lowered = jax.jit(program.function).lower(*_arguments(program, devices))
    start = time.perf_counter()
    compiled = lowered.compile(compiler_options=options)
    seconds = time.perf_counter() - start
    taken = compiled.memory_analysis()
    # With gaps, allocations exceed the peak of what is live; jax 0.10 does not report them.
    peak = max(taken.peak_memory_in_bytes, getattr(taken, "total_allocation_bytes", 0))
    arguments_and_results = taken.argument_size_in_bytes + taken.output_size_in_bytes - taken.alias_size_in_bytes
    plan = (planned.tpu_cycles if backend == "tpu" else planned.gpu_bytes)(compiled.as_text())
    return Compiled(
        temporaries=peak - arguments_and_results,
        peak=peak,
        planned=plan.amount,
        gathered=plan.gathered,
        missing=plan.missing,
        open_loops=plan.open_loops,
        parts=[(part.name, part.what, part.times, part.amount) for part in plan.parts[:_MOST_PARTS]],
        seconds=seconds,
        sent=[collective._asdict() for collective in collectives(compiled)],
    )


def _arguments(program: Program, devices: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    lengths = tuple(program.axes.values())
    grid = np.array(devices[: math.prod(lengths)]).reshape(lengths)
    mesh = Mesh(grid, tuple(program.axes), axis_types=(AxisType.Auto,) * len(lengths))
    specs = program.specs or [P()] * len(program.arguments)
    return [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for (shape, dtype), spec in zip(program.arguments, specs, strict=True)
    ]


def named_call(call: str, arguments: Sequence[str], wrt: Sequence[int], options: dict[str, Any]) -> Program:
    """A call of a named function; with `wrt`, the sum of its result and the gradient with respect to `wrt`."""
    function = partial(_named(call), **options)
    if not wrt:
        return Program(function, [described(text) for text in arguments])
    total = jax.value_and_grad(lambda *arrays: jnp.sum(function(*arrays)), tuple(wrt))
    return Program(total, [described(text) for text in arguments])


_DTYPES = {"f": "float", "s": "int", "u": "uint", "bf": "bfloat", "pred": "bool"}


def described(text: str) -> tuple[tuple[int, ...], Any]:
    """Parses a shape and dtype such as "bf16[8192,128256]"."""
    found = re.fullmatch(r"(bf|f|s|u|pred)(\d*)\[([\d,]*)\]", text.replace(" ", ""))
    if found is None:
        raise ValueError(f"{text!r} describes no array: write it as bf16[8192,128256], s32[8192], f32[] or pred[8]")
    return tuple(int(n) for n in found[3].split(",") if n), jnp.dtype(_DTYPES[found[1]] + found[2])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line that the module's docstring shows."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.aot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("functions", nargs="+", help="module:function or file.py:function; ratios are to the first")
    parser.add_argument(
        "--args", nargs="+", required=True, help="the arrays, as bf16[8192,128256] s32[8192] f32[] pred[8]"
    )
    parser.add_argument("--wrt", type=int, nargs="+", default=[], help="value and gradient with respect to these")
    parser.add_argument("--options", type=json.loads, default={}, help='keywords, as \'{"reduction": "mean"}\'')
    parser.add_argument("--on", nargs="+", choices=PLATFORMS, default=[*PLATFORMS], help="default: all")
    parser.add_argument("--parts", type=int, default=0, help="how many of the most expensive parts to show")
    options = parser.parse_args(arguments)
    for platform in options.on:
        if package := missing(platform):
            parser.error(f'{platform} needs {package}, which is not installed: pip install -e ".[test,aot]"')
    with Compilers() as compilers:
        for platform in options.on:
            first = None
            for name in options.functions:
                call = {"call": name, "arguments": options.args, "wrt": options.wrt, "options": options.options}
                result = compilers.compiled(platform, "tools.aot:named_call", **call)
                first = first or result
                print(f"{platform:7}  {name}: {_in_words(platform, result, first)}", flush=True)
                for part, what, times, amount in result.parts[: options.parts]:
                    print(f"{amount or 0:24,}  {times:5} x {what} ({part})")


def _in_words(platform: str, result: Compiled, first: Compiled) -> str:
    if result.error:
        return result.error
    is_tpu = PLATFORMS[platform].backend == "tpu"
    words = f"{result.planned / 1e6:.3f} million cycles" if is_tpu else f"{result.planned / 1e9:.3f} GB moved"
    words += f" ({result.planned / first.planned:.2f})" if first.planned else ""
    words += f", {result.temporaries / 2**20:.3f} MiB of temporaries; compiled in {result.seconds:.1f} s"
    words += f"; {result.gathered / 1e9:.3f} GB are whole operands of gathers" if result.gathered else ""
    missing = ", ".join(f"{times} x {what}" for what, times in result.missing.items())
    words += f"; without an estimate: {missing}" if missing else ""
    return words + (f"; {result.open_loops} open loops, counted once" if result.open_loops else "")


if __name__ == "__main__":
    main()
