"""What each loss and its peers take on accelerators, by the word of their compilers: no device is needed, nothing runs.

    pip install -e ".[test,aot]"
    python -m benchmarks.compilers

writes `benchmarks/results/compilers.json` and `compilers.md`, in some minutes. The programs are those that
`tests/test_compilers.py` holds to bounds: value and gradient, each compiled for one device.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.compilers import CASES, DISTRIBUTIONS, ON_FLOAT32, PLATFORMS, Compilers, missing

RESULTS = Path(__file__).parent / "results"
DTYPES = ("bfloat16", "float32")
MIB = 2**20


def programs(platform: str) -> list[tuple[str, str, str]]:
    """The case, whose loss, and the dtype of each program."""
    return [
        (name, who, dtype)
        for name, case in CASES.items()
        for dtype in DTYPES
        for who in case.losses
        if not (who == ON_FLOAT32 and dtype == "float32")
    ]


def measured(platforms: list[str]) -> list[dict[str, Any]]:
    """One record for each program, of platforms that share a process."""
    records = []
    with Compilers() as compilers:
        for platform in platforms:
            for case, who, dtype in programs(platform):
                result = compilers.compiled(platform, case, who, dtype)
                shape = CASES[case].shapes[0][0]
                shape = (*shape, CASES[case].shapes[1][0][-1]) if case.startswith("linear") else shape
                records.append(
                    {"loss": case, "dtype": dtype, "shape": shape, "platform": platform, "who": who}
                    | {name: value for name, value in result._asdict().items() if name != "sent"}
                )
                print(f"{platform}: {case}, {dtype}, {who}: {in_words(records[-1])}", flush=True)
    return records


def in_words(record: dict[str, Any]) -> str:
    if record["error"]:
        return "does not fit"
    return f"{size(record['temporaries'])} MiB beside arguments and results"


def size(num_bytes: int) -> str:
    """In MiB, three digits."""
    value = num_bytes / MIB
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(records: list[dict[str, Any]]) -> str:
    """One row for each program of jxent, and its peers in the rows below it."""
    lines = [
        "| loss | dtype | shape | | temporaries | peak |",
        "|---|---|---|---|---:|---:|",
    ]
    for record in records:
        is_first = record["who"] == "jxent"
        what = (record["loss"], record["dtype"], "×".join(map(str, record["shape"]))) if is_first else ("", "", "")
        numbers = ("does not fit", "") if record["error"] else (size(record["temporaries"]), size(record["peak"]))
        lines.append(f"| {' | '.join((*what, record['who'], *numbers))} |")
    return "\n".join(lines)


def report(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        "# What the compilers of TPU and GPU say",
        "Value and gradient of each loss, as the compiler for each device plans it; nothing was run, and nothing here says"
        " how fast anything is. MiB. *Temporaries* are what is needed beside the arguments and the results, *peak* is"
        " everything. Written by `python -m benchmarks.compilers`.",
        f"{results['date']}, {versions}.",
    ]
    for platform in PLATFORMS:
        records = [record for record in results["programs"] if record["platform"] == platform]
        unfit = {record["error"] for record in records if record["error"]}
        parts += [f"## {platform}", table(records), *(f"Does not fit: {error}" for error in sorted(unfit))]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    folder = parser.parse_args().results
    for platform in PLATFORMS:
        if package := missing(platform):
            parser.error(f'{platform} needs {package}, which is not installed: pip install -e ".[test,aot]"')
    by_backend = [[p for p in PLATFORMS if PLATFORMS[p].backend == backend] for backend in DISTRIBUTIONS]
    with ThreadPoolExecutor() as pool:
        records = [record for part in pool.map(measured, by_backend) for record in part]
    packages = ["jax", "jaxlib", *(name for names in DISTRIBUTIONS.values() for name in names), "optax"]
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: metadata.version(name) for name in packages},
        "programs": records,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compilers.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "compilers.md").write_text(report(results), encoding="utf-8")
    print(f"wrote {folder / 'compilers.json'} and compilers.md")


if __name__ == "__main__":
    main()
