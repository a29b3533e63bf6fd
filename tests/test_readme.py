"""The README's examples run and print what it says, and its table lists what is public."""

import doctest
import inspect
import re
from pathlib import Path

import jxent

README = Path(__file__).resolve().parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language):
    return list(re.finditer(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def test_readme_examples_print_what_they_say():
    python = blocks("python")
    assert len(python) >= 2
    parser, namespace, report = doctest.DocTestParser(), {}, []
    runner = doctest.DocTestRunner(verbose=False)
    for block in python:
        line = TEXT[: block.start(1)].count("\n")
        example = parser.get_doctest(block.group(1), namespace, f"README.md:{line + 1}", str(README), line)
        assert any(part.want for part in example.examples), f"the block at line {line + 1} shows no output"
        runner.run(example, out=report.append, clear_globs=False)
        namespace.update(example.globs)  # a later block goes on where the one before it stopped
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_readme_table_lists_the_public_names():
    listed = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    public = [name for name, value in vars(jxent).items() if not name.startswith("_") and not inspect.ismodule(value)]
    assert sorted(listed) == sorted([*public, "torch_compat"])


def test_readme_commands_are_tagged_for_ci():
    tagged = re.findall(r"^<!-- ci: (\w+) -->\n```sh\n([^\n]+)\n```$", TEXT, re.MULTILINE)
    assert [name for name, _ in tagged] == ["quickstart", "tests"]
    assert all(command.startswith("python3 -m venv .venv && ") for _, command in tagged)
