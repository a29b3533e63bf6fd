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
# # A small student and a larger teacher
#
# A teacher knows more about an image than its label: it also knows what else the image looks like. A student that
# learns from that needs no labels at all. Here it learns in three ways, depending on what the teacher provides: all
# logits, the three most likely classes of each image, or the teacher's hidden states and last layer.
#
# You need `pip install "jxent[notebooks]"`. Nothing is downloaded: the images come with scikit-learn. Two CPU cores
# need less than a minute.

# %%
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jxent

IN_NOTEBOOK = "get_ipython" in globals()
if not IN_NOTEBOOK:
    matplotlib.use("Agg")  # as a script, this file saves its plot and needs no display

import matplotlib.pyplot as plt

# %% [markdown]
# ## The data
#
# There are 1797 images of handwritten digits, with 8 × 8 pixels each. The teacher learns from 900 labelled ones. The
# student has a label for 40 of these, four per digit.

# %%
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
train_images, test_images, train_labels, test_labels = train_test_split(
    images, labels, train_size=900, stratify=labels, random_state=0
)
few = np.concatenate([np.flatnonzero(train_labels == digit)[:4] for digit in range(10)])
print(f"{len(train_images)} training images, {len(few)} with a label for the student; {len(test_images)} test images")

# %% [markdown]
# ## Two networks
#
# Both return hidden states and keep the kernel of the last layer aside. The teacher is sixteen times as wide as the
# student, so their hidden states differ in width.

# %%
CLASSES = 10


class Network(nnx.Module):
    def __init__(self, width, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.kernel = nnx.Param(rngs.params.normal((width, CLASSES)) / width**0.5)

    def __call__(self, images):
        return nnx.relu(self.second(nnx.relu(self.first(images))))


def logits(network, images):
    return network(images) @ network.kernel[...]


def accuracy(network):
    predicted = jnp.argmax(logits(network, test_images), axis=-1)
    return float(jxent.weighted_mean(predicted == test_labels))


def train(network, loss, steps):
    """Full batches: there are few images."""
    optimizer = nnx.Optimizer(network, optax.adam(optax.cosine_decay_schedule(3e-3, steps)), wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer):
        value, gradients = nnx.value_and_grad(loss)(network)
        optimizer.update(network, gradients)
        return value

    return [float(step(network, optimizer)) for _ in range(steps)]


# %% [markdown]
# ## The teacher
#
# The teacher learns from labels. A student trained on the same labels would be the one to beat, but it has only forty.

# %%
STEPS, WIDTH, STUDENT = 400, 256, 16


def of_labels(network, images, labels):
    hidden = network(images)
    return jxent.linear_softmax_cross_entropy(hidden, network.kernel[...], labels, reduction="mean")


teacher = Network(WIDTH, nnx.Rngs(0))
train(teacher, partial(of_labels, images=train_images, labels=train_labels), STEPS)
teacher_hidden = teacher(train_images)
teacher_logits = logits(teacher, train_images)
print(f"teacher: test accuracy {accuracy(teacher):.3f}")

# %% [markdown]
# This is what it knows about an image: the most likely digits, at a temperature of 3.

# %%
TEMPERATURE, K = 3.0, 3
probs = jax.nn.softmax(teacher_logits / TEMPERATURE)
top_probs, top_ids = jax.lax.top_k(probs, K)
unsure = np.argsort(np.asarray(top_probs[:, 0]))[:4]
for image in unsure:
    shares = ", ".join(f"{digit} {share:.2f}" for digit, share in zip(top_ids[image], top_probs[image], strict=True))
    print(f"labelled {train_labels[image]}: {shares}")
print(f"on average the {K} hold {top_probs.sum(axis=1).mean():.3f}")

# %% [markdown]
# ## Three ways to learn from it
#
# - **logits**: the divergence of two softmaxes, both at the temperature.
# - **top 3**: `SparseLabels`, three ids and their shares, as the labels of the usual loss. `logit_scale` divides the
#   student's logits by the temperature.
# - **hidden states**: the divergence again, from hidden states and kernels alone.
#
# None of them sees a label.


# %%
def of_logits(network):
    return jxent.softmax_distillation(
        logits(network, train_images), teacher_logits, temperature=TEMPERATURE, reduction="mean"
    )


def of_top(network):
    shares = jxent.SparseLabels(top_ids, top_probs / top_probs.sum(axis=1, keepdims=True))
    hidden = network(train_images)
    return jxent.linear_softmax_cross_entropy(
        hidden, network.kernel[...], shares, logit_scale=1 / TEMPERATURE, reduction="mean"
    )


def of_hidden(network):
    return jxent.linear_softmax_distillation(
        network(train_images),
        network.kernel[...],
        teacher_hidden,
        teacher.kernel[...],
        temperature=TEMPERATURE,
        reduction="mean",
    )


# %% [markdown]
# The first and the last give the same number, computed in two ways:

# %%
student = Network(STUDENT, nnx.Rngs(1))
print(f"at the start: from logits {of_logits(student):.5f}, from hidden states {of_hidden(student):.5f}")

WAYS = {
    "40 labels": partial(of_labels, images=train_images[few], labels=train_labels[few]),
    "logits": of_logits,
    "top 3": of_top,
    "hidden states": of_hidden,
}
curves, accuracies = {}, {}
for name, loss in WAYS.items():
    student = Network(STUDENT, nnx.Rngs(1))
    curves[name] = train(student, loss, STEPS)
    accuracies[name] = accuracy(student)
    print(f"student of {name}: loss {curves[name][-1]:.4f}, test accuracy {accuracies[name]:.3f}")

# %% [markdown]
# ## In pictures
#
# On the left are the images that the teacher is least sure about. On the right is what the students know about images
# they have never seen.

# %%
figure = plt.figure(figsize=(10, 3.2), layout="constrained")
left, right = figure.subfigures(1, 2)
for axes, image in zip(left.subplots(1, 4), unsure, strict=True):
    axes.imshow(train_images[image].reshape(8, 8), cmap="gray_r")
    axes.set_title(
        "\n".join(f"{d}: {s:.2f}" for d, s in zip(top_ids[image], top_probs[image], strict=True)), fontsize=9
    )
    axes.set_axis_off()
axes = right.subplots()
names = [*accuracies, "teacher"]
values = [*accuracies.values(), accuracy(teacher)]
axes.barh(names, values, color=["#9aa5b1", *["#1f6f8b"] * 3, "#e4573d"])
for name, value in zip(names, values, strict=True):
    axes.annotate(f"{value:.3f}", (value, name), (4, 0), textcoords="offset points", va="center")
axes.set_xlim(0.5, 1.05)
axes.invert_yaxis()
axes.set_title("test accuracy", fontsize=11)
axes.spines[["top", "right"]].set_visible(False)

if IN_NOTEBOOK:
    plt.show()
else:
    path = Path(__file__).parent / "output" / "distillation.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    print("plot saved to", os.path.relpath(path))
