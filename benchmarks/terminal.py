"""What a run shows while it goes: a table per case, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.units import error, mebibytes, milliseconds, ratio

COLUMNS = (
    "",
    "ms",
    "quartiles",
    "÷ peer",
    "÷ optax",
    "÷ floor",
    "extra MiB",
    "planned",
    "kept",
    "compile s",
    "loss err",
    "grad err",
)


def make_console() -> Console:
    console = Console()
    # Where nobody sees a terminal, a table is not to be folded to 80 columns.
    return console if console.is_terminal else Console(width=160)


def progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def case_table(record: Mapping[str, Any]) -> Table:
    table = Table(title=f"{record['name']}  ({record['rounds']} rounds)", title_justify="left", title_style="bold")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("", "quartiles") else "right")
    timed = [entry for entry in record["contenders"] if entry["median"] is not None]
    for entry in sorted(timed, key=lambda entry: entry["median"]):
        style = {"ours": "bold", "floor": "dim"}.get(entry["role"], "")
        table.add_row(*_cells(entry), style=style)
    for entry in record["contenders"]:
        if "failed" in entry:
            table.add_row(entry["name"], "failed", entry["failed"], style="red")
    return table


def _cells(entry: Mapping[str, Any]) -> list[str]:
    compiled = entry.get("compile_seconds")
    return [
        entry["name"] + (" (wrong)" if entry["wrong"] else ""),
        milliseconds(entry["median"]),
        f"{milliseconds(entry['q1'])} … {milliseconds(entry['q3'])}",
        ratio(entry["ratios"]["best_peer"]),
        ratio(entry["ratios"]["optax"]),
        ratio(entry["ratios"]["floor"]),
        mebibytes(entry["extra_bytes"]),
        mebibytes(entry.get("temp_bytes")),
        mebibytes(entry.get("residual_bytes")),
        "–" if compiled is None else f"{compiled:.2f}",
        error(entry.get("loss_error")),
        error(entry.get("gradient_error")),
    ]
