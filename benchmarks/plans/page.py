"""The page of the plans: Markdown, from the records of `benchmarks/results/compilers.json`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.losses import LOSSES, THREE_PRODUCTS
from benchmarks.plans.cases import GROUPS
from benchmarks.report import table
from tools.aot import PLATFORMS

Record = Mapping[str, Any]
NOTHING = "–"
ABOUT = """\
Each program is compiled by XLA for the device it is for, and never run. XLA for TPU writes down how many cycles it
expects of each step of its schedule; XLA for GPU names what each kernel reads and writes. Here they are added up
([how](../../tools/planned.py)): million **cycles** on a TPU, **GB** moved on a GPU. **A plan is what the compiler
expects, not what a device takes**: it shows passes, copies and cliffs, and compares programs of one compiler; it says
nothing of a TPU beside a GPU, and a measurement on the device overrules it. A gather of one entry a row is not counted:
TPUs give no estimate for it, and on a GPU, where it would count its whole operand, that is taken off. **MiB** are
temporaries, what is needed beside arguments and results, by the compiler's own assignment of memory.

In each cell stand the peer and jxent, as *peer / jxent*; **÷** is jxent by the peer, below 1 where jxent is planned to
take less. Made by `python -m benchmarks.compilers`."""


def page(results: Mapping[str, Any]) -> str:
    """The whole page, of the groups that there are."""
    parts = ["# What compilers for TPU and GPU plan", ABOUT, *_made(results["made"])]
    by_group = {name: [r for r in results["programs"] if r["group"] == name] for name in GROUPS}
    for name, records in by_group.items():
        if records:
            tables = TABLES.get(name, _beside_the_peer)(records)
            parts += [f"## {GROUPS[name].title}", GROUPS[name].about, *tables, *_not_counted(records)]
    return "\n\n".join(parts) + "\n"


def _made(made: Mapping[str, Any]) -> list[str]:
    """When and with which versions; a line for all groups, or one for those made together."""
    groups_of: dict[str, list[str]] = {}
    for name, how in made.items():
        if how is not None:
            versions = ", ".join(f"{package} {version}" for package, version in how["versions"].items())
            groups_of.setdefault(f"{how['date']}, commit {how['commit']}, {versions}", []).append(GROUPS[name].title)
    if len(groups_of) == 1:
        return [f"{how}." for how in groups_of]
    return [f"{', '.join(titles)}: {how}." for how, titles in groups_of.items()]


def in_words(record: Record) -> str:
    """One record, on a line."""
    what = f"{record['platform']}: {_case(record)}, {record['who']}"
    if "error" in record:
        return f"{what}: {record['error']}"
    unit = "million cycles" if _is_tpu(record["platform"]) else "GB"
    return f"{what}: {_planned(record)} {unit}, {_mebibytes(record)} MiB"


def three_digits(value: float) -> str:
    """Three significant digits; all digits before the point, and at most five after it."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    if value < 1e-5:
        return "<0.00001"
    return f"{value:.{min(5, 2 - math.floor(math.log10(value)))}f}"


def amount(record: Record) -> float:
    """Million cycles, or GB without the operands of gathers."""
    if _is_tpu(record["platform"]):
        return record["planned"] / 1e6
    return (record["planned"] - record.get("gathered", 0)) / 1e9


def _planned(record: Record | None) -> str:
    return _or_error(record, lambda record: three_digits(amount(record)))


def _mebibytes(record: Record | None) -> str:
    return _or_error(record, lambda record: three_digits(record["temporaries"] / 2**20))


def _gibibytes(record: Record | None) -> str:
    return _or_error(record, lambda record: three_digits(record["temporaries"] / 2**30))


def _or_error(record: Record | None, show: Any) -> str:
    if record is None:
        return NOTHING
    if "error" in record:
        return "does not fit" if "RESOURCE_EXHAUSTED" in record["error"] else "does not compile"
    return show(record)


def _ratio(ours: Record | None, theirs: Record | None) -> float | None:
    if ours is None or theirs is None or "error" in ours or "error" in theirs:
        return None
    # Anything less is as good as nothing: the entries of a gather.
    return amount(ours) / max(amount(theirs), 1e-6)


def _ratio_in_words(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"{ratio:.2f}" if ratio < 100 else f"{ratio:,.0f}"


def _is_tpu(platform: str) -> bool:
    return PLATFORMS[platform].backend == "tpu"


def _case(record: Record) -> str:
    size = "×".join(map(str, record["shape"]))
    return f"{record['loss']}, {size}, {record['dtype']}, {record['mode']}"


def _peer(record: Record) -> str:
    return next(iter(LOSSES[record["loss"]].peers))


def _by_case(records: Sequence[Record]) -> dict[str, dict[tuple[str, str], Record]]:
    """Case → platform and who → record."""
    cases: dict[str, dict[tuple[str, str], Record]] = {}
    for record in records:
        cases.setdefault(_case(record), {})[record["platform"], record["who"]] = record
    return cases


def _beside_the_peer(records: Sequence[Record]) -> list[str]:
    """A row for each case: planned, ratio and temporaries on each platform."""
    has_shapes = len({tuple(record["shape"]) for record in records}) > 1
    header, rows = ["loss", "dtype", "", "peer"], []
    for platform in PLATFORMS:
        header += [f"{platform}, {'Mcycles' if _is_tpu(platform) else 'GB'}", "÷", "MiB"]
    for who in _by_case(records).values():
        first = next(iter(who.values()))
        peer = _peer(first)
        size = f", {'×'.join(map(str, first['shape']))}" if has_shapes else ""
        row = [first["loss"] + size, first["dtype"], first["mode"], peer]
        for platform in PLATFORMS:
            theirs, ours = who.get((platform, peer)), who.get((platform, "jxent"))
            row.append(f"{_planned(theirs)} / {_planned(ours)}")
            row.append(_ratio_in_words(_ratio(ours, theirs)))
            row.append(f"{_mebibytes(theirs)} / {_mebibytes(ours)}")
        rows.append(row)
    return ["\n".join(table(header, rows, left=4))]


def _fused(records: Sequence[Record]) -> list[str]:
    """For each platform a row for each head and number of rows."""
    parts = []
    for platform in dict.fromkeys(record["platform"] for record in records):
        cases = _by_case([record for record in records if record["platform"] == platform])
        names = [name for name in LOSSES["fused"].calls() if any((platform, name) in who for who in cases.values())]
        losses = [name for name in names if name != THREE_PRODUCTS]
        unit = "Mcycles" if _is_tpu(platform) else "GB"
        header = ["N × D × V", *(f"{name}, {unit}" for name in names), "jxent ÷ products", "jxent ÷ optax"]
        header += [f"{name}, GiB" for name in losses]
        rows = []
        for who in cases.values():
            found = {name: who.get((platform, name)) for name in names}
            row = ["×".join(map(str, next(iter(who.values()))["shape"])), *(_planned(found[name]) for name in names)]
            row += [_ratio_in_words(_ratio(found["jxent"], found[name])) for name in (THREE_PRODUCTS, "optax")]
            rows.append([*row, *(_gibibytes(found[name]) for name in losses)])
        parts += [f"### {platform}", "\n".join(table(header, rows, left=1))]
    return parts


def _sweep(records: Sequence[Record]) -> list[str]:
    """A row for each vocabulary, and one for the ratio of the largest to the smallest number of a column."""
    columns = list(dict.fromkeys((record["platform"], record["loss"]) for record in records))
    names = list(dict.fromkeys(record["who"] for record in records))
    by_vocabulary: dict[int, dict[tuple[str, ...], float]] = {}
    for record in records:
        if "error" not in record:
            per_1000 = 1e3 * record["planned"] / math.prod(record["shape"])
            by_vocabulary.setdefault(record["shape"][-1], {})[record["platform"], record["loss"], record["who"]] = (
                per_1000
            )
    rows = [
        [str(v), *(_several(found.get((*column, name)) for name in names) for column in columns)]
        for v, found in by_vocabulary.items()
    ]
    spreads = (_several(_spread(by_vocabulary.values(), (*column, name)) for name in names) for column in columns)
    header = ["V", *(f"{platform}, {loss}" for platform, loss in columns)]
    return ["\n".join(table(header, [*rows, ["largest ÷ smallest", *spreads]], left=1))]


def _spread(numbers: Iterable[Mapping[tuple[str, ...], float]], column: tuple[str, ...]) -> float | None:
    found = [row[column] for row in numbers if column in row]
    return max(found) / min(found) if found else None


def _several(values: Iterable[float | None]) -> str:
    return " / ".join(NOTHING if value is None else three_digits(value) for value in values)


def _not_counted(records: Sequence[Record]) -> list[str]:
    """What the numbers above leave out."""
    lines = []
    whose: dict[str, list[str]] = {}
    for record in records:
        for operation in record.get("missing", ()):
            names = whose.setdefault(operation, [])
            names += [record["who"]] if record["who"] not in names else []
    if whose:
        named = "; ".join(f"{operation} ({', '.join(names)})" for operation, names in sorted(whose.items()))
        lines.append(f"Without an estimate on a TPU, and not in its cycles: {named}.")
    opened = [
        f"{record['platform']}, {_case(record)}, {record['who']}" for record in records if record.get("open_loops")
    ]
    if opened:
        lines.append(f"With a loop that turns as often as the data say, counted as one turn: {'; '.join(opened)}.")
    unfit = sorted({record["error"] for record in records if "error" in record})
    return [*lines, *(f"Does not compile: {error}" for error in unfit)]


TABLES = {"fused": _fused, "sweep": _sweep, "sweep-gradient": _sweep}
