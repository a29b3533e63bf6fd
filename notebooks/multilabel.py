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
# # Many labels at once, and most of them missing
#
# Which digits are in the picture? Any number of the ten answers may be yes, so each is a separate yes-or-no question,
# and that is what `jxent.sigmoid_binary_cross_entropy` is for. Three things make it harder here, as they often do:
#
# - **Missing labels.** Each picture was asked about only some of the digits. The mask `where` leaves out what nobody
#   answered.
# - **Rare positives.** A rare label is "no" nearly always. `pos_weight` makes each "yes" count for more.
# - **Labels of unequal worth.** `class_weight` makes a whole label count for more, its "yes" and its "no" alike.
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
from sklearn.metrics import average_precision_score
from tqdm import tqdm

import jxent

IN_NOTEBOOK = "get_ipython" in globals()
if not IN_NOTEBOOK:
    matplotlib.use("Agg")  # as a script, this file saves its plot and needs no display

import matplotlib.pyplot as plt

# %% [markdown]
# ## The pictures
#
# scikit-learn has no data of this kind, so we make some. We combine four images of single handwritten digits into a
# picture of 16 × 16 pixels, and its labels are the digits in it. The handwriting is real, the composition is not.
# Training and test pictures are made from different images.
#
# - In the training pictures, the digits 2, 5 and 8 are rare. In the test pictures all are equally frequent, since there
#   we want to know how well each is recognised.
# - We remove three out of five training labels at random: they become a "no", whatever they were, and only the mask
#   `known` tells them from an answer. The test labels are complete.

# %%
LABELS = 10
RARE = np.array([2, 5, 8])
OTHERS = np.setdiff1d(np.arange(LABELS), RARE)

rng = np.random.default_rng(0)
digits = load_digits()
order = rng.permutation(len(digits.target))


def compose(pool, count, frequency):
    digit = digits.target[pool]
    chance = (frequency / np.bincount(digit))[digit]
    chosen = rng.choice(pool, size=(count, 4), p=chance / chance.sum())
    tiles = (digits.images[chosen] / 16).astype(np.float32).reshape(count, 2, 2, 8, 8)
    pictures = tiles.transpose(0, 1, 3, 2, 4).reshape(count, 16, 16)
    return pictures, (digits.target[chosen][..., None] == np.arange(LABELS)).any(axis=1)


train_pictures, train_labels = compose(order[:900], 1500, np.where(np.isin(np.arange(LABELS), RARE), 0.08, 1))
test_pictures, test_labels = compose(order[900:], 1500, np.ones(LABELS))
known = rng.random(train_labels.shape) < 0.4
train_labels &= known

yes = np.sum(train_labels, axis=0)
no = np.sum(~train_labels & known, axis=0)
print(f"{len(train_pictures)} training pictures, {np.mean(~known):.1%} of the labels missing")
print("known yes:", "  ".join(f"{digit}: {count}" for digit, count in enumerate(yes)))
print("known no: ", "  ".join(f"{digit}: {count}" for digit, count in enumerate(no)))

# %% [markdown]
# ## The weights
#
# `pos_weight` is the number of "no" divided by the number of "yes", so that both have the same total weight. It has an
# entry for each label and counts known labels only. `class_weight` is ours to choose: say that the rare digits matter
# three times as much.

# %%
pos_weight = jnp.asarray(no / yes, jnp.float32)
class_weight = jnp.ones(LABELS).at[RARE].set(3)
print("pos_weight:", "  ".join(f"{digit}: {weight:.1f}" for digit, weight in enumerate(pos_weight)))


# %% [markdown]
# ## The model
#
# The model applies three convolutions, takes the maximum of each channel over the picture, and computes the ten logits
# from these.


# %%
class Detector(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        def conv(inputs, outputs, stride):
            return nnx.Conv(inputs, outputs, (3, 3), strides=stride, rngs=rngs)

        self.convs = nnx.List([conv(1, 16, 1), conv(16, 32, 2), conv(32, 32, 2)])
        self.out = nnx.Linear(32, LABELS, rngs=rngs)

    def __call__(self, pictures):
        x = pictures[..., None] - 0.3
        for conv in self.convs:
            x = nnx.relu(conv(x))
        return self.out(x.max(axis=(1, 2)))


# %% [markdown]
# ## The loss
#
# With the logit $x$ of a label, $y$ = 1 for yes, and the weights $w_k$ of the label and $v_k$ of its "yes", a known
# label costs
#
# $$w_k \,\big[\, v_k \, y \log(1 + e^{-x}) + (1 - y) \log(1 + e^{x}) \,\big]$$
#
# and a missing one nothing. The mean divides by the sum of $w_k$ over the known labels. A few lines of NumPy compute
# the same. The gradient at a missing label is exactly 0, and whatever its logit holds, the loss does not change.


# %%
def loss_fn(logits, labels, known, pos_weight=None, class_weight=None):
    return jxent.sigmoid_binary_cross_entropy(
        logits, labels, where=known, pos_weight=pos_weight, class_weight=class_weight, reduction="mean"
    )


def by_hand(logits, labels, known, pos_weight, class_weight):
    x, v, w = (np.asarray(array, np.float64) for array in (logits, pos_weight, class_weight))
    loss = np.where(labels, v * np.log1p(np.exp(-x)), np.log1p(np.exp(x)))
    return np.average(loss[known], weights=np.broadcast_to(w, known.shape)[known])


some = slice(0, 200)
logits = Detector(nnx.Rngs(0))(train_pictures[some])
arguments = train_labels[some], known[some], pos_weight, class_weight
loss, grads = jax.value_and_grad(loss_fn)(logits, *arguments)
with_nan = loss_fn(jnp.where(known[some], logits, jnp.nan), *arguments)
print(f"loss {loss:.6f}, by hand {by_hand(logits, *arguments):.6f}, with NaN at the missing labels {with_nan:.6f}")
print(f"largest gradient at missing labels: {jnp.abs(jnp.where(known[some], 0, grads)).max()}")

# %% [markdown]
# ## Training
#
# We train in four ways, and each adds one remedy:
#
# 1. **missing = no**: what nobody answered is taken as a "no", as is often done without a mask;
# 2. **masked**: what nobody answered does not count;
# 3. **pos_weight**: masked, and a "yes" to a rare label counts for more;
# 4. **class_weight**: masked, `pos_weight`, and the rare labels count three times.
#
# With so few examples chance plays a large part, so we train each from three starts, and all numbers below are means of
# the three.

# %%
EPOCHS, BATCH, STARTS = 12, 60, 3
all_known = np.ones_like(known)
WAYS = {  # mask, pos_weight, class_weight
    "missing = no": (all_known, None, None),
    "masked": (known, None, None),
    "pos_weight": (known, pos_weight, None),
    "class_weight": (known, pos_weight, class_weight),
}


@nnx.jit
def train_step(model, optimizer, pictures, labels, known, pos_weight, class_weight):
    def loss_of(model):
        return loss_fn(model(pictures), labels, known, pos_weight, class_weight)

    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def predict(model, pictures):
    return model(pictures)


def train(start, known, pos_weight, class_weight, bar):
    model = Detector(nnx.Rngs(start))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    rng = np.random.default_rng(start)
    for _ in range(EPOCHS):
        for rows in rng.permutation(len(train_pictures)).reshape(-1, BATCH):
            batch = train_pictures[rows], train_labels[rows], known[rows]
            train_step(model, optimizer, *batch, pos_weight, class_weight)
            bar.update()
    return np.asarray(predict(model, test_pictures))


quiet = not (IN_NOTEBOOK or sys.stdout.isatty())
total = len(WAYS) * STARTS * EPOCHS * (len(train_pictures) // BATCH)
with tqdm(total=total, desc="training", unit="step", file=sys.stdout, disable=quiet) as bar:
    test_logits = {way: [train(start, *how, bar) for start in range(STARTS)] for way, how in WAYS.items()}

# %% [markdown]
# ## Results
#
# The **average precision** of a label measures how well the logits rank the pictures: it is 1 if all that have the
# digit come before all that do not, and here about 0.34, the share of pictures that have it, if the order is random.
# The **recall** is the share of the "yes" labels that get a probability above one half.

# %%
precision, recall, mean_probability = {}, {}, {}
for way, runs in test_logits.items():
    precision[way] = np.mean(
        [[average_precision_score(test_labels[:, k], run[:, k]) for k in range(LABELS)] for run in runs], axis=0
    )
    recall[way] = np.mean([np.sum((run > 0) & test_labels, axis=0) / test_labels.sum(axis=0) for run in runs], axis=0)
    mean_probability[way] = np.mean([jax.nn.sigmoid(run) for run in runs])
    ap, found = ((values[way][RARE].mean(), values[way][OTHERS].mean()) for values in (precision, recall))
    print(
        f"{way + ':':<14} average precision: rare {ap[0]:.3f}, others {ap[1]:.3f}"
        f"   recall: rare {found[0]:.3f}, others {found[1]:.3f}   mean probability {mean_probability[way]:.3f}"
    )
print(f"share of yes in the test: {test_labels.mean():.3f}")

# %% [markdown]
# - If missing is taken as "no", the models learn that three of five "yes" are a "no". The ranking suffers, and the
#   probabilities are far too low: few reach one half.
# - With the mask, the frequent digits are found. The rare ones are not: the models saw them too seldom to be sure.
# - `pos_weight` finds most of them and ranks them better too, at the price of a little on the others.
# - `class_weight` goes further the same way: it gives the rare labels a little more, and takes it from the others. That
#   is what we said we wanted, not a gain for all.
#
# Weights change what a probability means. With `pos_weight` it is no longer the share of "yes" to expect, so a
# threshold other than one half may suit better. The average precision has no threshold in it.
#
# In the picture, a ring is a label that nobody gave.

# %%
COLORS = dict(zip(WAYS, ("#9aa5b1", "#1f6f8b", "#e0a030", "#b5477d"), strict=True))
EXAMPLES = 4

figure = plt.figure(figsize=(12.5, 5), layout="constrained")
gallery, charts = figure.subfigures(1, 2, width_ratios=(1, 2.1))

gallery.suptitle("training pictures and their labels", fontsize=11)
shown = np.argsort(-np.sum(train_labels[:, RARE], axis=1), kind="stable")[:EXAMPLES]
for cells, index in zip(gallery.subplots(EXAMPLES, 2, width_ratios=(1, 3.2)), shown, strict=True):
    cells[0].imshow(train_pictures[index], cmap="gray_r")
    for digit in range(LABELS):
        is_known, is_yes = known[index, digit], train_labels[index, digit]
        face = ("#0b7a4b" if is_yes else "#d0d5da") if is_known else "white"
        cells[1].scatter(digit, 0, s=210, color=face, edgecolors="#d0d5da" if not is_known else face)
        ink = ("white" if is_yes else "#555555") if is_known else "#c4cad0"
        cells[1].text(digit, 0, str(digit), ha="center", va="center_baseline", color=ink, fontsize=10)
    cells[1].set_xlim(-0.7, LABELS - 0.3)
    for cell in cells:
        cell.set_axis_off()
handles = [
    matplotlib.lines.Line2D(
        [], [], marker="o", linestyle="", markersize=10, color=face, markeredgecolor=edge, label=name
    )
    for name, face, edge in (
        ("yes", "#0b7a4b", "#0b7a4b"),
        ("no", "#d0d5da", "#d0d5da"),
        ("missing", "white", "#d0d5da"),
    )
]
gallery.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, handletextpad=0.2)

left, right = charts.subplots(1, 2, width_ratios=(1.5, 1))
columns = np.concatenate([RARE, OTHERS])
places = np.arange(LABELS) + 0.6 * (np.arange(LABELS) >= len(RARE))
for offset, (way, color) in zip((-0.24, -0.08, 0.08, 0.24), COLORS.items(), strict=True):
    left.scatter(places + offset, precision[way][columns], s=55, color=color, zorder=3)
    bars = right.bar(
        np.arange(2) + 0.8 * offset / 0.64,
        [recall[way][RARE].mean(), recall[way][OTHERS].mean()],
        width=0.18,
        color=color,
        label=way,
    )
    right.bar_label(bars, fmt="{:.2f}", padding=2, fontsize=9)
for place, column in zip(places, columns, strict=True):
    values = [precision[way][column] for way in WAYS]
    left.vlines(place, min(values), max(values), color="#e4e8ec", linewidth=9, zorder=1)
left.axhline(test_labels.mean(), color="black", linestyle=":", linewidth=1)
left.text(places[-1] + 0.4, test_labels.mean() + 0.01, "random order", ha="right", va="bottom", fontsize=9)
left.set_xticks(places, columns)
left.set_title("average precision of each digit", fontsize=11)
left.set_xlabel("rare digits" + 26 * " " + "frequent digits" + 12 * " ")
left.set_ylim(0.3, 1.02)
right.set_xticks([0, 1], ["rare digits", "frequent digits"])
right.set_title("recall: share of the digits found", fontsize=11)
right.set_ylim(0, 1.05)
right.set_yticks([0, 0.5, 1])
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
charts.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, handlelength=1.2)

if IN_NOTEBOOK:
    plt.show()
else:
    path = Path(__file__).parent / "output" / "multilabel.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    print("plot saved to", os.path.relpath(path))
