"""Runs one case: prepares and times everybody, measures memory, and compares with the loss in float64.

Memory is what a call takes by the operating system's account on the CPU, and by the device's elsewhere. The compiler's
own account (`temp_bytes`) lacks what XLA's libraries on the CPU allocate for themselves.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import truth
from benchmarks.cases import Case, Data, make_data, rows_of
from benchmarks.contenders import Contender, Program

MOST_ROUNDS, FEWEST_ROUNDS = 25, 5
SECONDS = 4.0  # of rounds per case; more if the fewest rounds take longer
SHORTEST_SAMPLE = 0.005  # seconds; what is faster is called several times per sample
PAUSE = 0.002  # seconds before a sample, in which the threads of the previous contender go to sleep
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # man 5 proc, /proc/pid/clear_refs

Record = dict[str, Any]


def run_case(
    case: Case, contenders: Sequence[Contender], most_rounds: int = MOST_ROUNDS, data: Data | None = None
) -> tuple[Record, list[Record]]:
    """The case as the JSON file has it, and a line for each contender; one that fails has the reason in its line."""
    data = make_data(case) if data is None else data
    entries: dict[str, Record] = {}
    programs: dict[str, Program] = {}
    once: dict[str, float] = {}
    for contender in contenders:
        entry = entries[contender.name] = {"case": case.name, "name": contender.name, "role": contender.role}
        try:
            program = contender.prepare(case, data)
            _check_fits(program)
            program.call()
            once[contender.name] = _seconds_per_call(program.call, 1)
        except Exception as error:  # whatever it is, the others go on
            entry["failed"] = describe(error)
            continue
        programs[contender.name] = program

    rounds = how_many_rounds(most_rounds, sum(PAUSE + s * _repeats(s) for s in once.values()))
    samples, failed = _interleaved(programs, once, rounds, random.Random(case.name))
    for name, reason in failed.items():
        entries[name]["failed"] = reason
        del programs[name]
    for name in programs:
        quartiles = map(float, np.percentile(samples[name], (25, 50, 75)))
        entries[name] |= zip(("q1", "median", "q3"), quartiles, strict=True)
    gc.collect()  # so that nothing of the rounds is freed while memory is measured
    for name, program in list(programs.items()):
        try:
            entries[name] |= {
                "extra_bytes": None if entries[name]["role"] == "floor" else _extra_bytes(program),
                "temp_bytes": program.temp_bytes,
                "residual_bytes": program.residual_bytes,
                "compile_seconds": program.compile_seconds,
            }
        except Exception as error:
            entries[name]["failed"] = describe(error)
            del programs[name]
    checked = [c for c in contenders if c.name in programs and c.role != "floor"]
    _measure_errors(case, checked, programs, data, entries)
    return {**vars(case), "rounds": rounds, "checked_rows": truth.checked_rows(case)}, list(entries.values())


def how_many_rounds(most: int, seconds: float) -> int:
    """As many rounds of `seconds` each as fit; at least five, unless fewer were asked for."""
    return min(most, max(FEWEST_ROUNDS, int(SECONDS / max(seconds, 1e-9))))


def _interleaved(
    programs: Mapping[str, Program], once: Mapping[str, float], rounds: int, rng: random.Random
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds per call: in every round a sample of each program, in a random order; and why a program failed, if one did:
    on a device, the memory that others keep may leave it none.
    """
    samples: dict[str, list[float]] = {name: [] for name in programs}
    failed: dict[str, str] = {}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name in rng.sample(list(programs), len(programs)):
                if name in failed:
                    continue
                time.sleep(PAUSE)
                try:
                    samples[name].append(_seconds_per_call(programs[name].call, _repeats(once[name])))
                except Exception as error:
                    failed[name] = describe(error)
    finally:
        gc.enable()
    return samples, failed


def _seconds_per_call(call: Callable[[], Any], repeats: int) -> float:
    """Includes freeing the result."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _repeats(seconds: float) -> int:
    return max(1, round(SHORTEST_SAMPLE / max(seconds, 1e-7)))


def _measure_errors(
    case: Case,
    contenders: Sequence[Contender],
    programs: Mapping[str, Program],
    data: Data,
    entries: Mapping[str, Record],
) -> None:
    """Adds the errors to the entries. Large cases are compared on their first rows, in separate programs."""
    rows = truth.checked_rows(case)
    few = rows < case.shape[0]
    small, small_data = (case.with_rows(rows), rows_of(data, rows)) if few else (case, data)
    right = truth.find_truth(small, small_data)
    for contender in contenders:
        entry = entries[contender.name]
        try:
            program = contender.prepare(small, small_data) if few else programs[contender.name]
            if program.restore is not None:
                program.restore()
            loss, gradients = program.outputs(program.call())
            entry["loss_error"] = truth.loss_error(loss, right)
            entry["gradient_error"] = truth.gradient_error(gradients, right)
        except Exception as error:
            entry["failed"] = describe(error)


def describe(error: Exception) -> str:
    """The first line of what went wrong."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"


def available_bytes() -> int | None:
    """The memory that is still free on the device, or None where that is unknown."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        info = Path("/proc/meminfo")
        return _field_bytes(info, "MemAvailable") if info.exists() else None
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def _check_fits(program: Program) -> None:
    """Raises MemoryError if the planned memory is not free: on a CPU the process would swap or be killed."""
    needed, available = (program.temp_bytes or 0) + program.output_bytes, available_bytes()
    if available is not None and needed > available:
        raise MemoryError(f"needs {needed / 2**30:.1f} GiB beside its arguments, {available / 2**30:.1f} are available")


def _extra_bytes(program: Program) -> int | None:
    """Memory beyond arguments and results: as measured, and at least what the compiler planned."""
    if program.device_growth is not None:
        growth = program.device_growth()
    else:
        growth = (_resident_growth if jax.default_backend() == "cpu" else _device_growth)(program.call)
    measured = None if growth is None else max(0, growth - program.output_bytes)
    return max((known for known in (measured, program.temp_bytes) if known is not None), default=None)


def _resident_growth(call: Callable[[], Any]) -> int | None:
    """How much one call raises peak resident memory, results included; None where that is unknown."""
    if not os.access(CLEAR, os.W_OK):
        return None
    # Otherwise memory that the C library kept after freeing would hide new allocations.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    CLEAR.write_text(RESET_PEAK, encoding="ascii")
    status = CLEAR.with_name("status")
    before = _field_bytes(status, "VmRSS")
    call()
    return max(0, _field_bytes(status, "VmHWM") - before)


def _device_growth(call: Callable[[], Any]) -> int | None:
    """None if an earlier call had a higher peak, which cannot be reset."""
    device = jax.devices()[0]
    before = device.memory_stats()
    call()
    after = device.memory_stats()
    if not before or not after or after["peak_bytes_in_use"] <= before["peak_bytes_in_use"]:
        return None
    return after["peak_bytes_in_use"] - before["bytes_in_use"]


def _field_bytes(path: Path, field: str) -> int:
    """A field of a file in /proc, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", path.read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise OSError(f"{path} has no {field}")
    return int(found[1]) * 1024
