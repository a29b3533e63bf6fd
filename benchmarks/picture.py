"""The picture: for value and gradient, everybody's time beside jxent's, and the memory that each takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.results import find

Record = Mapping[str, Any]

BACKGROUND, TEXT, FAINT, STRIPE = "#ffffff", "#24292f", "#8c959f", "#f3f5f7"
OURS, FLOOR = "#d1242f", "#24292f"
# Of Okabe and Ito, apart also for those who see fewer colours; the shapes tell them apart too.
LOOKS = {
    "optax": ("#0072b2", "o"),
    "optax float32": ("#56b4e9", "s"),
    "optax one-hot": ("#004d80", "^"),
    "keras": ("#e69f00", "D"),
    "tokamax chunked_xla": ("#009e73", "v"),
    "torch": ("#cc79a7", "P"),
    "torch linear_cross_entropy": ("#8f3f71", "X"),
    "torch.compile": ("#8f3f71", "p"),
    "liger": ("#7a6a00", "h"),
}
OTHERS = ("#6e7781", "*")
KINDS = {
    "ids": "class ids",
    "soft": "soft labels",
    "weighted": "weights, smoothing, mask",
    "segmentation": "segmentation",
    "multilabel": "multi-label",
    "linear": "linear",
    "ppo": "linear, PPO",
}
DTYPES = ("float32", "bfloat16")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": TEXT,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": TEXT,
    "xtick.color": FAINT,
    "xtick.labelcolor": TEXT,
    "ytick.color": FAINT,
    "ytick.labelcolor": TEXT,
}


def draw(run: Record, path: Path) -> None:
    """Writes it to `path`. Opaque, so that it reads the same on a light and on a dark page."""
    records = shown(run["cases"])
    problems = list(dict.fromkeys(problem(record) for record in records))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 2.0 + 0.27 * max(len(problems), 2)), facecolor=BACKGROUND, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 4, sharey=True)
        for column, dtype in enumerate(DTYPES):
            own = {problem(record): record for record in records if record["dtype"] == dtype}
            draw_times(axes[column], problems, own)
            draw_memory(axes[2 + column], problems, own)
            axes[column].set_title(f"time ÷ jxent's, {dtype}", loc="left", weight="bold")
            axes[2 + column].set_title(f"extra memory, MiB, {dtype}", loc="left", weight="bold")
        axes[0].set_yticks(range(len(problems)), problems)
        axes[0].set_ylim(len(problems) - 0.5, -0.5)
        title = "value and gradient" if all(r["mode"] == "grad" for r in records) else "forward"
        machine = run["machine"]
        figure.suptitle(
            f"{title} of a mean loss on {machine['device']}, {machine['date']}, jax {machine['versions']['jax']}",
            x=0.005,
            ha="left",
        )
        legend(figure, records)
        figure.savefig(path, dpi=160)


def shown(records: Sequence[Record]) -> list[Record]:
    """Those with gradients, or all where there are none; of the linear ones, those with flat logits if there are any."""
    records = [r for r in records if r["mode"] == "grad"] or list(records)
    flat = {problem(r) for r in records if r["spread"] == "flat"}
    return [r for r in records if r["spread"] != "peaked" or problem(r) not in flat]


def problem(record: Record) -> str:
    return f"{KINDS[record['kind']]}  {' × '.join(map(str, record['shape']))}"


def draw_times(axes: Axes, problems: Sequence[str], records: Mapping[str, Record]) -> None:
    prepare(axes, problems)
    axes.set_xscale("log")
    axes.axvline(1, color=OURS, linewidth=1.5, zorder=1)
    for y, name in enumerate(problems):
        record = records.get(name)
        ours = find(record, "jxent") if record else None
        if record is None or ours is None:
            continue
        for entry in record["contenders"]:
            if entry["median"] is not None and entry["role"] != "ours":
                dot(axes, entry["median"] / ours["median"], y, entry)
    _, high = axes.get_xlim()
    axes.set_xlim(right=max(high, 3))
    plain_log_ticks(axes)


def draw_memory(axes: Axes, problems: Sequence[str], records: Mapping[str, Record]) -> None:
    prepare(axes, problems)
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    for y, name in enumerate(problems):
        if name not in records:
            continue
        for entry in records[name]["contenders"]:
            if entry.get("extra_bytes") is not None:
                dot(axes, entry["extra_bytes"] / 2**20, y, entry)
    _, high = axes.get_xlim()
    axes.set_xlim(-0.3, max(high, 10))
    plain_log_ticks(axes)


def prepare(axes: Axes, problems: Sequence[str]) -> None:
    for y in range(0, len(problems), 2):
        axes.axhspan(y - 0.5, y + 0.5, color=STRIPE, zorder=0, linewidth=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def plain_log_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def dot(axes: Axes, x: float, y: float, entry: Record) -> None:
    if entry["role"] == "floor":
        axes.plot([x, x], [y - 0.36, y + 0.36], color=FLOOR, linewidth=1.4, zorder=2)
        return
    colour, marker, size = look(entry)
    face = BACKGROUND if entry["wrong"] else colour
    axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=size, zorder=4 if size > 6 else 3)


def look(entry: Record) -> tuple[str, str, float]:
    if entry["role"] == "ours":
        return OURS, "o", 7.0
    return *LOOKS.get(entry["name"], OTHERS), 5.0


def legend(figure: Figure, records: Sequence[Record]) -> None:
    """Below, of those who are in the picture."""
    timed = {e["name"]: e for r in records for e in r["contenders"] if e["median"] is not None}
    handles = []
    for name, entry in timed.items():
        if entry["role"] == "floor":
            handles.append(Line2D([], [], color=FLOOR, marker="|", linestyle="", markersize=9, label="floor"))
            continue
        colour, marker, size = look(entry)
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", markersize=size, label=name))
    if any(e["wrong"] for r in records for e in r["contenders"]):
        handles.append(
            Line2D(
                [], [], color=FAINT, marker="o", linestyle="", markerfacecolor=BACKGROUND, label="hollow: wrong result"
            )
        )
    figure.legend(handles=handles, loc="outside lower left", ncols=6, frameon=False)
