"""Times losses in turns in one process, measures their memory, and compares them with the loss in float64."""

from __future__ import annotations

import argparse
import gc
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.markdown import Markdown

from benchmarks import contenders, measure, report
from benchmarks.cases import preset
from benchmarks.machine import describe_machine
from benchmarks.picture import write_report

DONE, NOT_ALL_RUN = 0, 3


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny cases: seconds")
    parser.add_argument("--cases", type=re.compile, default=re.compile(""), help="only those whose name it matches")
    parser.add_argument("--contenders", type=re.compile, default=re.compile(""), help="likewise; floors always run")
    parser.add_argument("--rounds", type=int, default=measure.MOST_ROUNDS, help="at most, per case (%(default)s)")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no case is begun")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json after each case; at the end .md and .png too")
    parser.add_argument("--resume", action="store_true", help="keeps the cases that OUTPUT.json has, and runs the rest")
    options = parser.parse_args(arguments)
    if options.resume and options.output is None:
        parser.error("--resume needs --output")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options, start = parse(arguments), time.monotonic()
    # Wide enough for the tables where the output is no terminal.
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
    everybody = [c for c in contenders.everybody() if c.role == "floor" or options.contenders.search(c.name)]
    absent = {c.name: reason for c in everybody if (reason := c.why_absent())}
    for name, reason in absent.items():
        console.print(f"absent: {name}: {reason}", soft_wrap=True)
    run: dict[str, Any] = {"machine": describe_machine(), "absent": absent, "not_run": {}, "cases": {}, "results": []}
    path = options.output.with_name(options.output.name + ".json") if options.output else None
    is_old = path is not None and path.exists()
    if options.resume and is_old:
        run = _resumed(report.read_json(path), run)

    # The garbage collector runs before each case; it need not search all that the imports made.
    gc.freeze()
    cases = preset(quick=options.quick, on_cpu=jax.default_backend() == "cpu")
    was_late = False
    for case in [c for c in cases if options.cases.search(c.name) and c.name not in run["cases"]]:
        is_late = time.monotonic() - start > options.budget
        was_late |= is_late
        reason = f"the budget of {options.budget:.0f} s was spent" if is_late else None
        if reason is None:
            try:
                takers = [c for c in everybody if c.name not in absent and c.takes(case)]
                run["cases"][case.name], lines = measure.run_case(case, takers, options.rounds)
                run["results"] += lines
                record = report.records(run)[-1]
                console.print(Markdown("\n".join(report.details([record]))))
                for entry in record["failed"]:
                    console.print(f"failed: {entry['name']}: {entry['failed']}", soft_wrap=True)
            except Exception as error:  # such as no memory for its data; the next case may fit
                reason = measure.describe(error)
        if reason is not None:
            run["not_run"][case.name] = reason
            console.print(f"not run: {case.name}: {reason}", soft_wrap=True)
        if path is not None and (run["cases"] or not is_old):  # `--budget 0` empties no file
            report.write_json(path, run)
    if options.output is not None and run["cases"]:
        write_report(run, options.output)
    # Not for a case that failed: it would fail again.
    return NOT_ALL_RUN if was_late else DONE


def _resumed(before: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """The run in a file, to be continued."""
    if any(before["machine"][key] != run["machine"][key] for key in ("device", "versions")):
        raise SystemExit("--resume: the file is of another machine or other versions")
    return {**before, "machine": run["machine"], "absent": run["absent"], "not_run": {}}
