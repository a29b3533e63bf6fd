"""Pages whose examples are run."""

import doctest
import re
from pathlib import Path


def blocks(text, language):
    return list(re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def run_examples(page: Path):
    """Runs the Python blocks of a page in order, each where the one before it stopped; returns the names they defined.

    Fails where one prints something else than the page says, or where a block of examples shows nothing. Blocks without
    prompts are run, and show nothing.
    """
    text = page.read_text(encoding="utf-8")
    parser, namespace, report = doctest.DocTestParser(), {}, []
    runner = doctest.DocTestRunner(verbose=False)
    for block in blocks(text, "python"):
        if ">>> " not in block.group(1):
            exec(block.group(1), namespace)
            continue
        line = text[: block.start(1)].count("\n")
        example = parser.get_doctest(block.group(1), namespace, f"{page.name}:{line + 1}", str(page), line)
        assert any(part.want for part in example.examples), f"the block at line {line + 1} shows no output"
        runner.run(example, out=report.append, clear_globs=False)
        namespace.update(example.globs)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)
    return namespace
