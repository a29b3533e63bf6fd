"""The benchmarks run end to end on tiny cases, and tell who is absent, who failed and who is wrong."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jxent

pytest.importorskip(
    "matplotlib", reason="bench extra not installed: could not import 'matplotlib': No module named 'matplotlib'"
)
pytest.importorskip("optax", reason="bench extra not installed: could not import 'optax': No module named 'optax'")
pytest.importorskip("rich", reason="bench extra not installed: could not import 'rich': No module named 'rich'")

from benchmarks import cases, cli, contenders, measure, picture, report, truth
from benchmarks.cases import Case
from benchmarks.contenders import FLOOR, OURS, Contender, jax_contender

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 300  # seconds; against hanging
TINY = Case("ids", (16, 8), "float32", "grad")
COMMITTED = ("cpu", "cpu-newest")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What `python -m benchmarks --quick` wrote and printed."""
    prefix = tmp_path_factory.mktemp("quick") / "results" / "quick"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "2", "--output", prefix]
    # With two threads on cores that others use too, torch waits most of the time; and nobody reads these times.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = report.read_json(prefix.with_suffix(".json"))
    return run, prefix.with_suffix(".md").read_text(encoding="utf-8"), prefix.with_suffix(".png").read_bytes(), done


def test_quick_run_measures_every_case(quick):
    run, markdown, image, done = quick
    assert list(run["cases"]) == [case.name for case in cases.QUICK]
    assert {case["kind"] for case in run["cases"].values()} == set(cases.KINDS)
    assert run["not_run"] == {}
    for record in report.records(run):
        assert record["failed"] == []
        assert markdown.count(f"| {record['name']} |") == 1 + len(record["timed"])
        for entry in record["timed"].values():
            assert 0 < entry["q1"] <= entry["median"] <= entry["q3"]
            assert f"| {record['name']} | {entry['name']} | {report.milliseconds(entry['median'])} |" in markdown
        optax = record["timed"].get("optax")
        assert record["timed"]["jxent"]["ratios"][1] == (optax and record["timed"]["jxent"]["median"] / optax["median"])
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {13, 14}  # every row as long as the head of its table
    assert image.startswith(b"\x89PNG\r\n")
    assert len(image) > 20_000
    assert "(quick.png)" in markdown
    assert "gradient error" in done.stdout


def test_quick_run_finds_jxent_and_its_peers_right(quick):
    for record in report.records(quick[0]):
        most = 1e-6 if record["dtype"] == "float32" else 5e-3
        ours = record["timed"]["jxent"]
        assert ours["loss_error"] <= most
        assert (ours["gradient_error"] is None) == (record["mode"] == "forward")
        assert (ours["gradient_error"] or 0) <= most
        assert record["best_peer"] is not None
        assert not [name for name, entry in record["timed"].items() if entry["wrong"]]


def test_quick_run_weighs_what_is_kept_and_taken(quick):
    record = next(r for r in report.records(quick[0]) if r["name"] == "ids-64x1000-bf16-grad")
    logits_bytes, ours = 2 * 64 * 1000, record["timed"]["jxent"]
    assert logits_bytes <= ours["residual_bytes"] <= 1.1 * logits_bytes
    assert 0 <= ours["temp_bytes"] <= ours["extra_bytes"]
    assert ours["compile_seconds"] > 0
    assert record["timed"]["optax one-hot"]["temp_bytes"] > 4 * logits_bytes


def test_quick_run_says_where_with_what_and_who_is_absent(quick):
    run, markdown, _, done = quick
    machine = run["machine"]
    assert machine["platform"] == jax.default_backend()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", machine["date"])
    assert (machine["versions"]["jax"], machine["versions"]["jxent"]) == (jax.__version__, jxent.__version__)
    timed = {entry["name"] for entry in run["results"]}
    everybody = {c.name for c in contenders.everybody()}
    in_chunks = {name for name in everybody if "chunk" in name}  # quick cases are too small for them
    assert everybody - in_chunks <= timed | set(run["absent"]) <= everybody
    assert not timed & set(run["absent"])
    assert "torch.compile" in run["absent"]
    for name, reason in run["absent"].items():
        assert f"- {name}: {reason}" in markdown
        assert f"absent: {name}: {reason}" in done.stdout


def scaled(factor_of_loss, factor_of_gradient):
    """jxent's loss and gradient, each times a factor."""

    def loss(*arrays):
        value = TINY.loss.ours(*arrays)
        return factor_of_gradient * value + jax.lax.stop_gradient((factor_of_loss - factor_of_gradient) * value)

    return peer("suspect", lambda case: loss)


def raises(case):
    raise RuntimeError(f"no {case.name} here\nand more lines")


def peer(name, loss_of):
    return jax_contender(name, loss_of, lambda case: True)


@functools.cache
def tiny_data():
    return cases.make_data(TINY)


def run_tiny(*others):
    case, lines = measure.run_case(TINY, [OURS[0], *others], 1, tiny_data())
    (record,) = report.records({"cases": {TINY.name: case}, "results": lines})
    return record


@pytest.mark.parametrize(
    ("loss_factor", "gradient_factor", "loss_error", "gradient_error"),
    [(1.1, 1, 0.1, 0), (1, 0.5, 0, 0.5), (1.1, -1, 0.1, 2), (1, 1, 0, 0)],
)
def test_run_case_finds_out_who_is_wrong(loss_factor, gradient_factor, loss_error, gradient_error):
    record = run_tiny(scaled(loss_factor, gradient_factor))
    entry = record["timed"]["suspect"]
    assert entry["loss_error"] == pytest.approx(loss_error, abs=1e-6)
    assert entry["gradient_error"] == pytest.approx(gradient_error, abs=1e-6)
    assert entry["wrong"] == (loss_error + gradient_error > 0)
    # Whoever is wrong is not a peer to be measured against.
    assert record["best_peer"] == (None if entry["wrong"] else "suspect")


def test_run_case_takes_nan_for_wrong():
    assert run_tiny(scaled(float("nan"), 1))["timed"]["suspect"]["wrong"]


def test_run_case_names_who_fails_and_goes_on():
    record = run_tiny(peer("raises", raises))
    (failed,) = record["failed"]
    assert (failed["name"], failed["failed"]) == ("raises", f"RuntimeError: no {TINY.name} here")
    assert list(record["timed"]) == ["jxent"]


def test_run_case_goes_on_without_who_has_no_memory_when_it_is_measured(monkeypatch):
    programs = []

    def second_fails(program):
        programs.append(program)
        if len(programs) == 2:
            raise MemoryError("none left")
        return 0

    monkeypatch.setattr(measure, "_extra_bytes", second_fails)
    record = run_tiny(scaled(1, 1))
    (failed,) = record["failed"]
    assert (failed["name"], failed["failed"]) == ("suspect", "MemoryError: none left")
    assert record["timed"]["jxent"]["gradient_error"] <= 1e-6


def test_run_case_compares_a_part_of_what_is_too_large(monkeypatch):
    monkeypatch.setattr(truth, "MOST_LOGITS", 5 * TINY.num_classes)
    record = run_tiny()
    assert record["checked_rows"] == 5
    assert record["timed"]["jxent"]["gradient_error"] <= 1e-6


def test_truth_is_that_of_numpy(monkeypatch):
    """In blocks that do not come out even."""
    monkeypatch.setattr(truth, "BLOCK", 5 * TINY.num_classes)
    found = truth.find_truth(TINY, tiny_data())
    logits, labels = (np.asarray(tiny_data()[name]) for name in ("logits", "labels"))
    exp, one_hot = np.exp(logits.astype(np.float64)), np.eye(8)[labels]
    p = exp / exp.sum(1, keepdims=True)
    assert found.loss == pytest.approx(-np.log((p * one_hot).sum(1)).mean(), rel=1e-14)
    np.testing.assert_allclose(found.gradients["logits"], (p - one_hot) / 16, rtol=1e-12)


@pytest.mark.parametrize("kind", cases.KINDS)
def test_data_are_the_same_for_all_and_never_zero(kind):
    shape = {"linear": (6, 4, 8), "ppo": (6, 4, 8), "segmentation": (2, 3, 2, 2)}.get(kind, (6, 5))
    case = Case(kind, shape, "bfloat16", "grad", "peaked" if len(shape) == 3 else "")
    data, again = cases.make_data(case), cases.make_data(case)
    assert tuple(data)[: len(case.differentiated)] == case.differentiated
    for name, array in data.items():
        assert (array == again[name]).all()
        assert name == "where" or (array != array.ravel()[0]).any()
    assert {data[name].dtype for name in case.differentiated} == {jax.numpy.dtype("bfloat16")}
    assert data["labels"].shape == (case.shape if kind in ("soft", "multilabel") else case.row_shape)
    assert len(cases.rows_of(data, 1)["labels"]) == 1


def entry_of(name, role, q1, median, q3, loss_error=1e-7):
    return {"case": "a", "name": name, "role": role, "q1": q1, "median": median, "q3": q3, "loss_error": loss_error}


def test_records_have_ratios_and_the_best_peer_that_is_right():
    lines = [
        entry_of("floor", "floor", 1.0, 1.0, 1.0, None),
        entry_of("jxent", "ours", 2.0, 3.0, 4.0),
        entry_of("optax", "peer", 6.0, 6.0, 7.0),
        entry_of("keras", "peer", 4.0, 4.0, 4.0),
        entry_of("broken", "peer", 2.0, 2.0, 2.0, 1e-3),
        {"case": "a", "name": "torch", "role": "peer", "failed": "RuntimeError: no"},
        {**entry_of("jxent", "ours", 2.0, 3.0, 4.0), "case": "b"},
    ]
    first, second = report.records({"cases": {name: {"dtype": "float32"} for name in "ab"}, "results": lines})
    assert first["best_peer"] == "keras"
    assert list(first["timed"]) == ["floor", "broken", "jxent", "keras", "optax"]
    assert first["timed"]["jxent"]["ratios"] == [3 / 4, 3 / 6, 3.0]
    assert first["timed"]["keras"]["ratios"] == [1.0, 4 / 6, 4.0]
    assert [name for name, entry in first["timed"].items() if entry["wrong"]] == ["broken"]
    assert [entry["name"] for entry in first["failed"]] == ["torch"]
    assert second["best_peer"] is None
    assert second["timed"]["jxent"]["ratios"] == [None, None, None]


@pytest.mark.parametrize(("most", "seconds", "expected"), [(25, 0.1, 25), (25, 0.5, 8), (25, 3.0, 5), (2, 3.0, 2)])
def test_rounds_fit_into_the_time(most, seconds, expected):
    assert measure.how_many_rounds(most, seconds) == expected


def test_budget_and_resume_add_up_to_a_whole_run(monkeypatch, tmp_path, capsys):
    absent = Contender("absent", raises, lambda case: True, lambda: "no_such_package not installed")
    monkeypatch.setattr(contenders, "everybody", lambda: [FLOOR, OURS[0], absent, peer("raises", raises)])
    arguments = ["--quick", "--cases", "^(ids|log)", "--rounds", "1", "--output", str(tmp_path / "run")]
    names = ["ids-64x1000-bf16-grad", "log-probs-16x100-f32-forward"]
    assert cli.main([*arguments, "--budget", "-1"]) == cli.NOT_ALL_RUN
    run = report.read_json(tmp_path / "run.json")
    assert run["cases"] == {}
    assert list(run["not_run"]) == names

    assert cli.main([*arguments, "--resume", "--cases", "ids"]) == cli.DONE
    before = report.read_json(tmp_path / "run.json")
    assert cli.main([*arguments, "--resume"]) == cli.DONE
    run = report.read_json(tmp_path / "run.json")
    assert list(run["cases"]) == names
    assert run["results"][: len(before["results"])] == before["results"]
    assert run["not_run"] == {}
    markdown = (tmp_path / "run.md").read_text(encoding="utf-8")
    assert "- absent: no_such_package not installed" in markdown
    assert f"- {names[0]}, raises: RuntimeError: no {names[0]} here" in markdown
    assert "the budget of -1 s was spent" in capsys.readouterr().out

    assert cli.main([*arguments, "--budget", "-1"]) == cli.NOT_ALL_RUN
    assert report.read_json(tmp_path / "run.json") == run

    run["machine"]["versions"]["jax"] = "0"
    report.write_json(tmp_path / "run.json", run)
    with pytest.raises(SystemExit, match="another machine or other versions"):
        cli.main([*arguments, "--resume"])


@pytest.mark.parametrize(
    "options", [{"quick": True, "on_cpu": True}, {"quick": False, "on_cpu": True}, {"quick": False, "on_cpu": False}]
)
def test_presets_have_each_case_once(options):
    names = [case.name for case in cases.preset(**options)]
    assert len(set(names)) == len(names)
    assert ("linear-32768x2560x128256-bf16-flat-grad" in names) == (not options["on_cpu"])


def test_chunk_sizes_are_compared_on_devices():
    takers = [{case.name for case in cases.DEVICE if chunked.takes(case)} for chunked in OURS[1:]]
    assert takers == [{"linear-4096x4096x128256-bf16-flat-grad", "linear-32768x2560x128256-bf16-flat-grad"}] * 2
    case = Case("linear", (16, 4, 8), "float32", "grad", "flat")
    _, lines = measure.run_case(case, OURS, 1)
    assert [line["name"] for line in lines if line["gradient_error"] <= 1e-6] == [c.name for c in OURS]


def test_losses_take_the_arguments_of_the_device_cases():
    """Traced only; what a device is measured on does not fit here."""
    for case in cases.DEVICE:
        arrays = jax.eval_shape(lambda case=case: tuple(cases.make_data(case).values()))
        assert arrays[0].shape == (case.shape[:2] if case.is_linear else case.shape)
        for name, loss in {"jxent": case.loss.ours, **case.loss.timed}.items():
            if name not in contenders.PACKAGES:
                value, gradients = jax.eval_shape(jax.value_and_grad(loss, case.loss.wrt), *arrays)
                assert value.shape == ()
                assert [g.shape for g in gradients] == [a.shape for a in arrays[: len(case.differentiated)]]


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_page_is_that_of_the_committed_file(name):
    run = report.read_json(report.RESULTS / f"{name}.json")
    page = (report.RESULTS / f"{name}.md").read_text(encoding="utf-8")
    assert page == report.markdown(run, f"{name}.png")


def test_committed_results_are_small():
    texts = [path for path in report.RESULTS.iterdir() if path.suffix != ".png"]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in texts) < 4000


def test_overview_shows_the_committed_numbers():
    drawn = (report.RESULTS / "overview.svg").read_text(encoding="utf-8")
    assert drawn == picture.overview(report.RESULTS)
    amounts = re.findall(r'class="name">([\d.]+) (\w+)<', drawn)
    widths = [int(width) for width in re.findall(r'<rect [^>]*width="(\d+)" height="28"', drawn)]
    measured = (report.RESULTS / "cpu-newest.md").read_text(encoding="utf-8")
    optax, ours = (
        next(
            line
            for line in measured.splitlines()
            if line.startswith(f"| ids-4096x32768-bf16-grad | {name} |") and "…" in line
        ).split(" | ")
        for name in ("optax", "jxent")
    )
    plans = json.loads((report.RESULTS / "compilers.json").read_text(encoding="utf-8"))["programs"]
    fused = {
        r["who"]: r["temporaries"] / 2**30
        for r in plans
        if (r["platform"], r["shape"]) == ("TPU v6e", [32768, 4096, 128256])
    }
    expected = [fused["optax"], fused["jxent"], *[float(row[i]) for i in (7, 2) for row in (optax, ours)]]
    assert [unit for _, unit in amounts] == ["GiB", "GiB", "MiB", "MiB", "ms", "ms"]
    for (shown, _), value in zip(amounts, expected, strict=True):
        assert float(shown) == pytest.approx(value, rel=0.03)
    for theirs, own, i in zip(widths[::2], widths[1::2], (0, 2, 4), strict=True):
        assert own / theirs == pytest.approx(expected[i + 1] / expected[i], abs=0.01)
