"""From samples to medians and ratios, and the JSON file that holds it all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

REFERENCE = "optax"  # what "÷ optax" means: integer labels where there are ids
# By dtype, the largest relative errors of a loss and of a gradient that are rounding and not a mistake. In bfloat16,
# logits that a matrix product returned in that dtype are a few hundredths off where they are large.
TOLERANCES = {"float32": (1e-4, 5e-3), "bfloat16": (2e-2, 5e-2)}

Record = dict[str, Any]


def summarise(record: Record) -> Record:
    """The record of a case, with what follows from its samples: quartiles, ratios, extra memory, who is wrong."""
    entries = [_with_quartiles(entry) for entry in record["contenders"]]
    for entry in entries:
        entry["wrong"] = is_wrong(entry, record["dtype"])
        entry["extra_bytes"] = extra_bytes(entry)
    medians = {entry["name"]: entry["median"] for entry in entries if entry["median"] is not None}
    peers = [e["name"] for e in entries if e["role"] == "peer" and e["name"] in medians and not e["wrong"]]
    best_peer = min(peers, key=medians.__getitem__, default=None)
    floors = [e["name"] for e in entries if e["role"] == "floor" and e["name"] in medians]
    against = {"best_peer": best_peer, "optax": REFERENCE, "floor": floors[0] if floors else None}
    for entry in entries:
        entry["ratios"] = {
            to: entry["median"] / medians[name] if entry["median"] is not None and name in medians else None
            for to, name in against.items()
        }
    return {**record, "best_peer": best_peer, "contenders": entries}


def _with_quartiles(entry: Mapping[str, Any]) -> Record:
    samples = entry.get("seconds") or []
    quartiles = map(float, np.percentile(samples, (25, 50, 75))) if samples else (None,) * 3
    faults = entry.get("page_faults") or []
    return {
        **entry,
        **dict(zip(("q1", "median", "q3"), quartiles, strict=True)),
        "faults": float(np.median(faults)) if faults else None,
    }


def is_wrong(entry: Mapping[str, Any], dtype: str) -> bool:
    """Whether an error was found that is no rounding; NaN is one. Floors have no result to be wrong."""
    errors = entry.get("loss_error"), entry.get("gradient_error")
    return any(error is not None and not error <= limit for error, limit in zip(errors, TOLERANCES[dtype], strict=True))


def extra_bytes(entry: Mapping[str, Any]) -> int | None:
    """The memory beyond arguments and results: as measured, and at least what the compiler planned; None of a floor."""
    if entry["role"] == "floor":
        return None
    growth, temp = entry.get("growth_bytes"), entry.get("temp_bytes")
    known = [] if temp is None else [temp]
    if growth is not None:
        known.append(max(0, growth - entry["output_bytes"]))
    return max(known, default=None)


def find(record: Mapping[str, Any], name: str | None) -> Record | None:
    """The entry of a contender that was timed, or None."""
    named = (entry for entry in record["contenders"] if entry["name"] == name and entry.get("median") is not None)
    return next(named, None)


def write(path: Path, run: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def read(path: Path) -> Record:
    return json.loads(path.read_text(encoding="utf-8"))


def same_machine(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two runs may stand in one table."""
    return all(a["machine"][key] == b["machine"][key] for key in ("device", "platform", "versions"))


def merge(runs: Sequence[Record]) -> Record:
    """One run of several on the same machine with the same versions; of a case that is in more than one, the last."""
    first, *others = runs
    if not all(same_machine(first, other) for other in others):
        raise ValueError("these runs are of different machines or versions: each needs a report of its own")
    cases = {record["name"]: record for run in runs for record in run["cases"]}
    not_run = {name: reason for run in runs for name, reason in run["not_run"].items() if name not in cases}
    absent = {name: reason for run in runs for name, reason in run["absent"].items()}
    dates = sorted({run["machine"]["date"] for run in runs})
    commits = dict.fromkeys(run["machine"]["commit"] for run in runs if run["machine"]["commit"])
    return {
        **runs[-1],
        "machine": {**runs[-1]["machine"], "date": dates[-1], "commit": ", ".join(commits)},
        "absent": absent,
        "cases": list(cases.values()),
        "not_run": not_run,
    }


def failures(records: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Case, contender and reason."""
    return [(r["name"], e["name"], e["failed"]) for r in records for e in r["contenders"] if "failed" in e]
