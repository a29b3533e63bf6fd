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
# # Segmentation: a class for each pixel
#
# A small convolutional network learns to tell sky, far shore, water, trees, roof and walls apart, pixel by pixel, in a
# photograph. Two things are typical of such labels:
#
# - Nobody can say which class the pixels **on a border** have. They are labelled −100 and do not count, as in PASCAL
#   VOC.
# - Some classes are **small**. Of a hundred labelled pixels, some forty are sky and three are shore.
#
# `jxent.softmax_cross_entropy` takes the logits as `[B, C, H, W]`, with `axis=1`, and the labels as `[B, H, W]`.
#
# You need `pip install "jxent[notebooks]"`. Nothing is downloaded: the photograph comes with scikit-learn. Two CPU
# cores need less than a minute.

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
from matplotlib.path import Path as Outline
from sklearn.datasets import load_sample_image
from tqdm import tqdm

import jxent

IN_NOTEBOOK = "get_ipython" in globals()
if not IN_NOTEBOOK:
    matplotlib.use("Agg")  # as a script, this file saves its plot and needs no display

import matplotlib.pyplot as plt

# %% [markdown]
# ## The photograph and its labels
#
# `china.jpg` shows a tower of the Summer Palace in Beijing. It comes without labels. The polygons below were drawn over
# it for this notebook, by eye and roughly, so they are no benchmark: boats count as water, and what shows through the
# railings counts as walls. What no polygon covers is sky, and a later polygon covers an earlier one.

# %%
CLASSES = ["sky", "shore", "water", "trees", "roof", "walls"]
IGNORED = -100
BORDER = 3  # pixels to each side of a border that do not count

POLYGONS = """
shore    0,205 95,208 95,245 70,258 64,272 20,278 0,277
shore    320,205 560,205 560,220 480,219 474,225 500,229 502,239 470,243 424,240 400,236 320,238
water    0,278 64,274 95,270 95,325 0,325
water    320,238 400,237 424,241 470,244 503,240 502,229 478,224 482,220 560,221 600,340 320,340
walls    192,30 214,30 212,46 217,58 191,58 198,46
walls    119,128 295,128 296,158 320,186 320,228 328,228 328,238 250,252 340,270 341,308 348,308 348,319 310,350 310,427
         280,427 280,390 340,368 300,350 160,360 80,338 74,330 80,318 80,280 95,240 93,234 98,230 98,185 119,160
roof     194,60 216,60 228,75 252,92 275,104 297,110 319,119 318,127 296,137 280,130 240,124 180,124 150,126 119,138
         96,128 98,108 122,104 150,94 175,80
roof     182,156 268,156 280,164 308,166 328,171 327,179 310,185 260,182 180,186 100,188 86,178 88,168 112,162
roof     90,248 120,245 180,248 300,243 350,249 350,258 320,270 270,280 230,282 165,283 130,280 64,272 66,262
roof     160,358 300,348 345,320 370,332 372,340 340,370 325,372 300,385 240,392 205,380
ignored  296,386 345,364 345,427 296,427
trees    0,140 8,150 8,175 20,185 36,192 46,205 50,218 66,220 75,232 62,246 48,240 36,248 30,258 18,275 0,277
trees    0,293 18,297 25,318 45,318 70,325 75,345 120,334 145,332 160,340 160,358 205,366 213,388 270,390 288,405
         290,427 0,427
trees    296,370 318,366 328,384 310,392 300,388
trees    340,368 372,345 385,328 420,328 430,308 450,304 480,292 510,296 525,274 545,272 556,282 562,290 556,262 546,232
         552,214 572,206 568,172 584,165 586,145 598,136 618,136 625,152 640,158 640,427 330,427 330,395
"""


def draw(polygons, height, width):
    """Class ids of the pixels, with those near a border ignored."""
    y, x = np.mgrid[:height, :width] + 0.5
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)
    labels = np.zeros((height, width), np.int32)
    for polygon in polygons.strip().replace("\n  ", " ").splitlines():
        name, *corners = polygon.split()
        inside = Outline([tuple(map(int, corner.split(","))) for corner in corners]).contains_points(pixels)
        labels[inside.reshape(height, width)] = IGNORED if name == "ignored" else CLASSES.index(name)
    near = np.pad(labels, BORDER, mode="edge")
    shifts = np.lib.stride_tricks.sliding_window_view(near, (2 * BORDER + 1, 2 * BORDER + 1))
    return np.where(shifts.min(axis=(2, 3)) == shifts.max(axis=(2, 3)), labels, IGNORED)


photo = load_sample_image("china.jpg")
labels = draw(POLYGONS, *photo.shape[:2])

# %% [markdown]
# ## Strips for training, strips for the test
#
# We cut the photograph into eight upright strips. The first, third, fifth and seventh are for training, the others for
# the test. We keep only every second pixel each way, which makes a strip 213 × 40. All strips come from one photograph,
# so the task is easy: the network meets no other tower and no other weather.

# %%
STRIPS = 8


def strips(array):
    half = array[: array.shape[0] // 2 * 2 : 2, ::2]
    return np.stack(np.split(half, STRIPS, axis=1))


images, targets = strips((photo / 255).astype(np.float32)), strips(labels)
train_images, train_labels = images[::2], targets[::2]
test_images, test_labels = images[1::2], targets[1::2]

counts = np.bincount(train_labels[train_labels != IGNORED], minlength=len(CLASSES))
print(f"training images {train_images.shape}, labels {train_labels.shape}")
print(f"ignored: {np.mean(train_labels == IGNORED):.1%} of the training pixels")
print(
    "share of the others:",
    ", ".join(f"{name} {share:.1%}" for name, share in zip(CLASSES, counts / counts.sum(), strict=True)),
)

# %% [markdown]
# ## Class weights
#
# `class_counts` counts the labels of each class, except those that `where` masks. `balanced_class_weights` turns the
# counts into weights that give every class the same total.

# %%
class_weight = jxent.balanced_class_weights(
    jxent.class_counts(jnp.where(train_labels == IGNORED, 0, train_labels), len(CLASSES), where=train_labels != IGNORED)
)
print("weights:", ", ".join(f"{name} {weight:.2f}" for name, weight in zip(CLASSES, class_weight, strict=True)))

# %% [markdown]
# ## The network
#
# The network has four convolutions. The two in the middle are dilated: they see every second and every fourth pixel
# around theirs, so each logit depends on 17 × 17 pixels. Flax keeps the channels last. Networks and data that come from
# torch keep them second, and so do we from here on, to show what `axis=1` is for.


# %%
class Segmenter(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        def conv(inputs, outputs, dilation):
            return nnx.Conv(inputs, outputs, (3, 3), kernel_dilation=dilation, rngs=rngs)

        self.hidden = nnx.List([conv(3, 16, 1), conv(16, 16, 2), conv(16, 16, 4)])
        self.out = conv(16, len(CLASSES), 1)

    def __call__(self, images):
        x = images - 0.5
        for conv in self.hidden:
            x = nnx.relu(conv(x))
        return jnp.moveaxis(self.out(x), -1, 1)  # [B, C, H, W]


# %% [markdown]
# ## The loss
#
# Each pixel is a row of the loss. `mean` divides by the sum of the weights of the pixels that count, like the few lines
# of NumPy below. We check three more things before any training:
#
# - With the classes moved to the end, the default `axis=-1` gives the same number.
# - The gradient is exactly 0 at every ignored pixel.
# - Even NaN in the logits of the ignored pixels changes nothing.


# %%
def loss_fn(logits, labels, class_weight, axis=1):
    return jxent.softmax_cross_entropy(
        logits, labels, axis=axis, class_weight=class_weight, ignore_index=IGNORED, reduction="mean"
    )


def by_hand(logits, labels, class_weight):
    rows = np.moveaxis(np.asarray(logits, np.float64), 1, -1)[labels != IGNORED]
    ids = labels[labels != IGNORED]
    log_probs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return np.average(-log_probs[np.arange(len(ids)), ids], weights=np.asarray(class_weight, np.float64)[ids])


logits = Segmenter(nnx.Rngs(0))(train_images)
loss, grads = jax.value_and_grad(loss_fn)(logits, train_labels, class_weight)
ignored = train_labels[:, None] == IGNORED
with_nan = loss_fn(jnp.where(ignored, jnp.nan, logits), train_labels, class_weight)

print(f"logits {logits.shape}, loss {loss:.6f}, by hand {by_hand(logits, train_labels, class_weight):.6f}")
print(f"classes last, axis=-1: {loss_fn(jnp.moveaxis(logits, 1, -1), train_labels, class_weight, axis=-1):.6f}")
print(f"largest gradient at ignored pixels: {jnp.abs(jnp.where(ignored, grads, 0)).max()}")
print(f"NaN in their logits: loss {with_nan:.6f}")

# %% [markdown]
# ## Training
#
# Both runs start from the same network; only `class_weight` differs. Every tenth step we record what each predicts for
# all eight strips.


# %%
STEPS, EVERY = 150, 10


@nnx.jit
def train_step(model, optimizer, images, labels, class_weight):
    loss, grads = nnx.value_and_grad(lambda model: loss_fn(model(images), labels, class_weight))(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def predict(model, images):
    return model(images).argmax(axis=1)


def train(name, class_weight):
    model = Segmenter(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(5e-3), wrt=nnx.Param)
    predicted = {}
    quiet = not (IN_NOTEBOOK or sys.stdout.isatty())
    with tqdm(total=STEPS, desc=name, unit="step", file=sys.stdout, disable=quiet) as bar:
        for step in range(1, STEPS + 1):
            loss = train_step(model, optimizer, train_images, train_labels, class_weight)
            bar.update()
            if step % EVERY == 0:
                predicted[step] = np.asarray(predict(model, images))
            if step in (1, SHOWN, STEPS):
                bar.write(f"{name}: step {step:3d}/{STEPS}  loss {loss:.4f}")
    return predicted


# %%
SHOWN = 60  # the step whose predictions are shown below

predicted = {name: train(name, weight) for name, weight in (("without weights", None), ("with weights", class_weight))}

# %% [markdown]
# ## How good
#
# We measure on the test strips. The recall of a class is the share of its pixels that were found. Intersection over
# union (IoU) also counts the pixels that were wrongly given to the class: it divides the pixels in both label and
# prediction by those in either.


# %%
def confusion(predicted):
    counts = test_labels != IGNORED
    pairs = np.zeros((len(CLASSES), len(CLASSES)))
    np.add.at(pairs, (test_labels[counts], predicted[1::2][counts]), 1)
    return pairs


def recall(predicted):
    pairs = confusion(predicted)
    return pairs.diagonal() / pairs.sum(axis=1)


def iou(predicted):
    pairs = confusion(predicted)
    return pairs.diagonal() / (pairs.sum(axis=0) + pairs.sum(axis=1) - pairs.diagonal())


for step in (SHOWN, STEPS):
    for name, found in predicted.items():
        for measure in (recall, iou):
            values = measure(found[step])
            each = "  ".join(f"{label} {value:.3f}" for label, value in zip(CLASSES, values, strict=True))
            print(f"step {step:3d}, {name + ':':<16} {measure.__name__:<6}  {each}  mean {values.mean():.3f}")

# %% [markdown]
# After 60 steps the network without weights has hardly found the shore, and takes it for sky or water. With weights it
# finds nine tenths of it. This is a head start rather than a lasting advantage: after 150 steps the plain network has
# found most of the shore too, and the IoU, which also counts what is wrongly called shore, is no better with weights.
#
# ## In pictures
#
# The strips in full colour are the test strips. The labels show the photograph on the borders. No loss ever told the
# networks what to predict there, and their guesses show as a rim around the tower and the trees.

# %%
COLORS = dict(zip(CLASSES, ("#56b4e9", "#cc79a7", "#0072b2", "#009e73", "#f0e442", "#d55e00"), strict=True))
LINES = {"without weights": "#9aa5b1", "with weights": "#1f6f8b"}
palette = np.array([matplotlib.colors.to_rgb(color) for color in COLORS.values()])
whole = np.concatenate(images, axis=1)
height, width = whole.shape[:2]
is_test = np.arange(width) * STRIPS // width % 2 == 1


def paint(ids):
    """The classes over the photograph, which alone shows where pixels are ignored."""
    ids = np.concatenate(ids, axis=1)
    return np.where((ids == IGNORED)[..., None], whole, 0.15 * whole + 0.85 * palette[np.maximum(ids, 0)])


def pale_training_strips(picture):
    return np.where(is_test[:, None], picture, 0.45 * picture + 0.55)


figure = plt.figure(figsize=(11, 5.3), layout="constrained")
gallery, charts = figure.subfigures(1, 2, width_ratios=(2.1, 1))

cells = gallery.subplots(2, 2)
for cell, title, picture in zip(
    cells.flat,
    ("the photograph", "the labels", *(f"{name}, step {SHOWN}" for name in predicted)),
    (whole, paint(targets), *(pale_training_strips(paint(found[SHOWN])) for found in predicted.values())),
    strict=True,
):
    cell.imshow(picture, extent=(0, width, height, 0))
    cell.set_title(title, fontsize=11)
    cell.set_axis_off()
for start in range(0, width, width // STRIPS):
    test = is_test[start]
    cells[0, 0].text(
        start + width / STRIPS / 2,
        8,
        "test" if test else "train",
        ha="center",
        va="center",
        fontsize=8,
        color="#333333",
    )
handles = [matplotlib.patches.Patch(color=color, label=name) for name, color in COLORS.items()]
gallery.legend(handles=handles, loc="outside lower center", ncols=len(CLASSES), frameon=False, handlelength=1.2)

upper, lower = charts.subplots(2, 1, sharex=True)
for axes, title, values_of in (
    (upper, "recall of the shore", lambda found: recall(found)[CLASSES.index("shore")]),
    (lower, "mean IoU of the six classes", lambda found: iou(found).mean()),
):
    for name, found in predicted.items():
        values = [values_of(found[step]) for step in found]
        axes.plot(list(found), values, color=LINES[name], linewidth=2, label=name)
    axes.axvline(SHOWN, color="black", linestyle=":", linewidth=1)
    axes.set_title(title, fontsize=11)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1])
    axes.spines[["top", "right"]].set_visible(False)
upper.legend(loc="lower right", frameon=False)
lower.set_xlabel("training step")

if IN_NOTEBOOK:
    plt.show()
else:
    path = Path(__file__).parent / "output" / "segmentation.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    print("plot saved to", os.path.relpath(path))
