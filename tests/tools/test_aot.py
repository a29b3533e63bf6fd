"""What compilers plan for small programs whose cost is known, and the command line that prints it."""

import jax
import jax.numpy as jnp
import pytest

from tools import aot

SIDE = 1024
MATRIX = 4 * SIDE**2  # bytes, of a float32 [SIDE, SIDE]
SMALL = 1000  # bytes: predicates and counters
TPUS = [platform for platform in aot.PLATFORMS if platform.startswith("TPU")]
ALL = pytest.mark.parametrize("platform", aot.PLATFORMS)
ON_TPU = pytest.mark.parametrize("platform", TPUS)


def turns(x, count):
    return jax.lax.fori_loop(0, count, lambda _, x: 2 * jnp.sin(x), x)


def data_say_when(x, limit):
    return jax.lax.while_loop(lambda x: x[0, 0] < limit, lambda x: 2 * jnp.sin(x), x)


def slices(x, _):
    return jax.lax.map(lambda row: 2 * jnp.sin(row), x.reshape(16, -1, SIDE))


def sine(x, _):
    return jnp.sin(x)


def product(x, _):
    return x @ x


def one_of_two(x, y):
    return jax.lax.cond(y[0, 0] > 0, sine, product, x, y)


def entries(x, _):
    return jnp.take_along_axis(x, jnp.arange(SIDE, dtype=jnp.int32)[:, None] * 7 % SIDE, 1)


def in_order(x, _):
    return jnp.sort(x, axis=0)


def program(name, count=None):
    function = globals()[name]
    matrix = ((SIDE, SIDE), jnp.float32)
    if count is None:
        return aot.Program(function, [matrix, ((), jnp.float32) if name == "data_say_when" else matrix])
    return aot.Program(lambda x: function(x, count), [matrix])


@pytest.fixture
def plan_of(compile_for):
    def plan_of(platform, name, **options):
        compiled = compile_for(platform, f"{__name__}:program", name=name, **options)
        assert compiled.error is None, compiled.error
        return compiled

    return plan_of


@ALL
def test_turns_of_a_loop_cost_the_same(plan_of, platform):
    five, nine, thirteen = (plan_of(platform, "turns", count=count) for count in (5, 9, 13))
    assert nine.planned - five.planned == thirteen.planned - nine.planned > 0
    assert next(part[2] for part in nine.parts if part[2] > 1) == 9
    assert nine.open_loops == 0
    if platform == "H200":
        assert nine.planned - five.planned == pytest.approx(4 * 2 * MATRIX, abs=4 * SMALL)


@ALL
def test_loop_that_data_end_is_open(plan_of, platform):
    plan = plan_of(platform, "data_say_when")
    assert plan.open_loops == 1
    assert 0 < plan.planned < 2 * plan_of(platform, "turns", count=2).planned


def test_slices_of_a_loop_add_up_to_the_whole(plan_of):
    plan = plan_of("H200", "slices")
    assert max(part[2] for part in plan.parts) == 16
    # Read, written, and filled with zeros before.
    assert 2 * MATRIX <= plan.planned <= 3 * MATRIX + 16 * SMALL


@ALL
def test_dearest_branch_counts(plan_of, platform):
    branches = [plan_of(platform, name).planned for name in ("sine", "product")]
    # Where its operand comes from decides what a TPU pays for a branch.
    assert 0.99 * max(branches) <= plan_of(platform, "one_of_two").planned < 0.99 * sum(branches)


@ON_TPU
def test_gather_and_sort_have_no_estimate(plan_of, platform):
    assert plan_of(platform, "entries").missing == {"gather": 1}
    assert plan_of(platform, "in_order").missing == {"sort": 1}


def test_gather_counts_its_whole_operand(plan_of):
    plan = plan_of("H200", "entries")
    assert plan.gathered == MATRIX
    assert 4 * SIDE <= plan.planned - MATRIX <= 4 * 4 * SIDE


def test_elementwise_kernel_reads_and_writes_once(plan_of):
    plan = plan_of("H200", "sine")
    assert (plan.planned, plan.gathered, plan.temporaries) == (2 * MATRIX, 0, 0)


def test_failure_is_an_answer(compile_for):
    answer = compile_for("H200", f"{__name__}:program", name="sine", count="seven", other=1)
    assert answer.error.startswith("TypeError: program() got an unexpected keyword argument")
    assert compile_for("H200", f"{__name__}:program", name="sine").error is None


def test_command_line_prints_every_function_and_platform(compile_for, capsys):
    for platform in aot.PLATFORMS:
        if package := aot.missing(platform):
            pytest.skip(f"aot extra: {package} is not installed")
    functions = [f"{__file__}:sine", f"{__name__}:product"]
    aot.main(
        [*functions, "--args", "f32[256,256]", "f32[256,256]", "--wrt", "0", "--parts", "1", "--on", "H200", "TPU v5e"]
    )
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert [line.split("  ")[0] for line in heads] == ["H200", "H200", "TPU v5e", "TPU v5e"]
    assert [(" GB moved (" in line, " million cycles (" in line) for line in heads] == [(True, False)] * 2 + [
        (False, True)
    ] * 2
    assert len(lines) == 2 * len(heads)
    assert "(1.00)" in heads[0]


def test_file_that_fails_is_run_again(tmp_path):
    path = tmp_path / "half_done.py"
    path.write_text("def sine(x):\n    return x\n\nraise ValueError('not yet')\n")
    for _ in range(2):
        with pytest.raises(ValueError, match="not yet"):
            aot.named_call(f"{path}:sine", ["f32[3]"], [], {})
    path.write_text("def sine(x):\n    return 2 * x\n")
    program = aot.named_call(f"{path}:sine", ["f32[3]"], [0], {})
    total, (gradient,) = program.function(jnp.ones(3))
    assert total == 6
    assert gradient.tolist() == [2, 2, 2]


def test_arrays_are_described_as_hlo_does():
    assert aot.described("bf16[8192, 128256]") == ((8192, 128256), jnp.dtype(jnp.bfloat16))
    assert aot.described("s32[]") == ((), jnp.dtype(jnp.int32))
    assert aot.described("pred[8]") == ((8,), jnp.dtype(bool))
    with pytest.raises(ValueError, match="'float32' describes no array"):
        aot.described("float32")
