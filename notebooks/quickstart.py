# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart: rare classes and missing labels
#
# We train a small classifier on photos of handwritten digits. The training data has two faults that real data often
# has:
#
# - Three digits are **rare**. A plain loss lets the model neglect them.
# - Some labels are **missing**. They hold −100, the usual mark for "do not count this row".
#
# `jxent.softmax_cross_entropy` takes care of both, with `class_weight` and `ignore_index`. At the end, we write the
# same training step with optax alone, for comparison.
#
# You need `pip install "jxent[notebooks]"`. Nothing is downloaded: the digits come with scikit-learn. Two CPU cores
# need less than a minute.

# %%
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jxent

IN_NOTEBOOK = "get_ipython" in globals()
if not IN_NOTEBOOK:
    matplotlib.use("Agg")  # as a script, this file saves its plot and needs no display

import matplotlib.pyplot as plt

# %% [markdown]
# ## The data
#
# There are 1797 images of 8 × 8 pixels, half of them for training and half for the test. In the training half we keep
# only ten images of each of the digits 2, 5 and 8. Then we lose about every tenth label. The test half stays as it is.

# %%
CLASSES = 10
RARE = (2, 5, 8)
IGNORED = -100

rng = np.random.default_rng(0)
digits = load_digits()
images = (digits.images / 16).astype(np.float32)
train_images, test_images, train_labels, test_labels = train_test_split(
    images, digits.target.astype(np.int32), test_size=0.5, stratify=digits.target, random_state=0
)

keep = np.ones(len(train_labels), dtype=bool)
for digit in RARE:
    keep[rng.permutation(np.flatnonzero(train_labels == digit))[10:]] = False
train_images, train_labels = train_images[keep], train_labels[keep]
train_labels[rng.random(len(train_labels)) < 0.1] = IGNORED

counts = np.bincount(train_labels[train_labels != IGNORED], minlength=CLASSES)
print(f"{len(train_labels)} training images, {np.sum(train_labels == IGNORED)} of them without a label")
print("labels per digit:", "  ".join(f"{digit}: {count}" for digit, count in enumerate(counts)))

# %% [markdown]
# ## Class weights
#
# A class with few labels gets a large weight. With $n$ labels in all, $C$ classes and $n_c$ labels of class $c$, the
# weight is $n / (C \, n_c)$. Each class then carries the same total weight. Ignored labels are no labels, so the counts
# above leave them out.

# %%
class_weight = jnp.asarray(counts.sum() / (CLASSES * counts), dtype=jnp.float32)
print("weight per digit:", "  ".join(f"{digit}: {weight:.2f}" for digit, weight in enumerate(class_weight)))


# %% [markdown]
# ## The model and the training step
#
# The model has one hidden layer. It returns logits, without a softmax at its end, since the loss includes it.
#
# The one call of `softmax_cross_entropy` is what this notebook is about:
#
# - `class_weight` multiplies the loss of each row by the weight of its label. `None` means no weights.
# - `ignore_index` drops the rows with that label. They count neither in the loss nor in the gradient.
# - `reduction="mean"` divides by the sum of the weights that count, not by the number of rows.


# %%
class Classifier(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.out = nnx.Linear(64, CLASSES, rngs=rngs)

    def __call__(self, images):
        return self.out(nnx.relu(self.hidden(images.reshape(len(images), -1))))


@nnx.jit
def train_step(model, optimizer, images, labels, class_weight):
    def loss_fn(model):
        return jxent.softmax_cross_entropy(
            model(images), labels, class_weight=class_weight, ignore_index=IGNORED, reduction="mean"
        )

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


# %% [markdown]
# After each epoch we compute the loss and the accuracy on all training images. `return_aux=True` also returns the class
# that the model predicts for each row. `weighted_mean` averages over the rows that have a label.


# %%
@nnx.jit
def evaluate(model, images, labels, class_weight):
    loss, aux = jxent.softmax_cross_entropy(
        model(images), labels, class_weight=class_weight, ignore_index=IGNORED, reduction="mean", return_aux=True
    )
    return loss, jxent.weighted_mean(aux.predicted == labels, where=labels != IGNORED)


# %% [markdown]
# ## Training
#
# Both runs start from the same weights and see the same batches. Only `class_weight` differs. The progress bar counts
# steps. It does not appear if the output goes to a file.

# %%
EPOCHS = 15
BATCH = 64
STEPS = len(train_images) // BATCH  # the last, shorter batch of an epoch is left out


def create():
    model = Classifier(nnx.Rngs(0))
    return model, nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)


def epoch_batches(rng):
    order = rng.permutation(len(train_images))
    for rows in order[: STEPS * BATCH].reshape(STEPS, BATCH):
        yield jnp.asarray(train_images[rows]), jnp.asarray(train_labels[rows])


def train(name, class_weight):
    model, optimizer = create()
    rng = np.random.default_rng(1)
    quiet = not (IN_NOTEBOOK or sys.stdout.isatty())
    with tqdm(total=EPOCHS * STEPS, desc=name, unit="step", file=sys.stdout, disable=quiet) as bar:
        for epoch in range(1, EPOCHS + 1):
            for batch_images, batch_labels in epoch_batches(rng):
                train_step(model, optimizer, batch_images, batch_labels, class_weight)
                bar.update()
            loss, accuracy = evaluate(model, train_images, train_labels, class_weight)
            bar.write(f"{name}: epoch {epoch:2d}/{EPOCHS}  loss {loss:.4f}  train accuracy {accuracy:.3f}")
    return model


# %%
plain_model = train("without weights", None)

# %%
weighted_model = train("with weights", class_weight)

# %% [markdown]
# ## What the weights change
#
# The recall of a digit is the share of its test images that the model gets right.


# %%
def score(model):
    predicted = np.asarray(model(jnp.asarray(test_images)).argmax(axis=-1))
    hits = predicted == test_labels
    return predicted, np.mean(hits), {digit: np.mean(hits[test_labels == digit]) for digit in RARE}


plain_predicted, plain_accuracy, plain_recall = score(plain_model)
weighted_predicted, weighted_accuracy, weighted_recall = score(weighted_model)

for name, accuracy, recall in (
    ("without weights", plain_accuracy, plain_recall),
    ("with weights", weighted_accuracy, weighted_recall),
):
    rare = "  ".join(f"{digit}: {value:.3f}" for digit, value in recall.items())
    print(f"{name}: test accuracy {accuracy:.3f}, recall of rare digits {rare}")

# %% [markdown]
# Without weights, the model finds few of the 2s and 8s. With weights, it finds most of them. The rare digits, their
# number and the short training were chosen so that the difference is plain to see, so do not expect as much everywhere.
# After a hundred epochs the plain model nearly catches up: recalls of 0.70, 0.79 and 0.67 against 0.73, 0.86 and 0.70.
#
# The right of the plot shows the first test images of each rare digit, with the predictions of both models.

# %%
PLAIN, WEIGHTED, WRONG = "#9aa5b1", "#1f6f8b", "#c0392b"
SHOWN = 5

figure = plt.figure(figsize=(11, 4), layout="constrained")
chart, gallery = figure.subfigures(1, 2, width_ratios=(1.1, 1))

axes = chart.subplots()
groups = ["test\naccuracy"] + [f"recall\nof {digit}" for digit in RARE]
for offset, color, name, values in (
    (-0.2, PLAIN, "without class weights", [plain_accuracy, *plain_recall.values()]),
    (0.2, WEIGHTED, "with class weights", [weighted_accuracy, *weighted_recall.values()]),
):
    bars = axes.bar(np.arange(len(groups)) + offset, values, width=0.38, color=color, label=name)
    axes.bar_label(bars, fmt="{:.2f}", padding=2)
axes.set_xticks(np.arange(len(groups)), groups)
axes.set_ylim(0, 1.25)
axes.set_yticks([0, 0.5, 1])
axes.spines[["top", "right"]].set_visible(False)
axes.spines["left"].set_bounds(0, 1)
axes.legend(loc="upper center", ncols=2, frameon=False)

gallery.suptitle("seen as: without → with weights (wrong in red)", fontsize=10)
for row, digit in zip(gallery.subplots(len(RARE), SHOWN), RARE, strict=True):
    for cell, index in zip(row, np.flatnonzero(test_labels == digit), strict=False):
        cell.imshow(test_images[index], cmap="gray_r")
        cell.set_axis_off()
        for x, predicted in ((0.25, plain_predicted[index]), (0.75, weighted_predicted[index])):
            color = "black" if predicted == digit else WRONG
            cell.text(x, -0.04, str(predicted), color=color, ha="center", va="top", transform=cell.transAxes)
        cell.text(0.5, -0.04, "→", ha="center", va="top", transform=cell.transAxes)

if IN_NOTEBOOK:
    plt.show()
else:
    path = Path(__file__).parent / "output" / "quickstart.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    print("plot saved to", os.path.relpath(path))

# %% [markdown]
# ## The same step with optax alone
#
# The cross entropy of optax has no class weights and no ignored label. We write both by hand. Note the two `where`: one
# keeps −100 from being used as an index, the other takes the row out of the mean.


# %%
def optax_loss(logits, labels, class_weight):
    labelled = labels != IGNORED
    safe_labels = jnp.where(labelled, labels, 0)
    row_loss = optax.softmax_cross_entropy_with_integer_labels(logits, safe_labels)
    row_weight = jnp.where(labelled, class_weight[safe_labels], 0.0)
    return jnp.sum(row_weight * row_loss) / jnp.sum(row_weight)


@nnx.jit
def optax_train_step(model, optimizer, images, labels, class_weight):
    def loss_fn(model):
        return optax_loss(model(images), labels, class_weight)

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


# %% [markdown]
# From the same start, both steps give the same loss on each batch of an epoch.

# %%
differences = []
for batch in epoch_batches(np.random.default_rng(1)):
    ours = float(train_step(*create(), *batch, class_weight))
    theirs = float(optax_train_step(*create(), *batch, class_weight))
    differences.append(abs(ours - theirs) / theirs)
print(f"largest relative difference between jxent and optax, {len(differences)} batches: {max(differences):.1e}")
assert max(differences) <= 1e-6

# %% [markdown]
# ## Where they differ
#
# - **A confident, right row.** The loss is small but not 0. optax subtracts 20 from 20 and gets 0. jxent keeps the
#   digits, in the loss and in the gradient.
# - **A batch without any label.** The mean above divides 0 by 0, which is NaN, and one such batch ruins the model. The
#   mean of jxent is 0.
#
# They agree on an unmasked label of −100: it is no class, so both give NaN rather than a wrong number.

# %%
confident = jnp.array([[20.0, 0.0, 0.0]])
label = jnp.array([0])
no_label = jnp.array([IGNORED])
no_weights = jnp.ones(3)


def optax_row(logits, label):
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)[0]


def jxent_row(logits, label):
    return jxent.softmax_cross_entropy(logits, label)[0]


optax_slope, jxent_slope = (jax.grad(row)(confident, label)[0, 0] for row in (optax_row, jxent_row))
optax_unmasked, jxent_unmasked = (row(confident, no_label) for row in (optax_row, jxent_row))
optax_empty = optax_loss(confident, no_label, no_weights)
jxent_empty = jxent.softmax_cross_entropy(confident, no_label, ignore_index=IGNORED, reduction="mean")

print(f"confident row, loss:      optax {optax_row(confident, label):.1e}, jxent {jxent_row(confident, label):.1e}")
print(f"confident row, gradient:  optax {optax_slope:.1e}, jxent {jxent_slope:.1e}")
print(f"batch without any label:  optax {optax_empty:.1f}, jxent {jxent_empty:.1f}")
print(f"label -100, not masked:   optax {optax_unmasked:.1f}, jxent {jxent_unmasked:.1f}")
