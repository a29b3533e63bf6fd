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
# # Losses under the microscope: `vmap`, per-example gradients, curvature
#
# The losses of jxent are plain functions of arrays, hyper-parameters included. So JAX's transformations go through
# them:
#
# - `vmap` over label smoothing, the γ of focal loss and z-loss at once: a whole grid of models in **one compiled
#   program**;
# - `vmap` of `grad`: the **gradient of each example**, whose norm finds wrong labels;
# - `jvp` of `grad`, and `jvp` with `vjp`: products with the **Hessian** and the **Gauss–Newton matrix**, without either
#   matrix.
#
# You need `pip install "jxent[notebooks]"`. Nothing is downloaded: the digits come with scikit-learn. Two CPU cores
# need less than a minute.

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_digits

import jxent

IN_NOTEBOOK = "get_ipython" in globals()
if not IN_NOTEBOOK:
    matplotlib.use("Agg")  # as a script, this file saves its plots and needs no display

import matplotlib.pyplot as plt


def show(figure, name):
    if IN_NOTEBOOK:
        plt.show()
    else:
        path = Path(__file__).parent / "output" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=120)
        print("plot saved to", os.path.relpath(path))


# %% [markdown]
# ## Data with wrong labels
#
# We train on 400 images of handwritten digits and test on the other 1397. We make forty of the training labels, one in
# ten, wrong on purpose.

# %%
CLASSES, ROWS, WRONG = 10, 400, 40

rng = np.random.default_rng(0)
digits = load_digits()
order = rng.permutation(len(digits.target))
pixels = jnp.asarray(digits.images.reshape(-1, 64)[order] / 16, jnp.float32)
truth = digits.target[order].astype(np.int32)

given = truth[:ROWS].copy()
is_wrong = np.zeros(ROWS, bool)
is_wrong[rng.permutation(ROWS)[:WRONG]] = True
given[is_wrong] = (given[is_wrong] + rng.integers(1, CLASSES, WRONG)) % CLASSES

train_x, train_y = pixels[:ROWS], jnp.asarray(given)
test_x, test_y = pixels[ROWS:], truth[ROWS:]
print(f"{ROWS} training images, {np.sum(given != truth[:ROWS])} with a wrong label; {len(test_y)} test images")

# %% [markdown]
# ## One loss with three knobs
#
# - **Label smoothing** ε spreads a little of each label over all classes: $q \leftarrow (1-ε)\,q + ε/V$.
# - **γ** is that of focal loss: the factor $s^γ$ with $s = \sum_c q_c (1 - p_c)$ reduces the loss of rows that are
#   already right.
# - **z-loss** adds $k \log^2 Z$, where $Z$ is the denominator of the softmax. It keeps the logits from drifting.
#
# `softmax_cross_entropy` has the first and the last, `softmax_focal_loss` has γ and takes distributions. Smoothed
# labels and the last term written out combine all three. At γ = 0, both functions must agree.


# %%
def row_loss(logits, label, smoothing, gamma, z):
    smoothed = (1 - smoothing) * jax.nn.one_hot(label, CLASSES) + smoothing / CLASSES
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return jxent.softmax_focal_loss(logits, smoothed, gamma=gamma) + z * log_z**2


SMOOTHINGS = jnp.array([0.0, 0.05, 0.1, 0.2, 0.3])
GAMMAS = jnp.array([0.0, 1.0, 2.0])
Z_LOSSES = jnp.array([0.0, 0.01])
GRID = jnp.meshgrid(SMOOTHINGS, GAMMAS, Z_LOSSES, indexing="ij")


def over_grid(function):
    """Maps a function of (smoothing, gamma, z) to its values [smoothing, gamma, z, ...]."""
    for _ in GRID[0].shape:
        function = jax.vmap(function)
    return function(*GRID)


logits = 5 * jax.random.normal(jax.random.key(0), (ROWS, CLASSES))
ours = over_grid(lambda smoothing, gamma, z: row_loss(logits, train_y, smoothing, gamma, z))
whole = over_grid(
    lambda smoothing, gamma, z: jxent.softmax_cross_entropy(logits, train_y, label_smoothing=smoothing, z_loss=z)
)
difference = jnp.max(jnp.abs(ours[:, 0] - whole[:, 0]) / whole[:, 0])
print(f"losses of {ROWS} rows at {GRID[0].size} settings: {ours.shape}")
print(f"largest relative difference from softmax_cross_entropy at γ = 0: {difference:.0e}")

# %% [markdown]
# ## Training the grid
#
# `train` is written for one model: a hidden layer of 16, Adam, 300 steps. `vmap` trains the whole grid with it, from
# three starts each, under a single `jit`.

# %%
STEPS, STARTS, WIDTH = 300, 3, 16


def network(parameters, x):
    return jnp.tanh(x @ parameters["hidden"] + parameters["bias"]) @ parameters["out"] + parameters["out_bias"]


def initial(key):
    keys = jax.random.split(key)
    return {
        "hidden": jax.random.normal(keys[0], (64, WIDTH)) / 8,
        "bias": jnp.zeros(WIDTH),
        "out": jax.random.normal(keys[1], (WIDTH, CLASSES)) / 4,
        "out_bias": jnp.zeros(CLASSES),
    }


def train(key, smoothing, gamma, z, steps=STEPS):
    adam = optax.adam(0.02)

    def loss(parameters):
        return jnp.mean(row_loss(network(parameters, train_x), train_y, smoothing, gamma, z))

    def step(state, _):
        parameters, moments = state
        updates, moments = adam.update(jax.grad(loss)(parameters), moments)
        return (optax.apply_updates(parameters, updates), moments), None

    parameters = initial(key)
    (parameters, _), _ = jax.lax.scan(step, (parameters, adam.init(parameters)), length=steps)
    return parameters


@jax.jit
def train_grid(keys):
    def at(smoothing, gamma, z):
        models = jax.vmap(lambda key: train(key, smoothing, gamma, z))(keys)
        return models, jax.vmap(network, (0, None))(models, test_x)

    return over_grid(at)


models, test_logits = jax.block_until_ready(train_grid(jax.random.split(jax.random.key(0), STARTS)))
unsmoothed = jax.tree.map(lambda leaf: leaf[0, 0, 0], models)
by_heart = jax.vmap(network, (0, None))(unsmoothed, train_x).argmax(axis=-1) == train_y
print(f"{GRID[0].size * STARTS} models trained; test logits {test_logits.shape}")
print(f"wrong training labels known by heart, at ε = γ = z = 0: {by_heart[:, is_wrong].mean():.0%}")

# %% [markdown]
# ## Are the probabilities true?
#
# A model is well calibrated if, among the guesses to which it gives a probability of 80%, 80% are right. The expected
# calibration error (ECE) sorts the guesses into bins by that probability, the **confidence**, and averages the gap
# between confidence and accuracy over all guesses.

# %%
BINS = 10
log_probs = jax.nn.log_softmax(test_logits)
confidence = np.exp(np.asarray(log_probs.max(axis=-1)))
hits = np.asarray(test_logits.argmax(axis=-1)) == test_y


def bins(confidence, hits):
    """Number of guesses, mean confidence and accuracy of each bin; NaN where it is empty."""
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(which, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return count, *(np.bincount(which, weights=values, minlength=BINS) / count for values in (confidence, hits))


def calibration_error(confidence, hits):
    count, mean_confidence, accuracy = bins(confidence, hits)
    return np.nansum(count * np.abs(mean_confidence - accuracy)) / count.sum()


settings = GRID[0].shape
error = np.array(
    [
        np.mean([calibration_error(confidence[place][start], hits[place][start]) for start in range(STARTS)])
        for place in np.ndindex(settings)
    ]
).reshape(settings)
accuracy = hits.mean(axis=(-1, -2))
spread = np.asarray(jnp.abs(jax.nn.logsumexp(test_logits, axis=-1)).mean(axis=(-1, -2)))

for i, smoothing in enumerate(SMOOTHINGS):
    for j, gamma in enumerate(GAMMAS):
        cells = "   ".join(
            f"z {z:.2f}: accuracy {accuracy[i, j, k]:.3f}, ECE {error[i, j, k]:.3f}, |log Z| {spread[i, j, k]:4.1f}"
            for k, z in enumerate(Z_LOSSES)
        )
        print(f"ε {smoothing:.2f}, γ {gamma:.0f}   {cells}")

# %% [markdown]
# Without smoothing the models have learned the training labels by heart, the wrong ones too, and are too sure of
# themselves. A little smoothing fixes that. Too much overshoots: a model that is told never to be surer than 0.82 (with
# ε = 0.2) is right more often than it says. γ does something similar, but the two do not add up: with γ = 2, smoothing
# matters little. The z-loss brings log Z down from about ten to about one, and changes the accuracy by about a point.
#
# In the diagrams, each dot is a bin of guesses of similar confidence, and larger dots have more guesses. Below the
# diagonal the model is too sure, above it not sure enough. Bins of fewer than ten guesses are left out.

# %%
DOTS, SHADE = "#1f6f8b", {"too sure": "#d55e00", "not sure enough": "#56b4e9"}

figure = plt.figure(figsize=(13, 3.7), layout="constrained")
grid, *panels = figure.subplots(1, 4, width_ratios=(1.5, 1, 1, 1))

table = error[:, :, 0].T
image = grid.imshow(table, cmap="cividis_r", vmin=0, origin="lower", aspect="auto")
for (row, column), value in np.ndenumerate(table):
    color = "white" if value > 0.5 * table.max() else "black"
    grid.text(column, row, f"{value:.3f}", ha="center", va="center", color=color)
grid.set_xticks(range(len(SMOOTHINGS)), [f"{smoothing:g}" for smoothing in np.round(SMOOTHINGS, 2)])
grid.set_yticks(range(len(GAMMAS)), [f"{gamma:.0f}" for gamma in GAMMAS])
grid.set_xlabel("label smoothing ε")
grid.set_ylabel("γ")
grid.set_title("calibration error (no z-loss)", fontsize=11)
grid.tick_params(length=0)

for axes, i in zip(panels, (0, 1, 3), strict=True):
    count, mean_confidence, bin_accuracy = bins(confidence[i, 0, 0].ravel(), hits[i, 0, 0].ravel())
    for name, edge in (("too sure", 0), ("not sure enough", 1)):
        axes.fill_between([0, 1], [0, 1], edge, color=SHADE[name], alpha=0.12, linewidth=0)
    axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle=":")
    some = count >= 10
    axes.plot(mean_confidence[some], bin_accuracy[some], color=DOTS, linewidth=1.5)
    sizes = 15 + 700 * count[some] / count.sum()
    axes.scatter(mean_confidence[some], bin_accuracy[some], s=sizes, color=DOTS, zorder=3, clip_on=False)
    axes.set_title(f"ε = {np.round(SMOOTHINGS[i], 2):g}, error {error[i, 0, 0]:.3f}", fontsize=11)
    axes.set_xlabel("confidence")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xticks([0, 0.5, 1])
    axes.set_yticks([0, 0.5, 1])
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("accuracy")
panels[0].text(0.97, 0.05, "too sure", ha="right", color="#a04500")
panels[0].text(0.03, 0.93, "not sure enough", ha="left", color="#1c6ea0")
show(figure, "research_vmap")

# %% [markdown]
# ## The gradient of each example
#
# The gradient of the mean loss is the mean of the gradients of the rows. `vmap` of `grad` computes these one by one. We
# take them from a model in mid-training: after 40 steps it has learned what the digits have in common, but has not yet
# memorised the wrong labels. A row that still pulls hard does not fit the others.

# %%
SMOOTHING = 0.05
early = jax.jit(lambda key: train(key, SMOOTHING, 0.0, 0.0, steps=40))(jax.random.key(1))


def example_loss(parameters, x, y):
    return jxent.softmax_cross_entropy(network(parameters, x), y, label_smoothing=SMOOTHING)


def mean_loss(parameters):
    return jxent.softmax_cross_entropy(
        network(parameters, train_x), train_y, label_smoothing=SMOOTHING, reduction="mean"
    )


per_example = jax.vmap(jax.grad(example_loss), (None, 0, 0))(early, train_x, train_y)
norms = np.asarray(jax.vmap(optax.tree.norm)(per_example))
whole = ravel_pytree(jax.grad(mean_loss)(early))[0]
mean = ravel_pytree(jax.tree.map(lambda leaf: leaf.mean(axis=0), per_example))[0]

hardest = np.argsort(-norms)
print(f"mean of the {ROWS} gradients and gradient of the mean: {jnp.max(jnp.abs(mean - whole)):.0e} apart")
print(f"median norm: right labels {np.median(norms[~is_wrong]):.2f}, wrong labels {np.median(norms[is_wrong]):.2f}")
print(f"of the {WRONG} rows with the largest gradients, {is_wrong[hardest[:WRONG]].sum()} have a wrong label")

# %%
RIGHT_COLOR, WRONG_COLOR, SHOWN = "#1f6f8b", "#d55e00", 24

figure = plt.figure(figsize=(13, 3.9), layout="constrained")
chart, gallery = figure.subfigures(1, 2, width_ratios=(1, 1.35))
axes = chart.subplots()
edges = np.geomspace(norms.min(), norms.max(), 26)
stacks = [norms[~is_wrong], norms[is_wrong]]
axes.hist(stacks, edges, stacked=True, color=[RIGHT_COLOR, WRONG_COLOR], label=["right label", "wrong label"])
axes.set_xscale("log")
axes.set_xlabel("norm of the row's gradient (logarithmic scale)")
axes.set_ylabel("training rows")
axes.margins(y=0.25)
axes.legend(frameon=False, loc="upper left")
axes.spines[["top", "right"]].set_visible(False)
gallery.suptitle(f"the {SHOWN} largest, with the labels given (wrong ones in colour)", fontsize=11)
for cell, row in zip(gallery.subplots(3, SHOWN // 3).flat, hardest, strict=False):
    cell.imshow(train_x[row].reshape(8, 8), cmap="gray_r")
    cell.set_title(
        str(given[row]),
        color=WRONG_COLOR if is_wrong[row] else "black",
        fontweight="bold" if is_wrong[row] else "normal",
        fontsize=11,
        pad=2,
    )
    cell.set_axis_off()
show(figure, "research_vmap_gradients")

# %% [markdown]
# ## Curvature
#
# With the logits $f(θ)$, the Hessian of the loss has two parts:
#
# $$H = \underbrace{J^\top H_L\, J}_{G} + \sum_i \frac{\partial L}{\partial f_i} \nabla^2 f_i$$
#
# where $J$ is the Jacobian of the logits and $H_L$ the Hessian of the loss with respect to the logits,
# $\mathrm{diag}(p) - pp^\top$ for each row. $G$, the Gauss–Newton matrix, is what many second-order methods use, since
# it has no negative eigenvalue.
#
# A product with a vector needs neither matrix. For $Hv$ we push $v$ forward through the gradient. For $Gv$ we push it
# forward through the network, then through the gradient of the loss, and pull the result back. Both need a loss that
# can be differentiated forward and twice.


# %%
def loss_of(logits, labels):
    return jxent.softmax_cross_entropy(logits, labels, label_smoothing=SMOOTHING, reduction="mean")


def hessian_product(f, labels, parameters, v):
    gradient = jax.grad(lambda parameters: loss_of(f(parameters), labels))
    return jax.jvp(gradient, (parameters,), (v,))[1]


def gauss_newton_product(f, labels, parameters, v):
    logits, forward = jax.jvp(f, (parameters,), (v,))
    _, curved = jax.jvp(jax.grad(lambda logits: loss_of(logits, labels)), (logits,), (forward,))
    return jax.vjp(f, parameters)[1](curved)[0]


# %% [markdown]
# We make four checks, in float64 and on the first 100 rows: $Hv$ agrees with finite differences of the gradient; $Gv$
# agrees with $J^\top H_L J v$ with the matrices written out; $H$ is symmetric; and $H = G$ for the last layer, in which
# the logits are linear.

# %%
SOME = 100

with jax.enable_x64(True):
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), early))
    wide_x, some_y, size = jnp.asarray(train_x[:SOME], jnp.float64), train_y[:SOME], flat.size

    def logits_at(flat):
        return network(unravel(flat), wide_x)

    gradient_at = jax.jit(jax.grad(lambda flat: loss_of(logits_at(flat), some_y)))
    times_h = jax.jit(lambda v: hessian_product(logits_at, some_y, flat, v))
    times_g = jax.jit(lambda v: gauss_newton_product(logits_at, some_y, flat, v))

    v = jax.random.normal(jax.random.key(2), (size,), jnp.float64)
    hv, gv = times_h(v), times_g(v)
    finite_steps = 10.0 ** np.arange(-12, 0)
    finite_errors = [
        float(
            jnp.linalg.norm((gradient_at(flat + h * v) - gradient_at(flat - h * v)) / (2 * h) - hv)
            / jnp.linalg.norm(hv)
        )
        for h in finite_steps
    ]

    probs = jax.nn.softmax(logits_at(flat))
    forward = (jax.jacfwd(logits_at)(flat) @ v).reshape(SOME, CLASSES)
    curved = probs * forward - probs * jnp.sum(probs * forward, axis=-1, keepdims=True)
    written_out = jax.vjp(logits_at, flat)[1](curved / SOME)[0]

    hessian = np.asarray(jax.lax.map(times_h, jnp.eye(size), batch_size=64))
    gauss_newton = np.asarray(jax.lax.map(times_g, jnp.eye(size), batch_size=64))

last = slice(size - (WIDTH + 1) * CLASSES, size)  # the parameters of the last layer come last
apart = np.linalg.norm(written_out - gv) / np.linalg.norm(gv)
print(f"{size} parameters")
print(f"Hv against finite differences:  {min(finite_errors):.0e} of its norm, at best")
print(f"Gv against the written-out one: {apart:.0e} of its norm")
print(f"H against its transpose:        {np.abs(hessian - hessian.T).max():.0e}")
print(f"H against G, last layer:        {np.abs(hessian - gauss_newton)[last, last].max():.0e}")
print(
    f"H against G, all parameters:    {np.linalg.norm(hessian - gauss_newton) / np.linalg.norm(hessian):.2f} of its norm"
)

# %%
h_values, g_values = np.linalg.eigvalsh(hessian)[::-1], np.linalg.eigvalsh(gauss_newton)[::-1]
tiny = 1e-9 * h_values[0]
print(f"largest eigenvalue: H {h_values[0]:.3f}, G {g_values[0]:.3f}")
print(f"negative eigenvalues: H {np.sum(h_values < -tiny)}, G {np.sum(g_values < -tiny)}")
print(f"rank of G: {np.sum(g_values > tiny)} of {size}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 3.9), layout="constrained", width_ratios=(1.6, 1))
threshold = 1e-4
left.axhspan(-1, 0, color="#d55e00", alpha=0.08, linewidth=0)
left.axhline(0, color="black", linewidth=0.8)
for name, values, color, marker in (
    ("Hessian H", h_values, "#1f6f8b", "o"),
    ("Gauss–Newton G", g_values, "#e0a030", "."),
):
    left.plot(np.arange(1, size + 1), values, marker, markersize=4, color=color, label=name, linestyle="")
left.set_yscale("symlog", linthresh=threshold)
left.set_ylim(-1, 10)
left.set_yticks([-0.1, -0.001, 0, 0.001, 0.1, 10], ["−0.1", "−0.001", "0", "0.001", "0.1", "10"])
left.set_xlabel("eigenvalues, from the largest to the smallest")
left.set_title("eigenvalues (symmetric logarithmic scale)", fontsize=11)
left.legend(frameon=False, markerscale=2)
right.loglog(finite_steps, finite_errors, "o-", color="#1f6f8b")
right.set_xlabel("step h of the finite difference")
right.set_title("Hv and finite differences: relative difference", fontsize=11)
right.grid(color="#e4e8ec")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
show(figure, "research_vmap_curvature")

# %% [markdown]
# The finite differences come closest at a medium step, since a long step sees the curvature of the gradient and a short
# one is lost in rounding. The product by `jvp` has no step to choose.
