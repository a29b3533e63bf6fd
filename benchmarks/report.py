"""The tables and the picture of one or several runs on one machine: `python -m benchmarks.report FILE…`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import picture, results
from benchmarks.results import find
from benchmarks.units import error, mebibytes, milliseconds, ratio, table

Record = Mapping[str, Any]


def write_report(run: Record, prefix: Path) -> list[Path]:
    """Writes PREFIX.json, PREFIX.md and PREFIX.png."""
    paths = [prefix.with_name(prefix.name + suffix) for suffix in (".json", ".md", ".png")]
    results.write(paths[0], dict(run))
    paths[1].write_text(markdown(run, paths[2].name), encoding="utf-8")
    picture.draw(run, paths[2])
    return paths


def markdown(run: Record, picture_name: str) -> str:
    machine = run["machine"]
    commit = f"; commit {machine['commit']}" if machine["commit"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    head = [
        f"# Measured on {machine['device']}",
        "",
        f"{machine['date']}, {machine['cores']} cores, {machine['system']}; {versions}{commit}.",
        "[How to read the columns](../README.md#the-columns).",
        "",
        f"![Time and memory beside jxent's]({picture_name})",
    ]
    named = [
        *_bullets("Absent", [f"{name}: {reason}" for name, reason in run["absent"].items()]),
        *_bullets("Failed", [f"{case}, {name}: {reason}" for case, name, reason in results.failures(run["cases"])]),
        *_bullets("Not run", [f"{name}: {reason}" for name, reason in run["not_run"].items()]),
    ]
    tables = ["", "## In brief", "", *brief(run), "", "## Everybody", "", *details(run), *named]
    return "\n".join([*head, *tables]) + "\n"


def _bullets(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *[f"- {line}" for line in lines]] if lines else []


def brief(run: Record) -> list[str]:
    header = ["case", "best peer", "jxent ms", "÷ best peer", "÷ optax", "÷ floor"]
    header += ["jxent extra MiB", "best peer", "optax", "jxent error", "best peer", "optax"]
    rows = []
    for record in run["cases"]:
        ours, optax = find(record, "jxent"), find(record, results.REFERENCE)
        peer = find(record, record["best_peer"])
        if ours is None:
            continue
        three = (ours, peer, optax)
        rows.append(
            [
                record["name"],
                record["best_peer"] or "–",
                milliseconds(ours["median"]),
                *[ratio(ours["ratios"][to]) for to in ("best_peer", "optax", "floor")],
                *[mebibytes(entry["extra_bytes"] if entry else None) for entry in three],
                *[error(worst_error(entry) if entry else None) for entry in three],
            ]
        )
    return table(header, rows, left=2)


def worst_error(entry: Record) -> float | None:
    errors = [entry.get("loss_error"), entry.get("gradient_error")]
    return max((e for e in errors if e is not None), default=None)


def details(run: Record) -> list[str]:
    header = ["case", "contender", "ms", "quartiles", "÷ best peer", "÷ optax", "÷ floor", "extra MiB", "planned MiB"]
    header += ["kept MiB", "page faults", "compile s", "loss error", "gradient error"]
    rows = []
    for record in run["cases"]:
        timed = [entry for entry in record["contenders"] if entry["median"] is not None]
        for entry in sorted(timed, key=lambda entry: entry["median"]):
            compiled, faults = entry.get("compile_seconds"), entry["faults"]
            rows.append(
                [
                    record["name"],
                    entry["name"] + (" (wrong)" if entry["wrong"] else ""),
                    milliseconds(entry["median"]),
                    f"{milliseconds(entry['q1'])} … {milliseconds(entry['q3'])}",
                    *[ratio(entry["ratios"][to]) for to in ("best_peer", "optax", "floor")],
                    *[mebibytes(entry.get(key)) for key in ("extra_bytes", "temp_bytes", "residual_bytes")],
                    "–" if faults is None else f"{faults:.0f}",
                    "–" if compiled is None else f"{compiled:.2f}",
                    error(entry.get("loss_error")),
                    error(entry.get("gradient_error")),
                ]
            )
    return table(header, rows, left=2)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="JSON files of runs on the same machine")
    parser.add_argument("--output", type=Path, help="prefix of what is written (default: that of the first file)")
    options = parser.parse_args(arguments)
    runs = [results.read(path) for path in options.files]
    run = results.merge([{**run, "cases": [results.summarise(r) for r in run["cases"]]} for run in runs])
    for path in write_report(run, options.output or options.files[0].with_suffix("")):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
