"""The file of a run, the numbers derived from it, and its page.

A run is {"machine": …, "absent": …, "not_run": …, "cases": {name: …}, "results": [one for each case and contender]}.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REFERENCE = "optax"  # what "÷ optax" means: integer labels where there are ids
# For each dtype, the largest relative errors of loss and gradient that are rounding and not a mistake. In bfloat16,
# logits that a matrix product returned in that dtype are a few hundredths off where they are large.
TOLERANCES = {"float32": (1e-4, 5e-3), "bfloat16": (2e-2, 5e-2)}
RESULTS = Path(__file__).parent / "results"
NOTHING = "–"

Record = dict[str, Any]


def records(run: Mapping[str, Any]) -> list[Record]:
    """Each case with its contenders, the fastest first: who is wrong, the best peer, and ratios."""
    return [_record(run, name, case) for name, case in run["cases"].items()]


def _record(run: Mapping[str, Any], name: str, case: Mapping[str, Any]) -> Record:
    entries = [{**e, "wrong": _is_wrong(e, case["dtype"])} for e in run["results"] if e["case"] == name]
    timed = sorted((e for e in entries if "median" in e), key=lambda entry: entry["median"])
    by_name = {entry["name"]: entry for entry in timed}
    peers = [e["name"] for e in timed if e["role"] == "peer" and not e["wrong"]]
    best_peer = peers[0] if peers else None
    for entry in timed:
        entry["ratios"] = [
            entry["median"] / by_name[name]["median"] if name in by_name else None
            for name in (best_peer, REFERENCE, "floor")
        ]
    failed = [e for e in entries if "failed" in e]
    return {**case, "name": name, "best_peer": best_peer, "timed": by_name, "failed": failed}


def _is_wrong(entry: Mapping[str, Any], dtype: str) -> bool:
    """Whether an error beyond rounding was found; NaN is one. Floors have no result to be wrong."""
    errors = entry.get("loss_error"), entry.get("gradient_error")
    return any(error is not None and not error <= most for error, most in zip(errors, TOLERANCES[dtype], strict=True))


def json_lines(value: Any, depth: int = 2) -> str:
    """JSON with a line for each item down to this depth."""
    if not depth or not value or not isinstance(value, dict | list):
        return json.dumps(value)
    is_dict = isinstance(value, dict)
    items = (
        [f"{json.dumps(k)}: {json_lines(v, depth - 1)}" for k, v in value.items()]
        if is_dict
        else map(json.dumps, value)
    )
    inside = ",\n".join(items).replace("\n", "\n ")
    return f"{{\n {inside}\n}}" if is_dict else f"[\n {inside}\n]"


def write_json(path: Path, run: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(json_lines(run) + "\n", encoding="utf-8")
    beside.replace(path)


def read_json(path: Path) -> Record:
    return json.loads(path.read_text(encoding="utf-8"))


def markdown(run: Mapping[str, Any], picture_name: str) -> str:
    machine, cases = run["machine"], records(run)
    commit = f"; commit {machine['commit']}" if machine["commit"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    failed = [f"{e['case']}, {e['name']}: {e['failed']}" for record in cases for e in record["failed"]]
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
        *_bullets("Failed", failed),
        *_bullets("Not run", [f"{name}: {reason}" for name, reason in run["not_run"].items()]),
    ]
    tables = ["", "## In brief", "", *brief(cases), "", "## Everybody", "", *details(cases), *named]
    return "\n".join([*head, *tables]) + "\n"


def _bullets(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *[f"- {line}" for line in lines]] if lines else []


def brief(cases: Sequence[Record]) -> list[str]:
    """A row for each case: jxent beside the best peer and optax."""
    header = ["case", "best peer", "jxent ms", "÷ best peer", "÷ optax", "÷ floor"]
    header += ["jxent extra MiB", "best peer", "optax", "jxent error", "best peer", "optax"]
    rows = []
    for record in cases:
        ours, peer, optax = (record["timed"].get(name) for name in ("jxent", record["best_peer"], REFERENCE))
        if ours is not None:
            memory = [mebibytes(entry and entry["extra_bytes"]) for entry in (ours, peer, optax)]
            errors = [_error(entry and _worst_error(entry)) for entry in (ours, peer, optax)]
            named = [record["name"], record["best_peer"] or NOTHING, milliseconds(ours["median"])]
            rows.append([*named, *map(ratio, ours["ratios"]), *memory, *errors])
    return table(header, rows, left=2)


def _worst_error(entry: Mapping[str, Any]) -> float | None:
    errors = [entry.get("loss_error"), entry.get("gradient_error")]
    return max((e for e in errors if e is not None), default=None)


def details(cases: Sequence[Record]) -> list[str]:
    """A row for each case and contender."""
    header = ["case", "contender", "ms", "quartiles", "÷ best peer", "÷ optax", "÷ floor", "extra MiB", "planned MiB"]
    header += ["kept MiB", "compile s", "loss error", "gradient error"]
    rows = []
    for record in cases:
        for entry in record["timed"].values():
            compiled = entry["compile_seconds"]
            rows.append(
                [
                    record["name"],
                    entry["name"] + (" (wrong)" if entry["wrong"] else ""),
                    milliseconds(entry["median"]),
                    f"{milliseconds(entry['q1'])} … {milliseconds(entry['q3'])}",
                    *map(ratio, entry["ratios"]),
                    *[mebibytes(entry[key]) for key in ("extra_bytes", "temp_bytes", "residual_bytes")],
                    NOTHING if compiled is None else f"{compiled:.2f}",
                    _error(entry.get("loss_error")),
                    _error(entry.get("gradient_error")),
                ]
            )
    return table(header, rows, left=2)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Markdown; the first `left` columns are text, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def milliseconds(seconds: float) -> str:
    return _three_digits(seconds * 1e3)


def mebibytes(size: float | None) -> str:
    return NOTHING if size is None else _three_digits(size / 2**20)


def ratio(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _error(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e+")


def _three_digits(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return (
        "<0.01"
        if value < 0.005
        else f"{value:.2f}"
        if value < 10
        else f"{value:.1f}"
        if value < 100
        else f"{value:.0f}"
    )
