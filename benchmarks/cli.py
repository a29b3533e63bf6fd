"""The command line: what to run, for how long, and where to write it."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import contenders, memory, report, results
from benchmarks.cases import Case, preset
from benchmarks.contenders import Contender
from benchmarks.machine import describe_machine
from benchmarks.measure import Limits, describe, run_case
from benchmarks.terminal import case_table, make_console, progress_bar

DONE, NOT_ALL_RUN = 0, 3


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", const="quick", dest="preset", help="tiny cases: seconds")
    size.add_argument("--full", action="store_const", const="full", dest="preset", help="all that the machine holds")
    parser.set_defaults(preset="default")
    parser.add_argument("--cases", type=re.compile, default=re.compile(""), help="only those whose name it matches")
    parser.add_argument("--contenders", type=re.compile, default=re.compile(""), help="likewise; floors always run")
    parser.add_argument("--rounds", type=int, default=Limits.rounds, help="at most, per case (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=Limits.seconds, help="of rounds per case (default: %(default)s)"
    )
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no case is begun")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json after each case, at the end also .md and .png")
    parser.add_argument("--resume", action="store_true", help="keeps the cases that OUTPUT.json has, and runs the rest")
    parser.add_argument("--list", action="store_true", help="only names the cases and the contenders")
    options = parser.parse_args(arguments)
    if options.resume and options.output is None:
        parser.error("--resume needs --output")
    if options.output is not None and options.output.suffix == ".json":
        options.output = options.output.with_suffix("")
    return options


def choose(options: argparse.Namespace) -> tuple[list[Case], list[Contender], dict[str, str]]:
    """Cases, contenders, and who is absent with the reason."""
    cases = [c for c in preset(options.preset, accelerator=not on_cpu()) if options.cases.search(c.name)]
    everybody = [c for c in contenders.everybody() if c.role == "floor" or options.contenders.search(c.name)]
    absent = {c.name: reason for c in everybody if (reason := c.why_absent())}
    return cases, [c for c in everybody if c.name not in absent], absent


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def main(arguments: Sequence[str] | None = None) -> int:
    options, console = parse(arguments), make_console()
    cases, present, absent = choose(options)
    if options.list:
        console.print(*[case.name for case in cases], "", *[c.name for c in present], sep="\n")
    for name, reason in absent.items():
        console.print(f"absent: {name}: {reason}")
    if options.list:
        return DONE

    run = {
        "machine": describe_machine(),
        "preset": options.preset,
        "absent": absent,
        "cases": [],
        "not_run": {},
    }
    path = options.output.with_name(options.output.name + ".json") if options.output else None
    if path is not None and options.resume and path.exists():
        run = results.merge([results.read(path), run])
        run["not_run"] = {}
    measure_all(run, cases, present, options, path, console)

    for name, reason in run["not_run"].items():
        console.print(f"not run: {name}: {reason}")
    if path is not None and run["cases"]:
        for written in report.write_report(run, options.output):
            console.print(f"wrote {written}")
    return NOT_ALL_RUN if run["not_run"] else DONE


def measure_all(
    run: dict[str, Any],
    cases: Sequence[Case],
    present: Sequence[Contender],
    options: argparse.Namespace,
    path: Path | None,
    console: Any,
) -> None:
    """Adds the cases to the run, each as soon as it is measured to the file too."""
    limits, start = Limits(options.rounds, options.seconds), time.monotonic()
    done = {record["name"] for record in run["cases"]}
    with progress_bar(console) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=case.name)
            reason = why_not(case, time.monotonic() - start, options.budget)
            if case.name not in done and reason is None:
                try:
                    record = results.summarise(run_case(case, [c for c in present if c.takes(case)], limits))
                except Exception as error:  # such as no memory for its data: the next one may fit
                    reason = describe(error)
                else:
                    run["cases"].append(record)
                    console.print(case_table(record))
            if case.name not in done and reason is not None:
                run["not_run"][case.name] = reason
            if path is not None:
                results.write(path, run)
            progress.advance(task)


def why_not(case: Case, spent: float, budget: float) -> str | None:
    available = memory.available_bytes()
    # The arguments, torch's copy of a kernel, and the gradients, before anybody needs memory of their own.
    needed = 3 * case.argument_bytes
    if available is not None and needed > available:
        return f"needs {needed / 2**30:.0f} GiB, {available / 2**30:.0f} are available"
    return f"the budget of {budget:.0f} s was spent" if spent > budget else None
