"""Settings for every test: nothing promotes silently, neither ranks nor dtypes, and there are four devices."""

import jax
import numpy as np
import pytest

from jxent._core.rows import cpu
from tools import aot

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def one_device(monkeypatch):
    """As if there were one: the CPU then cuts long rows around their labels."""
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
