"""Fails unless every skipped or expected-to-fail test of a pytest run is on a list.

Usage: check_skips.py JUNIT_XML LIST...

A list holds one regular expression per line; blank lines and lines that start with # count for nothing. An expression
has to match somewhere in `test id: reason`. A run with failures, or in which no test passed, fails too.
"""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree


def read_patterns(paths: list[str]) -> list[str]:
    """The regular expressions of all lists, in order."""
    lines = [line.strip() for path in paths for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def main(report: str, lists: list[str]) -> int:
    """Prints what was skipped and returns the exit status."""
    patterns = read_patterns(lists)
    cases = list(ElementTree.parse(report).iter("testcase"))
    passed, broken, forbidden, allowed = 0, [], [], []
    for case in cases:
        test = f"{case.get('classname')}::{case.get('name')}".removeprefix("::")
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            broken.append(test)
        elif skip is None:
            passed += 1
        else:
            kind = skip.get("type", "").removeprefix("pytest.") or "skip"
            # A module skipped at its import has its reason in the text, a test in the message.
            reason = " ".join(f"{skip.get('message', '')} {skip.text or ''}".split())
            entry = f"{kind} {test}: {reason}"
            is_allowed = any(re.search(pattern, entry) for pattern in patterns)
            (allowed if is_allowed else forbidden).append(entry)

    print(f"check_skips: {passed} passed, {len(broken)} failed, {len(allowed)} skips allowed, {len(forbidden)} not")
    for title, entries in (("allowed", allowed), ("NOT ALLOWED", forbidden), ("FAILED", broken)):
        for entry in entries:
            print(f"  {title}: {entry}")
    if not passed:
        print("  NO TEST PASSED")
    return int(bool(forbidden or broken or not passed))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
