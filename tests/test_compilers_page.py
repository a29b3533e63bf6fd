"""What `python -m benchmarks.compilers` compares is the same loss, and its page says what its file says."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import compilers
from benchmarks.cases import KINDS
from benchmarks.losses import LOSSES, THREE_PRODUCTS
from benchmarks.plans import page
from benchmarks.plans.cases import GROUPS, MODES, Case, program
from tests.losses import assert_close
from tools import aot

pytestmark = pytest.mark.slow
NO_LOSS = {THREE_PRODUCTS, "tokamax"}
SHAPES = {
    "fused": (12, 6, 7),
    "ppo": (12, 6, 7),
    "segmentation, classes second": (2, 5, 3, 4),
    "segmentation, classes last": (2, 3, 4, 5),
}


def arrays_of(rng, loss, dtype="float32"):
    """Arguments of a loss: ids below 5, and rows of multiples of 1/16 that sum to 1, which bfloat16 can hold."""
    for shape, kind in LOSSES[loss].arguments(SHAPES.get(loss, (12, 5)), dtype):
        if kind == "int32":
            yield rng.integers(5, size=shape, dtype=np.int32)
        elif kind == "bool":
            yield rng.random(shape) < 0.7
        else:
            num_columns = shape[-1]
            counts = 1 + rng.multinomial(16 - num_columns, np.full(num_columns, 1 / num_columns), shape[:-1])
            yield jnp.asarray(counts / 16, kind)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peers_compute_the_same_loss(rng, loss, dtype):
    arrays = list(arrays_of(rng, loss, dtype))
    by = LOSSES[loss].wrt
    peers = {name: call for name, call in LOSSES[loss].peers.items() if name not in NO_LOSS}
    assert peers
    value, gradients = jax.jit(jax.value_and_grad(LOSSES[loss].ours, by))(*arrays)
    for call in peers.values():
        expected, expected_gradients = jax.jit(jax.value_and_grad(call, by))(*arrays)
        # Logits that are written out in bfloat16 are rounded.
        assert_close(value, expected, dtype if loss in ("fused", "ppo") else np.float32)
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            assert gradient.dtype == wanted.dtype == dtype
            assert_close(np.asarray(gradient, np.float64), np.asarray(wanted, np.float64), dtype)


def test_three_products_are_those_of_the_fused_loss(rng):
    hidden, kernel, labels = arrays_of(rng, "fused")
    by_hidden, by_kernel = LOSSES["fused"].peers[THREE_PRODUCTS](hidden, kernel, labels)
    assert_close(by_hidden, np.asarray(hidden) @ kernel @ kernel.T)
    assert_close(by_kernel, np.asarray(hidden).T @ (hidden @ kernel))


def test_cases_are_programs():
    """One of each loss, mode and contender is traced."""
    made = {
        (case.loss, case.mode, who): program(**vars(case), who=who)
        for group in GROUPS.values()
        for case in group.cases
        for who in group.who(case)
        if who not in NO_LOSS
    }
    for (loss, mode, _), (function, arguments, *_) in made.items():
        shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in arguments]
        value, *gradients = jax.tree.leaves(jax.eval_shape(function, *shapes))
        assert value.shape == ()
        differentiated = [shapes[i] for i in LOSSES[loss].wrt] if mode == "gradient" else []
        assert [(g.shape, g.dtype) for g in gradients] == [(s.shape, s.dtype) for s in differentiated]


@pytest.mark.parametrize("group", GROUPS)
def test_quick_cases_are_cases(group):
    assert GROUPS[group].quick
    assert {*GROUPS[group].quick} <= {*GROUPS[group].cases}


def test_every_loss_has_a_case():
    planned = {case.loss for group in GROUPS.values() for case in group.cases}
    assert planned | {*KINDS.values()} == {*LOSSES}
    names = [(name, case) for name, group in GROUPS.items() for case in group.cases]
    assert len(names) == len({*names})


def record(
    group,
    who,
    planned,
    *,
    loss="ids",
    shape=(8192, 128256),
    dtype="bfloat16",
    mode="forward",
    platform="TPU v5e",
    **rest,
):
    case = {"group": group, "loss": loss, "shape": list(shape), "dtype": dtype, "mode": mode, "platform": platform}
    return case | {"who": who, "planned": planned, "temporaries": 3 * 2**20} | rest


def row_of(text, *beginning):
    """The cells of the only row of a table that begins so."""
    (row,) = [line for line in text.splitlines() if line.startswith("| " + " | ".join(beginning) + " |")]
    return [cell.strip() for cell in row.strip("| ").split("|")][len(beginning) :]


def page_of(*records, made=None):
    return page.page({"made": made or {}, "programs": list(records)})


def test_page_shows_the_peer_and_the_ratio():
    text = page_of(
        record("softmax", "optax", 30e6, temporaries=4008 * 2**20),
        record("softmax", "jxent", 15e6, missing=["gather"]),
        record("softmax", "optax", 6.4e9, platform="H200", gathered=2.4e9),
        record("softmax", "jxent", 10.4e9, platform="H200", gathered=2.4e9, temporaries=0),
    )
    cells = row_of(text, "ids", "bfloat16", "forward", "optax")
    assert cells[:3] == ["30.0 / 15.0", "0.50", "4,008 / 3.00"]
    assert cells[3:6] == ["– / –", "–", "– / –"]
    assert cells[6:] == ["4.00 / 8.00", "2.00", "3.00 / 0"]
    assert "not in its cycles: gather (jxent)." in text
    assert "Few classes" not in text


def test_page_says_what_does_not_fit_and_what_was_counted_once():
    text = page_of(
        record("binary", "optax", 0, loss="sigmoid", error="JaxRuntimeError: RESOURCE_EXHAUSTED: 20G of 16G"),
        record("binary", "jxent", 7e6, loss="sigmoid", open_loops=1),
        record("binary", "optax", 0, loss="sigmoid focal", error="TypeError: no"),
    )
    assert row_of(text, "sigmoid", "bfloat16", "forward", "optax")[:3] == [
        "does not fit / 7.00",
        "–",
        "does not fit / 3.00",
    ]
    assert row_of(text, "sigmoid focal", "bfloat16", "forward", "optax")[0] == "does not compile / –"
    assert "Does not compile: JaxRuntimeError: RESOURCE_EXHAUSTED: 20G of 16G" in text
    assert "counted as one turn: TPU v5e, sigmoid, 8192×128256, bfloat16, forward, jxent." in text


def test_page_shows_the_fused_loss_by_platform():
    case = {"loss": "fused", "shape": (8192, 4096, 128256), "mode": "gradient"}
    text = page_of(
        record("fused", THREE_PRODUCTS, 60e6, **case),
        record("fused", "optax", 90e6, **case),
        record("fused", "jxent", 120e6, temporaries=2**31, **case),
    )
    assert "### TPU v5e" in text
    assert "### H200" not in text
    assert row_of(text, "8192×4096×128256") == ["60.0", "90.0", "120", "2.00", "1.33", "0.00293", "2.00"]


def test_page_shows_a_cliff():
    def swept(v, who, per_1000):
        return record("sweep", who, per_1000 * 4096 * v / 1000, shape=(4096, v))

    numbers = {(32000, "optax"): 20, (32000, "jxent"): 10, (65537, "optax"): 21, (65537, "jxent"): 400}
    text = page_of(*(swept(v, who, per_1000) for (v, who), per_1000 in numbers.items()))
    assert row_of(text, "32000") == ["20.0 / 10.0"]
    assert row_of(text, "65537") == ["21.0 / 400"]
    assert row_of(text, "largest ÷ smallest") == ["1.05 / 40.0"]


def test_page_says_when_and_with_what():
    first = {"date": "2026-11-01", "commit": "abc", "versions": {"jax": "1.0"}}
    together = page_of(record("few", "jxent", 1e6), made={"few": first, "sweep": first, "fused": None})
    assert "\n2026-11-01, commit abc, jax 1.0.\n" in together
    apart = page_of(record("few", "jxent", 1e6), made={"few": first, "sweep": first | {"commit": "def"}})
    assert f"{GROUPS['sweep'].title}: 2026-11-01, commit def, jax 1.0." in apart


def test_numbers_keep_three_digits():
    numbers = [0, 0.000004, 0.00244, 0.0624, 0.5, 1, 9.876, 43.71, 128.4, 4008.13]
    shown = ["0", "<0.00001", "0.00244", "0.0624", "0.500", "1.00", "9.88", "43.7", "128", "4,008"]
    assert [page.three_digits(number) for number in numbers] == shown


def test_groups_are_replaced_one_by_one(tmp_path):
    compilers.write(tmp_path, [record("few", "jxent", 1e6), record("sweep", "jxent", 2e6)], ["few", "sweep"])
    compilers.write(tmp_path, [record("few", "jxent", 3e6), record("few", "optax", 4e6)], ["few"])
    text = (tmp_path / "compilers.json").read_text(encoding="utf-8")
    results = json.loads(text)
    assert [(r["group"], r["planned"]) for r in results["programs"]] == [("few", 3e6), ("few", 4e6), ("sweep", 2e6)]
    assert len(text.splitlines()) == 6 + len(GROUPS) + len(results["programs"])
    assert results["made"]["few"]["versions"]["jax"] == jax.__version__
    assert results["made"]["fused"] is None
    assert (tmp_path / "compilers.md").read_text(encoding="utf-8") == page.page(results)


def test_committed_page_is_that_of_the_committed_file():
    results = json.loads((compilers.RESULTS / "compilers.json").read_text(encoding="utf-8"))
    assert (compilers.RESULTS / "compilers.md").read_text(encoding="utf-8") == page.page(results)


def test_quick_run_of_a_group(compile_for, tmp_path, capsys):
    compile_for("H200", "benchmarks.plans.cases:program", **vars(GROUPS["few"].quick[0]), who="jxent")
    compilers.main(["few", "--quick", "--platforms", "H200", "--results", str(tmp_path)])
    results = json.loads((tmp_path / "compilers.json").read_text(encoding="utf-8"))
    cases = GROUPS["few"].quick
    assert [(r["mode"], r["who"]) for r in results["programs"]] == [
        (c.mode, who) for c in cases for who in ("optax", "jxent")
    ]
    for made in results["programs"]:
        logits = math.prod(made["shape"]) * 2
        least = logits if made["mode"] == "forward" else 3 * logits
        assert least <= made["planned"] <= 10 * logits
    assert capsys.readouterr().out.count(" GB, ") == len(results["programs"])


@pytest.mark.parametrize(("arguments", "message"), [(["fewer"], "no such group: fewer; there are softmax, few")])
def test_unknown_group_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        compilers.parse(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [([], compilers.RESULTS), (["few"], compilers.RESULTS), (["--quick"], None), (["--platforms", "H200"], None)],
)
def test_part_of_a_group_is_not_written_over_the_committed_page(monkeypatch, arguments, folder):
    monkeypatch.setattr(compilers, "missing", lambda platform: None)
    assert compilers.parse(arguments).results == folder
    assert compilers.parse([*arguments, "--results", "here"]).results.name == "here"


def test_failure_of_ours_is_an_error(monkeypatch):
    class Broken:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def compiled(self, platform, make_program, **options):
            return aot.Compiled(error="TypeError: no")

    monkeypatch.setattr(compilers, "Compilers", Broken)
    with pytest.raises(RuntimeError, match="TypeError: no"):
        compilers.compiled("H200", {"few": [Case("ids", (64, 10), "float32", MODES[0])]})
