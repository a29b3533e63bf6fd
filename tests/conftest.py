"""Settings for every test: nothing promotes silently, neither ranks nor dtypes, and there are four devices.

`pytest` by itself runs one case of each test that is not marked slow. `pytest --all` runs all cases of all tests, and so does any
call that names files or expressions, of these.
"""

import os
import zlib
from itertools import groupby
from xml.etree import ElementTree

import jax
import numpy as np
import pytest

from jxent._core.rows import cpu
from tools import aot

jax.config.update("jax_num_cpu_devices", 4)
if _folder := os.environ.get("JXENT_COMPILED"):
    # A folder for each worker: jax writes in place, and a neighbour could read half a program.
    jax.config.update("jax_compilation_cache_dir", f"{_folder}/{os.environ.get('PYTEST_XDIST_WORKER', 'gw0')}")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


# Only one of CI's two environments has the extra that these need: its half has all of their cases, the other one of each.
_HALF_WITH_EXTRA = {
    "test_docs": 0,
    "test_migrating": 0,
    "test_peers": 0,
    "test_torch_compat": 0,
    "test_torch_parity": 0,
    "test_compilers": 1,
    "test_compilers_page": 1,
}


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="all cases of all tests, and not one case of each quick one")
    parser.addoption("--half", type=int, choices=(0, 1), help="every second case of tests that have several")
    parser.addoption("--quickly", action="store_true", help="LLVM optimises one case of each test, here or in --but")
    parser.addoption("--but", metavar="XML", help="without the cases that passed in the run of this JUnit report")


def pytest_configure(config):
    is_named = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    config.option.all = bool(config.option.all or is_named or config.option.keyword or config.option.markexpr)


def pytest_collection_modifyitems(config, items):
    kept = items if config.option.all else [item for item in items if not item.get_closest_marker("slow")]
    if not config.option.all or config.option.half is not None:
        kept = [item for _, cases in groupby(kept, _test_of) for item in _some_of(list(cases), config.option)]
    passed = _passed(config.option.but) if config.option.but else set()
    kept = [item for item in kept if _reported(item) not in passed]
    if config.option.quickly:
        optimised = {(module, name.partition("[")[0]) for module, name in passed}
        for case in kept:
            module, name = _reported(case)
            test = module, name.partition("[")[0]
            case.compiled_quickly = test in optimised and not case.get_closest_marker("optimised")
            optimised.add(test)
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept


def pytest_runtest_setup(item):
    # Compiling is most of what the tests take, and LLVM's optimisations a third of that. XLA's own stay as they are.
    jax.config.update("jax_disable_most_optimizations", getattr(item, "compiled_quickly", False))
    if item.config.option.quickly and item.get_closest_marker("optimised"):
        jax.clear_caches()  # or it would be given what another test has compiled


def _test_of(item):
    return item.nodeid.partition("[")[0]


def _some_of(cases, option):
    # Another place in the list for each test, so that it is not always the first loss.
    one = [cases[zlib.crc32(_test_of(cases[0]).encode()) % len(cases)]]
    if not option.all or len(cases) == 1:
        return one
    if (half_with_extra := _HALF_WITH_EXTRA.get(cases[0].path.stem)) is not None:
        return cases if option.half == half_with_extra else one
    return cases[option.half :: 2]


def _passed(report):
    cases = ElementTree.parse(report).iter("testcase")
    outcomes = {"failure", "error", "skipped"}
    return {
        (case.get("classname"), case.get("name")) for case in cases if outcomes.isdisjoint(each.tag for each in case)
    }


def _reported(item):
    """A case as a JUnit report names it."""
    path, _, name = item.nodeid.partition("::")
    return path.removesuffix(".py").replace("/", "."), name


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def one_device(monkeypatch):
    """Pretends that there is one device: the CPU then cuts long rows around their maximum."""
    monkeypatch.setattr(cpu, "_num_cpu_devices", lambda: 1)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture(params=["one device", "four devices"])
def devices(request):
    if request.param == "one device":
        request.getfixturevalue("one_device")


@pytest.fixture
def x64():
    """Runs the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def compile_for():
    """What a compiler of `tools.aot` says of a program; where that is not installed, the test is skipped."""
    with aot.Compilers() as compilers:

        def compile_for(platform, make_program, **options):
            if package := aot.missing(platform):
                pytest.skip(f"aot extra: {package} is not installed")
            return compilers.compiled(platform, make_program, **options)

        yield compile_for
