"""Programs for accelerators that are not there: compiled by XLA for TPU and GPU as it ships for them, never run.

    python -m tools.aot my_losses.py:old my_losses.py:new --args 'bf16[8192,128256]' 's32[8192]' --wrt 0 --parts 8

prints what each compiler plans for these functions of arrays: cycles (TPU), bytes moved (GPU) and temporary memory, with the
dearest parts of it. With `--wrt` it is value and gradient; what is no single number is summed first. From a script:

    with Compilers() as compilers:
        compiled = compilers.compiled("TPU v5e", "my_losses.py:program", dtype="bfloat16")

where `my_losses.program(dtype="bfloat16")` returns a `Program`. libtpu and the CUDA plugin compile for a described device, each in
a process of its own, which the environment alone sets up, whatever the process that asks has done with jax before.
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


class Program(NamedTuple):
    """What to compile.

    Attributes:
        function: of arrays.
        arguments: shape and dtype of each.
        axes: of the mesh of the devices that take part, with their sizes.
        specs: how each argument is split over them; None: not at all.
    """

    function: Callable[..., Any]
    arguments: Sequence[tuple[tuple[int, ...], Any]]
    axes: Mapping[str, int] = MappingProxyType({"all": 1})
    specs: Sequence[P] | None = None


class Compiled(NamedTuple):
    """What the compiler says.

    Attributes:
        temporaries: in bytes, `peak` without arguments and results.
        peak: in bytes, what is allocated, of everything.
        planned: cycles on a TPU, bytes moved on a GPU, as `tools.planned` reads them; and so are the next four.
        gathered: of the planned bytes, how many are whole operands of gathers.
        missing: what has no estimate → how often it runs.
        open_loops: how many loops turn as often as the data say, and were counted once.
        parts: name, operation, how often it runs, cycles or bytes, of the dearest.
        seconds: what compiling took.
        sent: the collectives, those of `tools.hlo`, as dicts.
        error: instead of all this, why it did not compile; RESOURCE_EXHAUSTED is in it where it does not fit.
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

    def compiled(self, platform: str, make_program: str, **options: Any) -> Compiled:
        """What a platform's compiler says of a program.

        Args:
            platform: one of `PLATFORMS`.
            make_program: "module:function" or "file.py:function", which returns a `Program`; the process that compiles calls it.
            options: its keywords, made of what JSON knows.

        Raises:
            RuntimeError: if that process ends.
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
            # It ends when nothing can follow on its stdin.
            self._processes[backend] = self._open.enter_context(process), log
        return self._processes[backend]


def serve() -> None:
    """Answers the requests of `Compilers`, a line each; whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for request in sys.stdin:
        platform, make_program, options = json.loads(request)
        try:
            answer = _compiled(platform, _named(make_program)(**options))
        except Exception as error:  # an answer too; the next request may do better
            traceback.print_exc()
            answer = Compiled(error=f"{type(error).__name__}: {str(error).split(chr(10), 1)[0]}")
        print(json.dumps(answer._asdict(), default=dict), file=answers, flush=True)


def _named(name: str) -> Any:
    """The function "module:function" or "file.py:function"; a file is run once."""
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
            # Else the next request would find what was made of it until then.
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
    # What is allocated is more than what is held at any time, if it has gaps; jax 0.10 does not tell it.
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
    """A call of a function by its name; with `wrt` the sum of what it returns, and the gradient by these arguments."""
    function = partial(_named(call), **options)
    if not wrt:
        return Program(function, [described(text) for text in arguments])
    total = jax.value_and_grad(lambda *arrays: jnp.sum(function(*arrays)), tuple(wrt))
    return Program(total, [described(text) for text in arguments])


_DTYPES = {"f": "float", "s": "int", "u": "uint", "bf": "bfloat", "pred": "bool"}


def described(text: str) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype, of "bf16[8192,128256]"."""
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
    parser.add_argument("--wrt", type=int, nargs="+", default=[], help="value and gradient, by these arguments")
    parser.add_argument("--options", type=json.loads, default={}, help='keywords, as \'{"reduction": "mean"}\'')
    parser.add_argument("--on", nargs="+", choices=PLATFORMS, default=[*PLATFORMS], help="default: all")
    parser.add_argument("--parts", type=int, default=0, help="shows so many of the dearest parts")
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
