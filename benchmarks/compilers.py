"""What compilers for TPU and GPU plan for each loss and its peers: no device is needed, nothing runs.

    pip install -e ".[test,aot]"
    python -m benchmarks.compilers                # all; about half an hour on two cores
    python -m benchmarks.compilers --quick        # a few programs of each group; writes nothing
    python -m benchmarks.compilers few sweep      # replaces two groups in the files

writes `benchmarks/results/compilers.json` and `compilers.md`. tokamax takes part where it is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.machine import commit, today, versions
from benchmarks.plans.cases import GROUPS, Case
from benchmarks.plans.page import in_words, page
from benchmarks.report import RESULTS, read_json, write_json
from tools.aot import DISTRIBUTIONS, PLATFORMS, Compiled, Compilers, missing

PACKAGES = (*(name for names in DISTRIBUTIONS.values() for name in names), "optax", "tokamax")

Record = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    groups = {name: GROUPS[name] for name in options.groups or GROUPS}
    chosen = {name: group.quick if options.quick else group.cases for name, group in groups.items()}
    # Each platform in a thread, with a process of its own.
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda platform: compiled(platform, chosen), options.platforms)
        records = [record for part in made for record in part]
    if options.results is not None:
        write(options.results, records, list(chosen))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compilers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="a few programs of each group")
    parser.add_argument("--platforms", nargs="+", choices=PLATFORMS, default=[*PLATFORMS], help="default: all")
    parser.add_argument(
        "--results",
        type=Path,
        help="the folder to write to; default: the committed one, or with one of the last two options none",
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    for platform in options.platforms:
        if package := missing(platform):
            parser.error(f'{platform} needs {package}, which is not installed: pip install -e ".[test,aot]"')
    is_all = not options.quick and options.platforms == [*PLATFORMS]
    options.results = options.results or (RESULTS if is_all else None)
    return options


def compiled(platform: str, chosen: dict[str, list[Case]]) -> list[Record]:
    """One record for each program of a platform."""
    records = []
    with Compilers() as compilers:
        for group, cases in chosen.items():
            for case in cases if platform in GROUPS[group].platforms else []:
                for who in GROUPS[group].who(case):
                    result = compilers.compiled(platform, "benchmarks.plans.cases:program", **vars(case), who=who)
                    if who == "jxent" and result.error and "RESOURCE_EXHAUSTED" not in result.error:
                        raise RuntimeError(f"{case} for {platform}: {result.error}")
                    records.append(record_of(group, case, platform, who, result))
                    print(f"{in_words(records[-1])}, compiled in {result.seconds:.1f} s", flush=True)
    return records


def record_of(group: str, case: Case, platform: str, who: str, result: Compiled) -> Record:
    """A line of the JSON file; without the fields that are 0 or empty in most lines."""
    named = {"group": group, **vars(case), "shape": list(case.shape), "platform": platform, "who": who}
    if result.error:
        return named | {"error": result.error}
    rest = {"gathered": result.gathered, "missing": sorted(result.missing), "open_loops": result.open_loops}
    numbers = {"planned": result.planned, "temporaries": result.temporaries}
    return named | numbers | {name: value for name, value in rest.items() if value}


def write(folder: Path, records: list[Record], groups: list[str]) -> None:
    """Replaces the records of these groups in the file, and writes the page."""
    path = folder / "compilers.json"
    before = read_json(path) if path.exists() else {"made": {}, "programs": []}
    now = {"date": today(), "commit": commit(), "versions": versions(PACKAGES)}
    results = {
        "made": {name: now if name in groups else before["made"].get(name) for name in GROUPS},
        "programs": [
            r for name in GROUPS for r in (records if name in groups else before["programs"]) if r["group"] == name
        ],
    }
    write_json(path, results)
    (folder / "compilers.md").write_text(page(results), encoding="utf-8")
    print(f"wrote {path} and compilers.md")


if __name__ == "__main__":
    main()
