"""One case: everybody readied, timed in rounds, weighed and compared with the truth."""

from __future__ import annotations

import gc
import random
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import memory, truth
from benchmarks.cases import Case
from benchmarks.contenders.base import Contender, Program
from benchmarks.data import Data, make_data, rows_of

FEWEST_ROUNDS = 5
SHORTEST_SAMPLE = 0.005  # seconds; what is faster is called several times a sample
PAUSE = 0.002  # seconds before a sample, for the threads of the contender before it to go to sleep


@dataclass(frozen=True)
class Limits:
    """Of one case: at most so many rounds, and no more of them than fit into so many seconds, but five."""

    rounds: int = 25
    seconds: float = 4.0


def run_case(case: Case, contenders: Sequence[Contender], limits: Limits, data: Data | None = None) -> dict[str, Any]:
    """The record of a case, as it goes to the JSON file; whoever fails is in it with the reason."""
    data = make_data(case) if data is None else data
    entries: dict[str, dict[str, Any]] = {}
    programs: dict[str, Program] = {}
    once: dict[str, float] = {}
    rng = random.Random(case.name)

    for contender in contenders:
        entry = entries[contender.name] = {"name": contender.name, "role": contender.role}
        try:
            program = contender.prepare(case, data)
            check_fits(program)
            program.call()
            once[contender.name] = _timed(program.call, 1)[0]
        except Exception as error:  # theirs; whatever it is, the others go on
            entry["failed"] = describe(error)
            continue
        programs[contender.name] = program
        entry.update(
            compile_seconds=program.compile_seconds,
            temp_bytes=program.temp_bytes,
            residual_bytes=program.residual_bytes,
            output_bytes=program.output_bytes,
        )

    rounds = how_many_rounds(limits, sum(map(_sample_seconds, once.values())))
    for name, samples in interleaved(programs, once, rounds, rng).items():
        entries[name].update(samples)
    gc.collect()  # so that nothing of the rounds is freed while memory is watched
    for name, program in programs.items():
        entries[name]["growth_bytes"] = memory.growth_bytes(program)
    measure_errors(case, [c for c in contenders if c.name in programs and c.role != "floor"], programs, data, entries)
    return {
        "name": case.name,
        "kind": case.kind,
        "shape": case.shape,
        "dtype": case.dtype,
        "mode": case.mode,
        "spread": case.spread,
        "logits_bytes": case.logits_bytes,
        "checked_rows": truth.checked_rows(case),
        "rounds": rounds,
        "contenders": list(entries.values()),
    }


def how_many_rounds(limits: Limits, seconds: float) -> int:
    """Of so many seconds each: as many as fit, at least five unless fewer were asked for."""
    fit = int(limits.seconds / max(seconds, 1e-9))
    return min(limits.rounds, max(FEWEST_ROUNDS, fit))


def interleaved(
    programs: Mapping[str, Program], once: Mapping[str, float], rounds: int, rng: random.Random
) -> dict[str, dict[str, list[float]]]:
    """Seconds and minor page faults per call, a sample of each program in every round, in an order drawn anew."""
    result: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "page_faults": []} for name in programs}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name in rng.sample(list(programs), len(programs)):
                time.sleep(PAUSE)
                seconds, faults = _timed(programs[name].call, _repeats(once[name]))
                result[name]["seconds"].append(seconds)
                result[name]["page_faults"].append(faults)
    finally:
        gc.enable()
    return result


def _timed(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Seconds and page faults of one call. Its result is let go within that time: it is a part of what it costs."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    seconds = time.perf_counter() - start
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return seconds / repeats, faults / repeats


def _repeats(seconds: float) -> int:
    return max(1, round(SHORTEST_SAMPLE / max(seconds, 1e-7)))


def _sample_seconds(seconds: float) -> float:
    return PAUSE + seconds * _repeats(seconds)


def check_fits(program: Program) -> None:
    """Raises MemoryError where the compiler already knows that it will not: a CPU would swap, or kill us."""
    needed, available = (program.temp_bytes or 0) + program.output_bytes, memory.available_bytes()
    if available is not None and needed > available:
        raise MemoryError(f"needs {needed / 2**30:.1f} GiB beside its arguments, {available / 2**30:.1f} are available")


def measure_errors(
    case: Case,
    contenders: Sequence[Contender],
    programs: Mapping[str, Program],
    data: Data,
    entries: Mapping[str, dict[str, Any]],
) -> None:
    """Adds the errors to the entries; of the first rows only, in programs of their own, where there are too many."""
    rows = truth.checked_rows(case)
    few = rows < case.shape[0]
    small, small_data = (case.with_rows(rows), rows_of(case, data, rows)) if few else (case, data)
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
