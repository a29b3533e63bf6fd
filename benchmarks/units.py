"""Numbers as the tables show them, and the tables."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "–"


def milliseconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{_three_digits(seconds * 1e3)}"


def ratio(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def mebibytes(size: float | None) -> str:
    return NOTHING if size is None else f"{_three_digits(size / 2**20)}"


def error(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e+")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Of Markdown; the first `left` columns are text, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    if value < 0.005:
        return "<0.01"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
