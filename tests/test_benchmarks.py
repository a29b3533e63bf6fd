"""The benchmarks run end to end on tiny cases, and say what they are there to say: who is absent, who failed, who is wrong."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jxent

pytest.importorskip(
    "matplotlib", reason="bench extra not installed: could not import 'matplotlib': No module named 'matplotlib'"
)
pytest.importorskip("optax", reason="bench extra not installed: could not import 'optax': No module named 'optax'")
pytest.importorskip("rich", reason="bench extra not installed: could not import 'rich': No module named 'rich'")

from benchmarks import cases, cli, contenders, measure, report, results, truth
from benchmarks.cases import Case
from benchmarks.contenders import floors, optax_losses, ours
from benchmarks.contenders.base import Contender
from benchmarks.contenders.jax_programs import jax_contender
from benchmarks.data import make_data, rows_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 300  # seconds; against hanging
PEERS = dict.fromkeys(cases.CROSS_ENTROPIES, "optax") | {"ppo": "jax log_softmax"}
TINY = Case("ids", (16, 8), "float32", "grad")
ONCE = measure.Limits(rounds=1, seconds=0)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What `python -m benchmarks --quick` wrote and printed."""
    prefix = tmp_path_factory.mktemp("quick") / "results" / "quick"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "3", "--seconds", "0.1", "--output", prefix]
    # With two threads on cores that others use too, torch waits most of the time.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    texts = [prefix.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".json", ".md")]
    return json.loads(texts[0]), texts[1], prefix.with_suffix(".png").read_bytes(), done.stdout


def test_quick_run_measures_every_case(quick):
    run, *_ = quick
    assert [record["name"] for record in run["cases"]] == [case.name for case in cases.QUICK]
    assert {record["kind"] for record in run["cases"]} == set(cases.KINDS)
    assert run["not_run"] == {}
    assert results.failures(run["cases"]) == []
    for record in run["cases"]:
        for name in ("floor", "jxent", PEERS[record["kind"]]):
            entry = results.find(record, name)
            assert len(entry["seconds"]) == record["rounds"] == 3
            assert 0 < entry["q1"] <= entry["median"] <= entry["q3"]
            optax = results.find(record, "optax")
            assert entry["ratios"]["optax"] == (optax and entry["median"] / optax["median"])


def test_quick_run_finds_jxent_and_optax_right(quick):
    for record in quick[0]["cases"]:
        loss_limit, gradient_limit = (1e-6, 1e-6) if record["dtype"] == "float32" else (1e-4, 5e-3)
        entry = results.find(record, "jxent")
        assert entry["loss_error"] <= loss_limit
        assert (entry["gradient_error"] is None) == (record["mode"] == "forward")
        assert (entry["gradient_error"] or 0) <= gradient_limit
        assert not results.find(record, PEERS[record["kind"]])["wrong"]


def test_quick_run_weighs_what_is_kept_and_taken(quick):
    record = next(r for r in quick[0]["cases"] if r["name"] == "ids-64x1000-bf16-grad")
    entry = results.find(record, "jxent")
    assert entry["output_bytes"] == record["logits_bytes"] + 4
    assert record["logits_bytes"] <= entry["residual_bytes"] <= 1.1 * record["logits_bytes"]
    assert 0 <= entry["temp_bytes"] <= entry["extra_bytes"]
    assert entry["compile_seconds"] > 0
    assert results.find(record, "optax one-hot")["temp_bytes"] > 4 * record["logits_bytes"]


def test_quick_run_says_where_and_with_what(quick):
    machine = quick[0]["machine"]
    assert machine["platform"] == jax.default_backend()
    assert machine["device"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", machine["date"])
    assert machine["versions"]["jax"] == jax.__version__
    assert machine["versions"]["jxent"] == jxent.__version__


def test_quick_run_shows_tables_and_a_picture(quick):
    run, markdown, picture, printed = quick
    for record in run["cases"]:
        assert markdown.count(f"| {record['name']} |") > len(("brief", "floor", "jxent"))
        assert record["name"] in printed
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {13, 15}  # every row as long as the head of its table
    assert picture.startswith(b"\x89PNG\r\n")
    assert len(picture) > 20_000
    assert "(quick.png)" in markdown


def test_quick_run_names_who_is_absent(quick):
    run, markdown, _, printed = quick
    names = {"keras", "tokamax chunked_xla", "torch", "torch linear_cross_entropy", "torch.compile", "liger"}
    timed = {entry["name"] for record in run["cases"] for entry in record["contenders"] if entry["median"]}
    assert timed | set(run["absent"]) == names | {
        "floor",
        "jxent",
        "optax",
        "optax float32",
        "optax one-hot",
        "jax log_softmax",
    }
    assert not timed & set(run["absent"])
    assert "torch.compile" in run["absent"]
    for name, reason in run["absent"].items():
        assert f"- {name}: {reason}" in markdown
        assert f"absent: {name}: {reason}" in printed.replace("\n", " ")


def scaled(factor_of_loss, factor_of_gradient):
    """jxent's loss and gradient, each times a factor."""

    def loss_of(case):
        right = ours.loss_of(case)

        def loss(data):
            value = right(data)
            return factor_of_gradient * value + jax.lax.stop_gradient((factor_of_loss - factor_of_gradient) * value)

        return loss

    return loss_of


def raises(case):
    raise RuntimeError(f"no {case.name} here\nand more lines")


@functools.cache
def tiny_data():
    return make_data(TINY)


def run_tiny(*others):
    return results.summarise(measure.run_case(TINY, [*ours.CONTENDERS, *others], ONCE, tiny_data()))


@pytest.mark.parametrize(
    ("loss_factor", "gradient_factor", "loss_error", "gradient_error"),
    [(1.1, 1, 0.1, 0), (1, 0.5, 0, 0.5), (1.1, -1, 0.1, 2), (1, 1, 0, 0)],
)
def test_run_case_finds_out_who_is_wrong(loss_factor, gradient_factor, loss_error, gradient_error):
    record = run_tiny(jax_contender("suspect", scaled(loss_factor, gradient_factor)))
    entry = results.find(record, "suspect")
    assert entry["loss_error"] == pytest.approx(loss_error, abs=1e-6)
    assert entry["gradient_error"] == pytest.approx(gradient_error, abs=1e-6)
    assert entry["wrong"] == (loss_error + gradient_error > 0)
    # Whoever is wrong is not a peer to be measured against.
    assert record["best_peer"] == (None if entry["wrong"] else "suspect")


def test_run_case_takes_nan_for_wrong():
    assert results.find(run_tiny(jax_contender("nan", scaled(float("nan"), 1))), "nan")["wrong"]


def test_run_case_names_who_fails_and_goes_on():
    record = run_tiny(jax_contender("raises", raises))
    assert results.failures([record]) == [(TINY.name, "raises", f"RuntimeError: no {TINY.name} here")]
    assert results.find(record, "jxent")["median"] > 0
    assert results.find(record, "raises") is None


def test_run_case_compares_a_part_of_what_is_too_large(monkeypatch):
    monkeypatch.setattr(truth, "MOST_LOGITS", 5 * TINY.num_classes)
    record = run_tiny()
    assert record["checked_rows"] == 5
    assert results.find(record, "jxent")["gradient_error"] <= 1e-6


@pytest.mark.parametrize("kind", cases.KINDS)
def test_data_are_the_same_for_all_and_never_zero(kind):
    shape = {"linear": (6, 4, 8), "ppo": (6, 4, 8), "segmentation": (2, 3, 2, 2)}.get(kind, (6, 5))
    case = Case(kind, shape, "bfloat16", "grad", "peaked" if len(shape) == 3 else "")
    data, again = make_data(case), make_data(case)
    for name, array in data.items():
        assert (array == again[name]).all()
        assert name == "where" or (array != array.ravel()[0]).any()
    assert {data[name].dtype for name in case.differentiated} == {jax.numpy.dtype("bfloat16")}
    assert data["labels"].shape == (case.shape if kind in ("soft", "multilabel") else case.row_shape)
    assert len(rows_of(case, data, 1)["labels"]) == 1


def entry_of(name, role, *seconds, **fields):
    return {"name": name, "role": role, "seconds": list(seconds), "page_faults": [0.0] * len(seconds), **fields}


def given_record():
    """Numbers small enough to be worked out by hand; the fastest peer is wrong."""
    good = {"loss_error": 1e-7, "gradient_error": None, "temp_bytes": 10, "output_bytes": 4}
    return {
        "name": "ids-1x2-f32-forward",
        "kind": "ids",
        "shape": (1, 2),
        "dtype": "float32",
        "mode": "forward",
        "spread": "",
        "rounds": 5,
        "contenders": [
            entry_of("floor", "floor", 1.0, 1.0, 1.0, 1.0, 1.0),
            entry_of("jxent", "ours", 2.0, 9.0, 3.0, 1.0, 4.0, **good, growth_bytes=100),
            entry_of("optax", "peer", 8.0, 6.0, 7.0, 5.0, 6.0, **good, growth_bytes=5),
            entry_of("keras", "peer", 4.0, 4.0, 4.0, 4.0, 4.0, **good, growth_bytes=None),
            entry_of("broken", "peer", 2.0, 2.0, 2.0, 2.0, 2.0, **{**good, "loss_error": 1e-3}, growth_bytes=None),
            {"name": "torch", "role": "peer", "failed": "RuntimeError: no"},
        ],
    }


def test_summarise_makes_quartiles_and_ratios():
    record = results.summarise(given_record())
    assert record["best_peer"] == "keras"
    entries = {entry["name"]: entry for entry in record["contenders"]}
    jxent_entry = entries["jxent"]
    assert (jxent_entry["q1"], jxent_entry["median"], jxent_entry["q3"]) == (2.0, 3.0, 4.0)
    assert jxent_entry["ratios"] == {"best_peer": 3 / 4, "optax": 3 / 6, "floor": 3.0}
    assert entries["keras"]["ratios"] == {"best_peer": 1.0, "optax": 4 / 6, "floor": 4.0}
    assert [name for name, entry in entries.items() if entry["wrong"]] == ["broken"]
    assert [entries[name]["extra_bytes"] for name in ("floor", "jxent", "optax", "keras")] == [None, 96, 10, 10]
    assert entries["torch"]["median"] is None
    assert entries["torch"]["ratios"] == {"best_peer": None, "optax": None, "floor": None}


def test_summarise_does_without_peers_and_floors():
    record = given_record()
    record["contenders"] = record["contenders"][1:2]
    record = results.summarise(record)
    assert record["best_peer"] is None
    assert set(record["contenders"][0]["ratios"].values()) == {None}


@pytest.mark.parametrize(
    ("rounds", "seconds", "each", "expected"),
    [(25, 4.0, 0.1, 25), (25, 4.0, 0.5, 8), (25, 4.0, 3.0, 5), (2, 4.0, 3.0, 2)],
)
def test_rounds_fit_into_the_time(rounds, seconds, each, expected):
    assert measure.how_many_rounds(measure.Limits(rounds, seconds), each) == expected


@pytest.fixture
def few(monkeypatch):
    """Only jxent takes part, and somebody whose package nobody has."""
    absent = Contender("absent", prepare=raises, modules=("no_such_package",))
    everybody = [*floors.CONTENDERS, *ours.CONTENDERS, absent, jax_contender("raises", raises)]
    monkeypatch.setattr(contenders, "everybody", lambda: everybody)


def test_budget_and_resume_add_up_to_a_whole_run(few, tmp_path, capsys):
    arguments = ["--quick", "--cases", "^ids-", "--rounds", "1", "--output", str(tmp_path / "run.json")]
    names = ["ids-64x1000-bf16-forward", "ids-64x1000-bf16-grad"]
    assert cli.main([*arguments, "--budget", "-1"]) == cli.NOT_ALL_RUN
    run = results.read(tmp_path / "run.json")
    assert run["cases"] == []
    assert list(run["not_run"]) == names

    assert cli.main([*arguments, "--resume", "--cases", "forward"]) == cli.DONE
    assert cli.main([*arguments, "--resume"]) == cli.DONE
    run = results.read(tmp_path / "run.json")
    assert [record["name"] for record in run["cases"]] == names
    assert run["not_run"] == {}
    assert run["absent"] == {"absent": "no_such_package not installed"}
    markdown = (tmp_path / "run.md").read_text(encoding="utf-8")
    assert "- absent: no_such_package not installed" in markdown
    assert f"- {names[0]}, raises: RuntimeError: no {names[0]} here" in markdown
    assert "the budget of -1 s was spent" in capsys.readouterr().out


def test_report_merges_files_of_one_machine_only(few, tmp_path, capsys):
    for name in ("ids-.*-forward", "ids-.*-grad"):
        cli.main(["--quick", "--cases", name, "--rounds", "1", "--output", str(tmp_path / name[-4:])])
    files = sorted(map(str, tmp_path.glob("*.json")))
    assert report.main([*files, "--output", str(tmp_path / "both")]) == 0
    both = results.read(tmp_path / "both.json")
    assert [record["name"] for record in both["cases"]] == ["ids-64x1000-bf16-grad", "ids-64x1000-bf16-forward"]
    assert f"wrote {tmp_path / 'both.png'}" in capsys.readouterr().out.replace("\n", "")

    both["machine"]["versions"]["jax"] = "0"
    results.write(tmp_path / "other.json", both)
    with pytest.raises(ValueError, match="different machines or versions"):
        report.main([files[0], str(tmp_path / "other.json")])


def test_list_names_cases_and_contenders(capsys):
    assert cli.main(["--list", "--contenders", "optax", "--cases", "segmentation"]) == cli.DONE
    words = capsys.readouterr().out.split("\n")
    assert [word for word in words if word.startswith("segmentation")] == [
        f"segmentation-8x21x128x128-{dtype}-{mode}" for dtype in ("f32", "bf16") for mode in ("forward", "grad")
    ]
    names = [c.name for c in optax_losses.CONTENDERS if "optax" in c.name]
    assert names == [word for word in words if word.startswith("optax")]


@pytest.mark.parametrize("accelerator", [False, True])
@pytest.mark.parametrize("name", ["quick", "default", "full"])
def test_presets_have_each_case_once(name, accelerator):
    names = [case.name for case in cases.preset(name, accelerator=accelerator)]
    assert len(set(names)) == len(names)
    assert ("linear-8192x4096x128256-bf16-peaked-grad" in names) == (accelerator and name == "full")
