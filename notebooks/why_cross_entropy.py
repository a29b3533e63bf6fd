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
# # Why cross entropy?
#
# A classifier gives each class a probability. Cross entropy measures how bad that guess was, once the right class is
# known. This notebook explains its two formulas, and then answers two questions:
#
# - Why not simply the squared error? Because a model that is **surely wrong** hardly learns from it.
# - What does cross entropy not see? That some wrong answers are **nearly right**. Soft labels can tell it.
#
# You need to know what a derivative is, and little more. To run it, `pip install "jxent[notebooks]"`. Nothing is
# downloaded: the data come with scikit-learn. Two CPU cores need less than a minute.

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_diabetes, load_digits

import jxent

IN_NOTEBOOK = "get_ipython" in globals()
if not IN_NOTEBOOK:
    matplotlib.use("Agg")  # as a script, this file saves its plots and needs no display

import matplotlib.pyplot as plt

CROSS, SQUARED, SOFT, GREY = "#1f6f8b", "#e0a030", "#b5477d", "#9aa5b1"


def show(figure, name):
    if IN_NOTEBOOK:
        plt.show()
    else:
        path = Path(__file__).parent / "output" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=120)
        print("plot saved to", os.path.relpath(path))


# %% [markdown]
# ## Many classes, one of them right
#
# A model looks at a photograph and gives each class a number, its **logit** $x_c$. Any real number will do. The softmax
# turns them into probabilities: all are positive, and their sum is 1.
#
# $$p_c = \frac{e^{x_c}}{\sum_k e^{x_k}}$$
#
# The label is a distribution too: $q_c$ is 1 for the right class and 0 for the others. Cross entropy is
#
# $$L = -\sum_c q_c \log p_c$$
#
# and, since all $q_c$ but one are 0, this is just $-\log p$ of the right class. Here is each term, for a photograph of
# a wolf that the model takes for a dog:

# %%
ANIMALS = ["wolf", "dog", "truck"]
logits = jnp.array([1.0, 3.0, -1.0])
label = 0

probs = np.exp(logits) / np.exp(logits).sum()
one_hot = np.eye(3)[label]

print("class   logit    e^x      p    q  −log p  −q·log p")
for row in zip(ANIMALS, logits, np.exp(logits), probs, one_hot, -np.log(probs), -one_hot * np.log(probs), strict=True):
    print("{:<6} {:6.1f} {:6.2f} {:6.3f} {:4.0f} {:7.3f} {:9.3f}".format(*row))

by_terms = -np.sum(one_hot * np.log(probs))
print(f"sum of the last column: {by_terms:.5f}")
print(f"softmax_cross_entropy:  {jxent.softmax_cross_entropy(logits, label):.5f}")

# %% [markdown]
# Why the logarithm? The probability that a model gives to *all* of its labels is the product of the rows' $p$. We want
# this product large, and $-\log$ turns it into a sum that we want small. A right class with $p = 1$ costs 0, with
# $p = 1/2$ it costs 0.69, with $p = 1/1000$ it costs 6.9, and there is no upper end.

# %% [markdown]
# ## Two answers: yes or no
#
# With two answers, one logit $x$ is enough. The sigmoid turns it into the probability of "yes":
#
# $$p = \sigma(x) = \frac{1}{1 + e^{-x}} \qquad L = -\big[\, y \log p + (1 - y) \log(1 - p) \,\big]$$
#
# The label $y$ is 1 or 0 and switches one of the two terms off. This is the formula above for two classes, where "no"
# has the logit 0.

# %%
print("    x      p   y  −y·log p  −(1−y)·log(1−p)  binary  two classes")
for x in (-4.0, 0.0, 2.0):
    p = 1 / (1 + np.exp(-x))
    for y in (1, 0):
        yes, no = -y * np.log(p), -(1 - y) * np.log(1 - p)
        binary = jxent.sigmoid_binary_cross_entropy(jnp.array(x), jnp.array(y))
        softmax = jxent.softmax_cross_entropy(jnp.array([x, 0.0]), 1 - y)
        print(f"{x:5.0f} {p:6.3f} {y:3d} {yes + 0:9.4f} {no + 0:16.4f} {binary:7.4f} {softmax:12.4f}")

# %% [markdown]
# The functions of jxent take logits, not probabilities, for a reason. A 32-bit $\sigma(40)$ is exactly 1, so nothing
# remains of $1 - p$ and its logarithm is infinite. The loss is 40.

# %%
x = jnp.array(40.0)
from_probability = -jnp.log(1 - jax.nn.sigmoid(x))
print(f"x = 40, y = 0: by the formula {from_probability}, from the logit {jxent.sigmoid_binary_cross_entropy(x, 0)}")

# %% [markdown]
# ## What pushes the logit
#
# Training moves each logit against the slope of the loss. Take a label $y = 1$, and compare cross entropy with the
# squared error $(1 - p)^2$. By the chain rule, with $dp/dx = p\,(1 - p)$,
#
# $$\frac{d}{dx}\big({-\log p}\big) = -\frac{1}{p}\; p\,(1 - p) = p - 1
# \qquad\qquad \frac{d}{dx}(1 - p)^2 = -2\,(1 - p)\; p\,(1 - p)$$
#
# The $1/p$ of the logarithm cancels the $p$ of the sigmoid. What is left, $p - 1$, is the error itself: the more wrong,
# the harder the push. In the squared error the factor $p$ stays, and where the model is surely wrong, $p$ is nearly 0,
# and so is the push. We let JAX take the derivatives:


# %%
def cross_entropy(x):
    return jxent.sigmoid_binary_cross_entropy(x, jnp.ones_like(x))


def squared_error(x):
    return (1 - jax.nn.sigmoid(x)) ** 2


def slopes(loss, x):
    return jax.vmap(jax.grad(loss))(x)


x = jnp.array([-8.0, -4.0, 0.0, 4.0])
p = jax.nn.sigmoid(x)
cross_slopes, squared_slopes = slopes(cross_entropy, x), slopes(squared_error, x)
for row in zip(x, p, cross_slopes, squared_slopes, cross_slopes / squared_slopes, strict=True):
    print("x = {:2.0f}  p = {:.5f}  slope: cross entropy {:8.5f}, squared error {:8.5f}, ratio {:6.1f}".format(*row))

largest = max(jnp.max(jnp.abs(cross_slopes - (p - 1))), jnp.max(jnp.abs(squared_slopes + 2 * (1 - p) ** 2 * p)))
print(f"largest difference from the two formulas: {largest:.0e}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
x = jnp.linspace(-8, 4, 241)
for axes, of in ((left, lambda loss: jax.vmap(loss)(x)), (right, lambda loss: -slopes(loss, x))):
    axes.axvspan(-8, -4, color="#f1f3f5", linewidth=0)
    for name, loss, color in (
        ("cross entropy", cross_entropy, CROSS),
        ("squared error", squared_error, SQUARED),
    ):
        axes.plot(x, of(loss), color=color, linewidth=2.5, label=name)
    axes.set_xlabel("logit x of the right answer")
    axes.set_xlim(-8, 4)
    axes.spines[["top", "right"]].set_visible(False)
left.set_title("the loss", fontsize=11)
left.text(-6, 0.35, "surely wrong", ha="center", color="#555555")
left.text(-5.0, 5.7, "cross entropy", color=CROSS, ha="left")
left.text(-7.8, 1.35, "squared error", color="#a06c00", ha="left")
left.set_ylim(0, 8.2)
right.set_title("the push on the logit (minus the slope)", fontsize=11)
right.text(-6, 0.5, "surely wrong:\nthe squared error\nhardly pushes", ha="center", va="center", color="#555555")
right.set_ylim(0, 1.08)
show(figure, "why_cross_entropy")

# %% [markdown]
# ## How much sooner
#
# Take one row, one logit, and steps of gradient descent: how many until the right answer is the more probable one?
# Under cross entropy, about as many as the distance of the logit from 0. Under the squared error, every two units of
# distance multiply the number by about seven.


# %%
STARTS = jnp.array([-2.0, -4.0, -6.0, -8.0])


@jax.jit
def steps_to_learn(start):
    def count(loss):
        def step(state):
            x, steps = state
            return x - jax.grad(loss)(x), steps + 1

        return jax.lax.while_loop(lambda state: state[0] < 0, step, (start, 0))[1]

    return count(cross_entropy), count(squared_error)


for start in STARTS:
    cross_steps, squared_steps = steps_to_learn(start)
    print(f"from x = {start:.0f}: {cross_steps:2d} steps under cross entropy, {squared_steps:4d} under squared error")

# %% [markdown]
# ## The same in a network
#
# A network with one hidden layer reads handwritten digits, 900 of them. It starts in two ways: **fresh**, from small
# random parameters that favour no digit, and **misled**, after training on wrong labels (each 0 was called 1, each 1
# was called 2, and so on), so that it is surely wrong. Then it gets the right labels.
#
# For each loss and start we try three step sizes, all at once by `vmap`, and keep the one that first has 90% of the
# digits right. The squared error is the sum over the ten classes, $\sum_c (p_c - q_c)^2$.

# %%
digits = load_digits()
pixels = jnp.asarray(digits.images.reshape(-1, 64)[:900] / 16, jnp.float32)
digit = jnp.asarray(digits.target[:900], jnp.int32)

RATES = jnp.array([0.1, 0.3, 1.0])
STEPS = 800


def network(parameters, pixels):
    return jnp.tanh(pixels @ parameters["hidden"] + parameters["bias"]) @ parameters["out"]


def network_cross_entropy(logits, labels):
    return jxent.softmax_cross_entropy(logits, labels, reduction="mean")


def network_squared_error(logits, labels):
    return jnp.mean(jnp.sum((jax.nn.softmax(logits) - jax.nn.one_hot(labels, 10)) ** 2, axis=-1))


def descend(loss, parameters, labels, rate, steps):
    """The parameters after these steps, and the share of right digits before each."""

    def total(parameters):
        logits = network(parameters, pixels)
        return loss(logits, labels), jnp.mean(logits.argmax(axis=-1) == digit)

    def step(parameters, _):
        grads, right = jax.grad(total, has_aux=True)(parameters)
        return jax.tree.map(lambda p, g: p - rate * g, parameters, grads), right

    return jax.lax.scan(step, parameters, length=steps)


keys = jax.random.split(jax.random.key(0))
fresh = {
    "hidden": jax.random.normal(keys[0], (64, 32)) / 64**0.5,
    "bias": jnp.zeros(32),
    "out": jax.random.normal(keys[1], (32, 10)) / 32**0.5,
}
misled, _ = jax.jit(lambda start: descend(network_cross_entropy, start, (digit + 1) % 10, 1.0, 200))(fresh)
surely_wrong = jnp.exp(-jxent.softmax_cross_entropy(network(misled, pixels), (digit + 1) % 10))
print(f"misled: probability of the wrong label {surely_wrong.mean():.2f} on average")


def first_at_90(right):
    return int(np.argmax(right >= 0.9)) if (right >= 0.9).any() else STEPS


curves = {}
for name, loss in (("cross entropy", network_cross_entropy), ("squared error", network_squared_error)):
    try_rates = jax.jit(jax.vmap(lambda start, rate, loss=loss: descend(loss, start, digit, rate, STEPS)[1], (None, 0)))
    for start_name, start in (("fresh", fresh), ("misled", misled)):
        right = np.asarray(try_rates(start, RATES))
        best = min(range(len(RATES)), key=lambda i: (first_at_90(right[i]), -right[i].max()))
        curves[name, start_name] = right[best]
        steps = first_at_90(right[best])
        when = f"after {steps} steps" if steps < STEPS else f"never in {STEPS} steps"
        print(f"{start_name}, {name}: 90% right {when} (step size {RATES[best]:.1f}), at best {right[best].max():.2f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")

START, SHOWN = -6.0, 400
for name, loss, color in (("cross entropy", cross_entropy, CROSS), ("squared error", squared_error, SQUARED)):

    def step(x, _, loss=loss):
        return x - jax.grad(loss)(x), jax.nn.sigmoid(x)

    _, p = jax.lax.scan(step, jnp.array(START), length=SHOWN)
    left.plot(np.arange(1, SHOWN + 1), p, color=color, linewidth=2.5, label=name)
left.axhline(0.5, color="black", linestyle=":", linewidth=1)
left.set_title(f"one row that starts at x = {START:.0f}: p of the right answer", fontsize=11)
left.set_ylim(0, 1.03)

for (name, start_name), values in curves.items():
    color = CROSS if name == "cross entropy" else SQUARED
    right.plot(
        np.arange(1, STEPS + 1),
        values,
        color=color,
        linewidth=2.5,
        linestyle="-" if start_name == "misled" else (0, (2, 1)),
    )
right.set_title("the network: share of right digits", fontsize=11)
right.set_ylim(0, 1.03)
for linestyle, name in (((0, (2, 1)), "fresh"), ("-", "misled first")):
    right.plot([], [], color="#555555", linewidth=2.5, linestyle=linestyle, label=name)
right.legend(loc="lower right", frameon=False, handlelength=3)
left.legend(loc="upper left", frameon=False)
for axes in (left, right):
    axes.set_xscale("log")
    axes.set_xticks([1, 10, 100], ["1", "10", "100"])
    axes.set_yticks([0, 0.5, 1])
    axes.set_xlabel("step (logarithmic scale)")
    axes.spines[["top", "right"]].set_visible(False)
show(figure, "why_cross_entropy_steps")

# %% [markdown]
# From a fresh start the squared error is slower, but it gets there. From the misled start it gets stuck on the digits
# that it is surely wrong about. (Steps of 2 or 3, with which cross entropy no longer learns smoothly, shake it free
# after some hundreds of them.) Real training meets such rows: after a change of the data, with a bad start, or as the
# few rows that the model has got badly wrong.
#
# The push of cross entropy has a price. A row whose *label* is wrong pushes just as hard.

# %% [markdown]
# ## What cross entropy does not see
#
# A wolf taken for a dog is a small mistake. A wolf taken for a truck is not. The formula has only the $p$ of the right
# class in it, so both cost the same:

# %%
wolf_or_dog, wolf_or_truck = jnp.log(jnp.array([[0.2, 0.7, 0.1], [0.2, 0.1, 0.7]]))  # wolf, dog, truck
wolf = jnp.array(0)
for name, guess in (("dog", wolf_or_dog), ("truck", wolf_or_truck)):
    print(f"a wolf taken for a {name}, label wolf: {jxent.softmax_cross_entropy(guess, wolf):.4f}")

# %% [markdown]
# To the formula the classes are mere numbers, and no two are closer than others. Where we know better, a **soft label**
# can say so: $q$ is then no longer a single 1 but spread over the classes that would be nearly right. jxent takes such
# a $q$ in place of the number of the class.

# %%
soft_wolf = jnp.array([0.8, 0.2, 0.0])
for name, guess in (("dog", wolf_or_dog), ("truck", wolf_or_truck)):
    print(f"a wolf taken for a {name}, label 0.8 wolf, 0.2 dog: {jxent.softmax_cross_entropy(guess, soft_wolf):.4f}")

# %% [markdown]
# The best guess is now $p = q$, not certainty: the slope with respect to the logit is $p_c - q_c$, which is 0 there.
# The loss does not go to 0 but to the **entropy** of $q$, the part that cannot be known.

# %%
at_q = jnp.log(soft_wolf)  # −∞ for the truck, whose probability is then 0
loss, slope = jax.value_and_grad(jxent.softmax_cross_entropy)(at_q, soft_wolf)
entropy = -(0.8 * np.log(0.8) + 0.2 * np.log(0.2))
print(f"guess = soft label: loss {loss:.4f}, entropy {entropy:.4f}, largest slope {jnp.abs(slope).max():.0e}")

# %% [markdown]
# ## Soft labels on real data
#
# The data have ten measurements of 442 people with diabetes, and the progress of the disease a year later. We cut that
# progress into ten classes of equal size, from the mildest tenth to the gravest. So the classes have an order, and a
# guess that is one tenth off is nearly right.
#
# We train on 80 people, with hard labels and with soft ones that spread over the neighbouring tenths, and test on
# others. One such test would be mostly chance, so we repeat it 40 times with other people, all in one `vmap`.

# %%
TENTHS, PEOPLE, REPEATS, WIDTH = 10, 80, 40, 2.0

measurements, progress = load_diabetes(return_X_y=True)
measurements = jnp.asarray(measurements / measurements.std(axis=0), jnp.float32)
tenth = np.searchsorted(np.quantile(progress, np.linspace(0, 1, TENTHS + 1)[1:-1]), progress)

distance = np.arange(TENTHS)[:, None] - np.arange(TENTHS)
spread = np.exp(-0.5 * (distance / WIDTH) ** 2)
LABELS = {"hard labels": np.eye(TENTHS), "soft labels": spread / spread.sum(axis=1, keepdims=True)}

rng = np.random.default_rng(0)
people = np.stack([rng.permutation(len(progress)) for _ in range(REPEATS)])


def train_on(rows, targets, key):
    """The logits for everybody, after training on these rows."""
    keys = jax.random.split(key)
    parameters = {
        "hidden": jax.random.normal(keys[0], (10, 16)) / 10**0.5,
        "bias": jnp.zeros(16),
        "out": jax.random.normal(keys[1], (16, TENTHS)) / 4,
    }
    adam = optax.adam(1e-2)

    def loss(parameters):
        return jxent.softmax_cross_entropy(network(parameters, measurements[rows]), targets[rows], reduction="mean")

    def step(state, _):
        parameters, moments = state
        updates, moments = adam.update(jax.grad(loss)(parameters), moments)
        return (optax.apply_updates(parameters, updates), moments), None

    (parameters, _), _ = jax.lax.scan(step, (parameters, adam.init(parameters)), length=100)
    return network(parameters, measurements)


train_all = jax.jit(jax.vmap(train_on, (0, None, 0)))
keys = jax.random.split(jax.random.key(0), REPEATS)
off = {}
for name, table in LABELS.items():
    outputs = train_all(people[:, :PEOPLE], jnp.asarray(table[tenth], jnp.float32), keys)
    guessed = np.take_along_axis(np.asarray(outputs.argmax(axis=-1)), people, axis=1)
    off[name] = np.abs(guessed - tenth[people])[:, PEOPLE:]
    hits, far = np.mean(off[name] == 0), np.mean(off[name] >= 4)
    print(f"{name}: hits {hits:.3f}, on average {off[name].mean():.2f} tenths off, four or more {far:.3f}")

nearer = off["hard labels"].mean(axis=1) - off["soft labels"].mean(axis=1)
print(f"nearer with soft labels in {np.sum(nearer > 0)} of {REPEATS} repeats")

# %% [markdown]
# The hits hardly change, and there are few: with ten classes, pure guessing hits a tenth of the time. The misses
# change: they are nearer.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")

for offset, (name, color) in zip((-0.2, 0.2), (("hard labels", CROSS), ("soft labels", SOFT)), strict=True):
    left.bar(np.arange(1, TENTHS + 1) + offset, LABELS[name][2], width=0.38, color=color, label=name)
    share = np.bincount(off[name].ravel(), minlength=TENTHS) / off[name].size
    right.bar(np.arange(TENTHS) + offset, 100 * share, width=0.38, color=color, label=name)
left.set_title("the two labels of somebody in the third tenth", fontsize=11)
left.set_xticks(np.arange(1, TENTHS + 1))
left.set_yticks([0, 0.5, 1])
left.set_ylabel("q")
left.set_xlabel("tenth, from mildest to gravest")
left.legend(frameon=False)
right.set_title("all tests: how far off the most probable tenth is", fontsize=11)
right.set_xticks(np.arange(TENTHS))
right.set_xlabel("tenths off")
right.yaxis.set_major_formatter("{x:.0f}%")
right.legend(frameon=False)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
show(figure, "why_cross_entropy_soft")

# %% [markdown]
# ## In short
#
# - Cross entropy is $-\log$ of the probability of the right class. Its slope with respect to the logits is $p - q$,
#   guess minus label.
# - It pushes hardest where the model is surely wrong. The squared error does not push there at all.
# - It knows of no relation between classes. A soft label can put one in, and then the aim is $p = q$.
#
# `label_smoothing` is the simplest soft label: it spreads a little over *all* classes alike. `research_vmap.ipynb`
# shows what that does to the probabilities.
