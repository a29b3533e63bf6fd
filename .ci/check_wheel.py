"""Checks a built distribution: what the wheel holds, and that it works beside jax alone.

    python .ci/check_wheel.py DIST PYTHON README

DIST holds one wheel and one sdist. PYTHON is that of an empty environment, into which the wheel is installed here; there
every example of the package's docstrings and of the README runs, from a folder that has nothing of the repository.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

EXAMPLES = """
import doctest, importlib, pathlib, pkgutil, sys
from importlib.metadata import distributions

import jxent

names = {d.metadata["Name"].lower() for d in distributions()}
others = names - {"jxent", "jax", "jaxlib", "numpy", "scipy", "ml-dtypes", "ml_dtypes", "opt-einsum", "opt_einsum", "pip", "setuptools"}
assert not others, f"more than jax was installed: {sorted(others)}"
assert "site-packages" in jxent.__file__, jxent.__file__

failed = attempted = 0
modules = [jxent, *(importlib.import_module(m.name) for m in pkgutil.walk_packages(jxent.__path__, "jxent."))]
results = [doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE) for module in modules]
# A README's code ends at the fence.
text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").replace("```", "")
test = doctest.DocTestParser().get_doctest(text, {}, "README.md", sys.argv[1], 0)
results.append(doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test))
attempted, failed = sum(r.attempted for r in results), sum(r.failed for r in results)
print(f"{attempted} examples of {len(modules)} modules and the README beside jax alone, {failed} failed")
sys.exit(failed > 0 or results[-1].attempted == 0 or attempted < 50)
"""


def main(dist: Path, python: str, readme: Path) -> None:
    """Raises where something is amiss."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert "jxent/py.typed" in names, names
    strangers = [name for name in names if not name.startswith("jxent/") and ".dist-info/" not in name]
    assert not strangers, f"the wheel holds more than the package: {strangers}"
    print(f"{wheel.name}: {len(names)} files; {sdist.name}: {sdist.stat().st_size / 1024:.0f} KiB")
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel.resolve())], check=True)
    with tempfile.TemporaryDirectory() as empty:
        subprocess.run([python, "-W", "error", "-c", EXAMPLES, str(readme.resolve())], cwd=empty, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
