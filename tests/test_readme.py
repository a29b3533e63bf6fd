"""The README's examples run and print what it says, and its table lists what is public."""

import inspect
import re
from pathlib import Path

import jxent
from tests.markdown import blocks, run_examples

README = Path(__file__).resolve().parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_readme_examples_print_what_they_say():
    assert len(blocks(TEXT, "python")) >= 2
    run_examples(README)


def test_readme_table_lists_the_public_names():
    calls = re.findall(r"^\|[^|]*\|[^|]*\|([^|]*)\|$", TEXT, re.MULTILINE)
    listed = {name for call in calls for name in re.findall(r"`(\w+)`", call)}
    public = [name for name, value in vars(jxent).items() if not name.startswith("_") and not inspect.ismodule(value)]
    assert listed == {*public, "torch_compat"}


def test_readme_commands_are_tagged_for_ci():
    tagged = re.findall(r"^<!-- ci: (\w+) -->\n```sh\n([^\n]+)\n```$", TEXT, re.MULTILINE)
    assert [name for name, _ in tagged] == ["quickstart", "tests"]
    assert all(command.startswith("python3 -m venv .venv && ") for _, command in tagged)


def test_readme_is_short():
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    assert len(prose.split()) <= 1000
    assert all(len(line) <= 120 for line in TEXT.splitlines() if not line.startswith(("|", "python3 ")))
