"""Each notebook runs as a plain script, shows what it promises, and is in step with its executed .ipynb.

Edit the .py. Then, with the extra "notebooks" installed, make every .ipynb anew, executed and free of what changes from
run to run or machine to machine (times, versions, paths, random ids):

    python tests/test_notebooks.py
"""

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jxent

pytestmark = pytest.mark.slow
_NO = "notebooks extra not installed: could not import '{0}': No module named '{0}'"
for _name in ("flax", "sklearn", "matplotlib", "tqdm"):  # looked up, not imported: only the scripts need them
    if importlib.util.find_spec(_name) is None:
        pytest.skip(_NO.format(_name), allow_module_level=True)
jupytext = pytest.importorskip("jupytext", reason=_NO.format("jupytext"))

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))

TIMEOUT = 600  # seconds; against hanging. A notebook needs less than a minute of two cores.

each_notebook = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def check_quickstart(text):
    number = r"(\d\.\d{3})"
    score = rf"test accuracy {number}, recall of rare digits 2: {number}  5: {number}  8: {number}$"
    plain, *plain_recall = map(float, re.search(f"^without weights: {score}", text, re.MULTILINE).groups())
    weighted, *weighted_recall = map(float, re.search(f"^with weights: {score}", text, re.MULTILINE).groups())
    # Measured 0.771 and 0.912; recalls (0.170, 0.538, 0.161) and (0.795, 0.934, 0.724).
    assert 0.65 < plain < weighted - 0.05
    assert 0.85 < weighted < 1
    assert all(a < b - 0.1 for a, b in zip(plain_recall, weighted_recall, strict=True))
    assert sum(weighted_recall) / 3 > 0.7

    assert re.search(r"^661 training images, 56 of them without a label$", text, re.MULTILINE)
    weights = re.search(r"^weight per digit: (.*)$", text, re.MULTILINE).group(1)
    assert dict(re.findall(r"(\d): (\d+\.\d+)", weights))["2"] == "10.08"  # 605 labels / (10 classes · 6 labels)

    epochs = re.findall(
        r"^(with(?:out)?) weights: epoch +(\d+)/15  loss (\d\.\d{4})  train accuracy \d\.\d{3}$", text, re.MULTILINE
    )
    for name in ("without", "with"):
        losses = {int(epoch): float(loss) for kind, epoch, loss in epochs if kind == name}
        assert list(losses) == list(range(1, 16))
        assert losses[15] < 0.2 * losses[1]

    found = re.search(r"^largest relative difference between jxent and optax, 10 batches: (\S+)$", text, re.MULTILINE)
    assert float(found.group(1)) <= 1e-6
    assert "confident row, loss:      optax 0.0e+00, jxent 4.1e-09\n" in text
    assert "confident row, gradient:  optax 0.0e+00, jxent -4.1e-09\n" in text
    assert "batch without any label:  optax nan, jxent 0.0\n" in text
    assert "label -100, not masked:   optax nan, jxent nan\n" in text


def check_sharding(text):
    assert text.startswith("8 devices\n")
    losses = dict(re.findall(r"^(Auto|Explicit|shard_map) +loss (\d+\.\d{6}), largest difference", text, re.MULTILINE))
    one = float(re.search(r"^one device: loss (\d+\.\d{6}),", text, re.MULTILINE).group(1))
    assert set(losses) == {"Auto", "Explicit", "shard_map"}
    assert all(abs(float(loss) - one) <= 1e-5 for loss in losses.values())

    # A device has 1024 classes of width 128; Auto axes may send their gradient more often than once.
    numbers = r"gradient of the kernel ([\d,]+) bytes,  gradient of the hidden states ([\d,]+) bytes,"
    sent = {
        way: tuple(int(n.replace(",", "")) for n in found)
        for way, *found in re.findall(rf"^(Auto|Explicit|shard_map) +{numbers}", text, re.MULTILINE)
    }
    kernel, hidden = 4 * 128 * 1024, 4 * 128 * 128
    assert sent["Explicit"] == sent["shard_map"] == (kernel, hidden)
    assert sent["Auto"][0] % kernel == 0
    assert sent["Auto"][1] == hidden
    assert len(re.findall(r"^all-reduce .* no +1 ", text, re.MULTILINE)) >= 6
    assert re.search(r"^all-reduce .* yes +4 ", text, re.MULTILINE)
    # Under Auto axes each of the eight runs of rows that devices may hold gives as many rows to a chunk.
    assert re.search(r"^all-reduce +f32\[128,1024\] +yes +8 ", text, re.MULTILINE)


def check_language_model(text):
    # The text, and so these numbers, differ with the version of Python: they are from 3.11 and 3.13.
    vocabulary = int(re.search(r"^(\d+) words in the vocabulary", text, re.MULTILINE).group(1))
    assert 3000 < vocabulary < 8000  # 4681 and 4823
    ignored = re.findall(r"windows, \d+ labels that count, (\d+) ignored$", text, re.MULTILINE)
    assert len(ignored) == 2
    assert all(int(number) > 100 for number in ignored)

    counts = re.search(r"^labels that count in each part: (\d+), (\d+), (\d+), (\d+)$", text, re.MULTILINE).groups()
    assert len(set(counts)) > 1
    assert float(re.search(r"^gradient of the parts, divided once: +(\S+) away", text, re.MULTILINE).group(1)) < 1e-5
    assert float(re.search(r"^gradient of the mean of their means: +(\S+) away", text, re.MULTILINE).group(1)) > 0.1

    row = r"^epoch (\d)/6  perplexity: train +(\d+\.\d), held-out +(\d+\.\d)$"
    epochs, train, test = zip(*re.findall(row, text, re.MULTILINE), strict=True)
    assert epochs == tuple("0123456")
    for values in (list(map(float, train)), list(map(float, test))):
        assert vocabulary < values[0] < 5 * vocabulary
        assert values[0] > values[1] > values[2] > values[3]
        assert values[-1] <= 1.05 * min(values)
    by_frequency = float(re.search(r"by its frequency alone has perplexity (\d+\.\d)$", text, re.MULTILINE).group(1))
    assert float(train[-1]) < float(test[-1]) < by_frequency / 3  # 41, 96 and 455; 40, 96 and 469

    written = re.search(r"^1\. ¶The (.*)2\. ¶If the (.*)3\. ¶A class (.*)^MiB beside", text, re.MULTILINE | re.DOTALL)
    assert len(set(re.findall(r"\w+", " ".join(written.groups())))) > 30  # of some 150

    memory = re.findall(r"(\d+) words: logits +(\d+), fused +(\d+), +\d+\.\d times less$", text, re.MULTILINE)
    words, usual, fused = (list(map(int, column)) for column in zip(*memory, strict=True))
    assert words == [vocabulary, 32000, 50257, 128256]
    assert 2 * fused[0] < usual[0]  # 54 and 146
    assert all(4 * ours < theirs for ours, theirs in zip(fused[1:], usual[1:], strict=True))  # a tenth or so


def floats(pattern, text):
    """The groups of the one line that matches, as numbers."""
    (line,) = re.findall(f"^{pattern}$", text, re.MULTILINE)
    return [float(value) for value in ((line,) if isinstance(line, str) else line)]


def check_why_cross_entropy(text):
    (by_terms,) = floats(r"sum of the last column: (\S+)", text)
    (ours,) = floats(r"softmax_cross_entropy:  (\S+)", text)
    assert abs(by_terms - 2.14293) <= 1e-5  # log(e + e³ + 1/e) − 1
    assert abs(ours - by_terms) <= 1e-5
    binary = re.findall(r"^ +(-?\d) +\S+ +([01]) +(\S+) +(\S+) +(\S+) +(\S+)$", text, re.MULTILINE)
    assert [row[:2] for row in binary] == [(x, y) for x in ("-4", "0", "2") for y in ("1", "0")]
    for x, y, *columns in binary:
        yes, no, loss, two_classes = map(float, columns)
        assert (yes if y == "0" else no) == 0
        expected = math.log1p(math.exp(-float(x) if y == "1" else float(x)))
        assert max(abs(value - expected) for value in (yes + no, loss, two_classes)) <= 1e-4
    assert "x = 40, y = 0: by the formula inf, from the logit 40.0\n" in text

    for x in (-8, -4, 0, 4):
        cross, squared = floats(rf"x = +{x}  .* cross entropy +(\S+), squared error +(\S+), ratio .*", text)
        p = 1 / (1 + math.exp(-x))
        assert abs(cross - (p - 1)) <= 2e-5
        assert abs(squared + 2 * (1 - p) ** 2 * p) <= 2e-5
    assert floats(r"largest difference from the two formulas: (\S+)", text)[0] <= 1e-6

    steps = re.findall(r"^from x = (-\d): +(\d+) steps under cross entropy, +(\d+) under squared", text, re.MULTILINE)
    assert [row[0] for row in steps] == ["-2", "-4", "-6", "-8"]
    cross, squared = ([int(row[column]) for row in steps] for column in (1, 2))
    assert all(abs(a - b) <= 1 for a, b in zip(cross, (3, 5, 7, 9), strict=True))
    assert all(abs(a / b - 1) <= 0.02 for a, b in zip(squared, (8, 36, 214, 1507), strict=True))

    network = {}
    for start in ("fresh", "misled"):
        for loss in ("cross entropy", "squared error"):
            pattern = rf"{start}, {loss}: 90% right (?:after (\d+) steps|never in (800) steps) .*"
            ((reached, never),) = re.findall(f"^{pattern}$", text, re.MULTILINE)
            network[start, loss] = int(reached or never)
    # Measured 17, 41, 17, and never within 800 steps.
    assert network["fresh", "cross entropy"] < network["fresh", "squared error"] < 100
    assert network["misled", "cross entropy"] < 40
    assert network["misled", "squared error"] > 200

    cost = r"a wolf taken for a {}, label {}: (\S+)"
    assert floats(cost.format("dog", "wolf"), text) == floats(cost.format("truck", "wolf"), text)
    dog, truck = (floats(cost.format(animal, "0.8 wolf, 0.2 dog"), text)[0] for animal in ("dog", "truck"))
    assert dog < truck - 0.3
    loss, entropy, slope = floats(r"guess = soft label: loss (\S+), entropy (\S+), largest slope (\S+)", text)
    assert abs(loss - entropy) <= 1e-4
    assert slope <= 1e-6

    row = r"{} labels: hits (\S+), on average (\S+) tenths off, four or more (\S+)"
    (hard_hits, hard_off, hard_far), (soft_hits, soft_off, soft_far) = (
        floats(row.format(kind), text) for kind in ("hard", "soft")
    )
    # Measured 0.169, 2.21, 0.228 and 0.186, 2.01, 0.186.
    assert soft_off < hard_off - 0.1
    assert soft_far < hard_far - 0.02
    assert min(hard_hits, soft_hits) > 0.12
    assert floats(r"nearer with soft labels in (\d+) of 40 repeats", text)[0] >= 32


def check_multilabel(text):
    assert floats(r"1500 training pictures, (\S+)% of the labels missing", text) == [60.8]
    yes, no, weights = (
        [
            float(number)
            for number in re.findall(r"\d: +(\S+)", re.search(rf"^{name} *(.*)$", text, re.MULTILINE).group(1))
        ]
        for name in ("known yes:", "known no:", "pos_weight:")
    )
    assert len(yes) == len(no) == len(weights) == 10
    assert all(abs(w - n / y) <= 0.051 for w, n, y in zip(weights, no, yes, strict=True))
    assert all((yes[digit] < 60) == (digit in {2, 5, 8}) for digit in range(10))

    ours, by_hand, with_nan = floats(r"loss (\S+), by hand (\S+), with NaN at the missing labels (\S+)", text)
    assert abs(ours - by_hand) <= 2e-6
    assert ours == with_nan
    assert "largest gradient at missing labels: 0.0\n" in text

    row = r"{}: +average precision: rare (\S+), others (\S+) +recall: rare (\S+), others (\S+) +mean probability (\S+)"
    unmasked, masked, positive, classes = (
        floats(row.format(way), text) for way in ("missing = no", "masked", "pos_weight", "class_weight")
    )
    # Measured: rare, others   (0.476, 0.882), (0.619, 0.955), (0.830, 0.926), (0.864, 0.865) of average precision
    # and (0.000, 0.191), (0.130, 0.954), (0.594, 0.928), (0.638, 0.880) of recall.
    assert unmasked[0] < masked[0] - 0.05 < positive[0] - 0.15
    assert unmasked[1] < masked[1] - 0.03
    assert unmasked[3] < 0.5
    assert masked[3] > 0.85
    assert unmasked[2] < 0.1
    assert masked[2] < positive[2] - 0.25
    assert unmasked[4] < 0.2
    assert 0.28 < masked[4] < 0.4
    assert classes[1] < positive[1] - 0.015  # what the class weights take from the others
    assert classes[0] - classes[1] > positive[0] - positive[1] + 0.03  # and shift to the rare ones
    assert classes[0] > masked[0] + 0.1


def check_segmentation(text):
    assert text.startswith("training images (4, 213, 40, 3), labels (4, 213, 40)\n")
    assert floats(r"ignored: (\S+)% of the training pixels", text) == [11.8]
    shares, weights = (
        dict(re.findall(r"(\w+) (\d+\.\d+)", re.search(rf"^{name}: (.*)$", text, re.MULTILINE).group(1)))
        for name in ("share of the others", "weights")
    )
    assert list(shares) == list(weights) == ["sky", "shore", "water", "trees", "roof", "walls"]
    assert all(abs(float(shares[name]) / 100 * float(weights[name]) * 6 - 1) < 0.03 for name in shares)

    ours, by_hand = floats(r"logits \(4, 6, 213, 40\), loss (\S+), by hand (\S+)", text)
    (last,) = floats(r"classes last, axis=-1: (\S+)", text)
    (with_nan,) = floats(r"NaN in their logits: loss (\S+)", text)
    assert max(abs(value - by_hand) for value in (ours, last, with_nan)) <= 1e-5
    assert "largest gradient at ignored pixels: 0.0\n" in text

    def losses(name):
        found = re.findall(rf"^{name}: step +(\d+)/150  loss (\d\.\d+)$", text, re.MULTILINE)
        return {int(step): float(loss) for step, loss in found}

    for name in ("without weights", "with weights"):
        assert list(losses(name)) == [1, 60, 150]
        assert losses(name)[150] < 0.1 * losses(name)[1]
    assert abs(losses("without weights")[1] - losses("with weights")[1]) > 1e-3

    def score(step, name, measure):
        (line,) = re.findall(rf"^step +{step}, {name}: +{measure} +(.*)$", text, re.MULTILINE)
        return {label: float(value) for label, value in re.findall(r"(\w+) (\d\.\d+)", line)}

    # Measured recall of the shore 0.024 and 0.890, then 0.810 and 0.903; mean IoU 0.598 and 0.677, 0.748 and 0.756.
    assert score(60, "without weights", "recall")["shore"] < score(60, "with weights", "recall")["shore"] - 0.3
    assert score(60, "with weights", "recall")["shore"] > 0.7
    assert score(60, "without weights", "recall")["mean"] < score(60, "with weights", "recall")["mean"] - 0.04
    assert all(score(150, name, "iou")["mean"] > 0.65 for name in ("without weights", "with weights"))
    assert all(score(150, name, "recall")["sky"] > 0.9 for name in ("without weights", "with weights"))


def check_research_vmap(text):
    assert text.startswith("400 training images, 40 with a wrong label; 1397 test images\n")
    assert "losses of 400 rows at 30 settings: (5, 3, 2, 400)\n" in text
    assert floats(r"largest relative difference from softmax_cross_entropy at γ = 0: (\S+)", text)[0] <= 5e-6
    assert "90 models trained; test logits (5, 3, 2, 3, 1397, 10)\n" in text
    assert floats(r"wrong training labels known by heart, at ε = γ = z = 0: (\d+)%", text)[0] > 70

    number = r"(\d+\.\d+)"
    cell = rf"z {number}: accuracy {number}, ECE {number}, \|log Z\| +{number}"
    rows = re.findall(rf"^ε {number}, γ (\d)   {cell}   {cell}$", text, re.MULTILINE)
    grid = {}
    for smoothing, gamma, *cells in rows:
        for z, *values in (cells[:4], cells[4:]):
            grid[float(smoothing), int(gamma), float(z)] = [float(value) for value in values]
    assert len(grid) == 30
    assert all(0.75 < accuracy < 0.95 for accuracy, _, _ in grid.values())
    # ECE without γ and z, measured 0.09, 0.03, 0.08, 0.17, 0.25 as ε grows; with γ = 1 and ε = 0, 0.05.
    error = {key: value[1] for key, value in grid.items()}
    assert error[0.0, 0, 0.0] > error[0.05, 0, 0.0] + 0.02
    assert 0.05 < error[0.1, 0, 0.0] + 0.03 < error[0.2, 0, 0.0] < error[0.3, 0, 0.0] - 0.03
    assert error[0.0, 2, 0.0] < error[0.0, 0, 0.0] - 0.02
    log_z = {key: value[2] for key, value in grid.items()}
    assert all(log_z[s, g, 0.01] < 0.4 * log_z[s, g, 0.0] for s, g, z in grid if z == 0)

    assert floats(r"mean of the 400 gradients and gradient of the mean: (\S+) apart", text)[0] <= 1e-6
    right, wrong = floats(r"median norm: right labels (\S+), wrong labels (\S+)", text)
    assert wrong > 4 * right
    assert floats(r"of the 40 rows with the largest gradients, (\d+) have a wrong label", text)[0] >= 25

    assert floats(r"Hv against finite differences:  (\S+) of its norm, at best", text)[0] <= 1e-8
    assert floats(r"Gv against the written-out one: (\S+) of its norm", text)[0] <= 1e-12
    assert floats(r"H against its transpose: +(\S+)", text)[0] <= 1e-12
    assert floats(r"H against G, last layer: +(\S+)", text)[0] <= 1e-12
    assert floats(r"H against G, all parameters: +(\S+) of its norm", text)[0] > 0.01
    negative, none = floats(r"negative eigenvalues: H (\d+), G (\d+)", text)
    assert negative > 50
    assert none == 0
    assert floats(r"rank of G: (\d+) of 1210", text)[0] <= 900  # 100 rows of 10 logits, whose shift is not seen


def check_policy_gradient(text):
    rewards = re.findall(r"^\[7 1 9 1\] → .*: reward (\S+)$", text, re.MULTILINE)
    assert rewards == ["1.00", "0.75", "0.00"]
    # The last layer begins at zero: each digit is drawn with p = 1/10.
    log_prob, entropy = floats(r"log-probability and entropy of the first digit: (\S+) (\S+)", text)
    assert max(abs(log_prob + math.log(10)), abs(entropy - math.log(10))) <= 1e-4
    assert floats(r"largest relative difference of the gradients of PPO and REINFORCE: (\S+)", text)[0] <= 1e-5

    steps = re.findall(r"^step +(\d+)  reward (\S+)  all four right (\S+)  entropy (\S+)$", text, re.MULTILINE)
    step, reward, solved, nats = (list(map(float, column)) for column in zip(*steps, strict=True))
    assert step == [0, 50, 100, 150, 200, 249]
    assert reward[0] < 0.2 < reward[1] < reward[2]
    assert abs(nats[0] - math.log(10)) <= 1e-3
    # Measured 0.87 to 0.97 of all answers right, at an entropy of 0.03.
    assert solved[-1] > 0.7
    assert nats[-1] < 0.2
    assert floats(r"all four right: (\S+) of 1000", text)[0] > 0.7
    memory = re.findall(r"classes: materialised +(\d+) MiB, fused +(\d+) MiB$", text, re.MULTILINE)
    assert len(memory) == 3
    assert all(5 * int(ours) < int(theirs) for theirs, ours in memory)


def check_distillation(text):
    assert "900 training images, 40 with a label for the student; 897 test images\n" in text
    (teacher,) = floats(r"teacher: test accuracy (\S+)", text)
    assert teacher > 0.95
    assert floats(r"on average the 3 hold (\S+)", text)[0] > 0.95
    logits, hidden = floats(r"at the start: from logits (\S+), from hidden states (\S+)", text)
    assert abs(logits - hidden) <= 2e-5
    students = {
        name: float(accuracy)
        for name, accuracy in re.findall(r"^student of (.*): loss \S+, test accuracy (\S+)$", text, re.MULTILINE)
    }
    assert list(students) == ["40 labels", "logits", "top 3", "hidden states"]
    # Measured 0.708, and 0.943 to 0.946 of the others.
    assert all(
        students[name] > max(0.85, students["40 labels"] + 0.05) for name in ("logits", "top 3", "hidden states")
    )
    assert abs(students["logits"] - students["hidden states"]) < 0.03


CHECKS = {
    "distillation": check_distillation,
    "language_model": check_language_model,
    "multilabel": check_multilabel,
    "policy_gradient": check_policy_gradient,
    "quickstart": check_quickstart,
    "research_vmap": check_research_vmap,
    "segmentation": check_segmentation,
    "sharding": check_sharding,
    "why_cross_entropy": check_why_cross_entropy,
}


def test_there_is_a_check_for_each_notebook():
    assert [script.stem for script in SCRIPTS] == sorted(CHECKS)


@each_notebook
def test_script_runs_and_shows_what_it_promises(script):
    path = os.pathsep.join(filter(None, (str(Path(jxent.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    output = ROOT / "notebooks" / "output"
    for old in output.glob(f"{script.stem}*.png"):
        old.unlink()
    done = subprocess.run(
        [sys.executable, str(script.relative_to(ROOT))],
        cwd=ROOT,
        env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr  # no progress bar in a log
    CHECKS[script.stem](done.stdout)
    plots = [ROOT / path for path in re.findall(r"^plot saved to (.*)$", done.stdout, re.MULTILINE)]
    assert output / f"{script.stem}.png" in plots
    assert sorted(plots) == sorted(output.glob(f"{script.stem}*.png"))
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in plots)


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def stdout_of(notebook):
    outputs = (output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


@each_notebook
def test_ipynb_is_in_step(script):
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    source = jupytext.read(script)
    assert cells(notebook) == cells(source)
    assert source.metadata["jupytext"]["formats"] == notebook.metadata["jupytext"]["formats"] == "ipynb,py:percent"


@each_notebook
def test_ipynb_is_executed(script):
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data"}  # no error, no stray value
    assert all(output.name == "stdout" for output in outputs if output.output_type == "stream")  # no warning
    assert any("image/png" in output.get("data", {}) for output in outputs)
    CHECKS[script.stem](stdout_of(notebook))


@each_notebook
def test_ipynb_has_nothing_of_its_machine(script):
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    assert set(notebook.metadata) == {"jupytext", "kernelspec", "language_info"}
    assert set(notebook.metadata.kernelspec) == {"display_name", "language", "name"}
    assert dict(notebook.metadata.language_info) == {"name": "python"}
    assert all(cell.metadata == {} for cell in notebook.cells)
    without_images = re.sub(r'"image/png": "[^"]*"', "", script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert not re.search(r"/home/|/root/|/tmp/|/Users/|/work/|[A-Z]:\\\\|site-packages", without_images)


def write_ipynb(script):
    """Executes the script in a fresh kernel and writes its .ipynb."""
    from nbclient import NotebookClient  # noqa: PLC0415

    os.environ.pop("MPLBACKEND", None)  # the kernel's own shows plots inline
    notebook = jupytext.read(script)
    for number, cell in enumerate(notebook.cells):
        cell["id"], cell["metadata"] = f"cell-{number:02d}", {}
    client = NotebookClient(notebook, record_timing=False, coalesce_streams=True, timeout=TIMEOUT)
    client.execute(cwd=str(script.parent))
    for key in set(notebook.metadata) - {"jupytext", "kernelspec", "language_info"}:
        del notebook.metadata[key]
    notebook.metadata["language_info"] = {"name": "python"}
    jupytext.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    for _script in SCRIPTS:
        write_ipynb(_script)
