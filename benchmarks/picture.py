"""The pictures: everybody's time and memory in one run, and an overview of the committed results.

`python -m benchmarks.picture` makes the committed pages and pictures anew from the committed files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.report import RESULTS, markdown, read_json, records

Record = Mapping[str, Any]

BACKGROUND, TEXT, FAINT, STRIPE = "#ffffff", "#24292f", "#8c959f", "#f3f5f7"
# Okabe and Ito's colours, which colour-blind readers can tell apart; shapes differ too.
LOOKS = {
    "floor": ("#24292f", "|"),
    "jxent": ("#d1242f", "o"),
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
SIZES = {"jxent": 7.0, "floor": 15.0}
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": TEXT,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
}


def write_report(run: Mapping[str, Any], prefix: Path) -> None:
    """Writes PREFIX.md and PREFIX.png."""
    page, image = (prefix.with_name(prefix.name + suffix) for suffix in (".md", ".png"))
    page.write_text(markdown(run, image.name), encoding="utf-8")
    draw(run["machine"], _shown(records(run)), image)


def draw(machine: Mapping[str, Any], cases: Sequence[Record], path: Path) -> None:
    """Times relative to jxent's, and memory. Opaque, so that it looks the same on light and dark pages."""
    problems = list(dict.fromkeys(map(_problem, cases)))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 2.0 + 0.27 * max(len(problems), 2)), facecolor=BACKGROUND, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 4, sharey=True)
        for column, dtype in enumerate(("float32", "bfloat16")):
            _times(axes[column], problems, [r for r in cases if r["dtype"] == dtype], dtype)
            _memory(axes[2 + column], problems, [r for r in cases if r["dtype"] == dtype], dtype)
        axes[0].set_yticks(range(len(problems)), problems)
        axes[0].set_ylim(len(problems) - 0.5, -0.5)
        what = "value and gradient" if all(r["mode"] == "grad" for r in cases) else "forward"
        made = f"{machine['device']}, {machine['date']}, jax {machine['versions']['jax']}"
        figure.suptitle(f"{what} of a mean loss on {made}", x=0.005, ha="left")
        figure.legend(handles=_legend(cases), loc="outside lower left", ncols=6, frameon=False)
        figure.savefig(path, dpi=160)


def _shown(cases: Sequence[Record]) -> list[Record]:
    """The cases with gradients, or all if there are none; of the variants of a linear case, the flat one if any."""
    cases = [r for r in cases if r["mode"] == "grad"] or list(cases)
    flat = {_problem(r) for r in cases if r["spread"] == "flat"}
    return [r for r in cases if r["spread"] in ("", "flat") or _problem(r) not in flat]


def _problem(record: Record) -> str:
    return f"{record['kind']}  {' × '.join(map(str, record['shape']))}"


def _times(axes: Axes, problems: Sequence[str], cases: Sequence[Record], dtype: str) -> None:
    axes.set_xscale("log")
    axes.axvline(1, color=LOOKS["jxent"][0], linewidth=1.5, zorder=1)
    for record in cases:
        ours = record["timed"].get("jxent")
        for entry in record["timed"].values() if ours else []:
            if entry["role"] != "ours":
                _dot(axes, entry["median"] / ours["median"], problems.index(_problem(record)), entry)
    _finish(axes, problems, f"time ÷ jxent's, {dtype}")
    axes.set_xlim(right=max(axes.get_xlim()[1], 3))


def _memory(axes: Axes, problems: Sequence[str], cases: Sequence[Record], dtype: str) -> None:
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    for record in cases:
        for entry in record["timed"].values():
            if entry["extra_bytes"] is not None:
                _dot(axes, entry["extra_bytes"] / 2**20, problems.index(_problem(record)), entry)
    _finish(axes, problems, f"extra memory, MiB, {dtype}")
    axes.set_xlim(-0.3, max(axes.get_xlim()[1], 10))


def _finish(axes: Axes, problems: Sequence[str], title: str) -> None:
    for y in range(0, len(problems), 2):
        axes.axhspan(y - 0.5, y + 0.5, color=STRIPE, zorder=0, linewidth=0)
    axes.set_title(title, loc="left", weight="bold")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _dot(axes: Axes, x: float, y: float, entry: Record) -> None:
    face = {"markerfacecolor": BACKGROUND} if entry["wrong"] else {}
    axes.plot(x, y, zorder=4 if entry["name"] == "jxent" else 3, **_marker(entry["name"]), **face)


def _marker(name: str) -> dict[str, Any]:
    colour, marker = LOOKS.get(name, OTHERS)
    return {
        "marker": marker,
        "color": colour,
        "markersize": SIZES.get(name, 5.0),
        "markeredgewidth": 1.4,
        "linestyle": "",
    }


def _legend(cases: Sequence[Record]) -> list[Line2D]:
    """An entry for each contender in the picture."""
    timed = {name for r in cases for name in r["timed"]}
    handles = [
        Line2D([], [], label=name, **_marker(name))
        for name in sorted(timed, key=lambda name: [*LOOKS, name].index(name))
    ]
    if any(entry["wrong"] for r in cases for entry in r["timed"].values()):
        hollow = {"color": FAINT, "marker": "o", "linestyle": "", "markerfacecolor": BACKGROUND}
        handles.append(Line2D([], [], label="hollow: wrong result", **hollow))
    return handles


class Pair(NamedTuple):
    """Two bars of the overview: what they compare, how it was found, the amounts and their unit."""

    title: str
    about: str
    amounts: Mapping[str, float]
    unit: str


def pairs(results: Path) -> list[Pair]:
    """What the overview shows, from `compilers.json` and `cpu-newest.json`."""
    planned = {
        record["who"]: record
        for record in read_json(results / "compilers.json")["programs"]
        if (record["platform"], record["shape"]) == ("TPU v6e", [32768, 4096, 128256])
    }
    run = read_json(results / "cpu-newest.json")
    timed = {e["name"]: e for e in run["results"] if e["case"] == "ids-4096x32768-bf16-grad"}
    cycles = planned["jxent"]["planned"] / planned["optax"]["planned"]
    heads = f"fused loss, planned for a TPU v6e; cycles: {cycles:.2f} times optax’s"
    on_cpu = f"measured on {run['machine']['cores']} CPU cores, jax {run['machine']['versions']['jax']}"
    gibibytes = {who: planned[who]["temporaries"] / 2**30 for who in BARS}
    mebibytes = {who: timed[who]["extra_bytes"] / 2**20 for who in BARS}
    milliseconds = {who: timed[who]["median"] * 1e3 for who in BARS}
    return [
        Pair("Extra memory: 32,768 tokens, vocabulary 128,256", heads, gibibytes, "GiB"),
        Pair("Extra memory: bfloat16 logits 4096 × 32768", on_cpu, mebibytes, "MiB"),
        Pair("Time: the same logits", on_cpu, milliseconds, "ms"),
    ]


def overview(results: Path) -> str:
    """The overview as SVG: a white card, which looks the same on light and dark pages."""
    lines = []
    for row, pair in enumerate(pairs(results)):
        y = 98 + 168 * row
        lines += [f'<text x="24" y="{y}" class="title">{pair.title}</text>']
        lines += [f'<text x="24" y="{y + 28}" class="about">{pair.about}</text>']
        for line, (name, fill) in enumerate(BARS.items()):
            top, value = y + 42 + 36 * line, pair.amounts[name]
            width = max(3, round(480 * value / max(pair.amounts.values())))
            shown = f"{value:.0f} {pair.unit}" if value >= 100 else f"{value:.1f} {pair.unit}"
            lines += [
                f'<text x="24" y="{top + 22}" class="name">{name}</text>',
                f'<rect x="118" y="{top}" width="{width}" height="28" rx="3" fill="{fill}"/>',
                f'<text x="{128 + width}" y="{top + 22}" class="name">{shown}</text>',
            ]
    return SVG.format(text=TEXT, body="\n".join(lines))


BARS = {"optax": FAINT, "jxent": LOOKS["jxent"][0]}
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 574" width="800" height="574" role="img">
<title>Memory and time of loss and gradient, optax and jxent</title>
<style>
text {{ font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: {text} }}
.head {{ font-size: 28px; font-weight: 700 }}
.title {{ font-size: 23px; font-weight: 600 }}
.about {{ font-size: 20px; fill: #57606a }}
.name {{ font-size: 23px }}
</style>
<rect x="1" y="1" width="798" height="572" rx="10" fill="#ffffff" stroke="#d0d7de"/>
<text x="24" y="46" class="head">Loss and gradient: shorter is better</text>
{body}
</svg>
"""


if __name__ == "__main__":
    for file in (RESULTS / "cpu.json", RESULTS / "cpu-newest.json"):
        write_report(read_json(file), file.with_suffix(""))
    (RESULTS / "overview.svg").write_text(overview(RESULTS), encoding="utf-8")
