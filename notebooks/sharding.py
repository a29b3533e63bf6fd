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
# # Sharding: one training step, three ways
#
# The last layer of a language model has a column for every word, which makes it large. Here its kernel is split over
# four devices and the batch over two, on a mesh of 2 × 4. The same training step is written three ways:
#
# - under `jit` on a mesh of **Auto** axes, where XLA decides how each array in between is split;
# - under `jit` on a mesh of **Explicit** axes, where the split is part of each array's type;
# - inside **`shard_map`**, where each device runs the function on its own part.
#
# All three give the numbers of one device. What they send between the devices differs, and we read it from the compiled
# programs.
#
# You need `pip install "jxent[notebooks]"` and no accelerator: JAX splits the CPU into eight devices. We have to
# request that before JAX is first used.

# %%
import math
import os
import re
from pathlib import Path

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp
import matplotlib
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent

IN_NOTEBOOK = "get_ipython" in globals()
if not IN_NOTEBOOK:
    matplotlib.use("Agg")  # as a script, this file saves its plot and needs no display

import matplotlib.pyplot as plt

print(f"{jax.device_count()} devices")

# %% [markdown]
# ## The model and its batch
#
# One dense layer turns features into hidden states. The kernel turns these into the logits of 4096 classes.
#
# Most rows of the first half of the batch have no label. The two halves of the mesh then count different numbers of
# rows, as they do with real text, and the mean of their two means would be wrong.

# %%
ROWS, FEATURES, WIDTH, CLASSES = 256, 48, 128, 4096
CHUNK = 32  # rows whose logits are held at a time
LEARNING_RATE = 10.0
IGNORED = -100

rng = np.random.default_rng(0)
parameters = {
    "dense": rng.normal(size=(FEATURES, WIDTH), scale=FEATURES**-0.5).astype(np.float32),
    "kernel": rng.normal(size=(WIDTH, CLASSES), scale=WIDTH**-0.5).astype(np.float32),
}
labels = rng.integers(CLASSES, size=ROWS).astype(np.int32)
labels[: ROWS // 2 - 8] = IGNORED
batch = {"features": rng.normal(size=(ROWS, FEATURES)).astype(np.float32), "labels": labels}


# %% [markdown]
# ## The step on one device
#
# `linear_softmax_cross_entropy` makes the logits of a chunk of rows at a time, in a loop, and never holds them all. The
# step is plain gradient descent.


# %%
def loss_fn(parameters, batch):
    hidden = jnp.tanh(batch["features"] @ parameters["dense"])
    return jxent.linear_softmax_cross_entropy(
        hidden, parameters["kernel"], batch["labels"], ignore_index=IGNORED, reduction="mean", chunk_size=CHUNK
    )


def make_step(loss_fn):
    @jax.jit
    def step(parameters, batch):
        loss, grads = jax.value_and_grad(loss_fn)(parameters, batch)
        return loss, jax.tree.map(lambda p, g: p - LEARNING_RATE * g, parameters, grads)

    return step


one_loss, one_parameters = make_step(loss_fn)(parameters, batch)
moved = max(np.abs(one_parameters[name] - parameters[name]).max() for name in parameters)
print(f"one device: loss {one_loss:.6f}, largest change of a parameter {moved:.2f}")

# %% [markdown]
# ## The mesh
#
# Rows are split over `data`, classes over `vocab`. An array that names neither is whole on each device.

# %%
PARAMETER_SPECS = {"dense": P(), "kernel": P(None, "vocab")}
BATCH_SPECS = {"features": P("data"), "labels": P("data")}


def make_mesh(axis_type):
    return jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(axis_type, axis_type))


def place(mesh, specs, arrays):
    return {name: jax.device_put(array, NamedSharding(mesh, specs[name])) for name, array in arrays.items()}


auto_mesh, explicit_mesh = make_mesh(AxisType.Auto), make_mesh(AxisType.Explicit)
placed_parameters = place(auto_mesh, PARAMETER_SPECS, parameters)
placed_batch = place(auto_mesh, BATCH_SPECS, batch)

# %% [markdown]
# Each half of the batch lies on four devices:

# %%
jax.debug.visualize_array_sharding(placed_batch["features"], min_width=20)

# %% [markdown]
# Each quarter of the kernel lies on two:

# %%
jax.debug.visualize_array_sharding(placed_parameters["kernel"], scale=0.1, max_width=90)


# %% [markdown]
# ## Three ways
#
# For Auto and Explicit axes the step is the one above, unchanged. Only its arguments lie elsewhere.
#
# Inside `shard_map`, each device sees its rows and its columns of the kernel. `vocab_axis_name` says which axis splits
# the classes; labels stay global. `reduction="partial"` gives the two sums of the mean, `Mean.psum` adds them over
# `data`, and `value` divides once.


# %%
def loss_on_each_device(parameters, batch):
    hidden = jnp.tanh(batch["features"] @ parameters["dense"])
    partial = jxent.linear_softmax_cross_entropy(
        hidden,
        parameters["kernel"],
        batch["labels"],
        ignore_index=IGNORED,
        reduction="partial",
        vocab_axis_name="vocab",
        chunk_size=CHUNK,
    )
    return partial.psum("data").value()


over_mesh = jax.shard_map(loss_on_each_device, mesh=auto_mesh, in_specs=(PARAMETER_SPECS, BATCH_SPECS), out_specs=P())
step = make_step(loss_fn)
WAYS = {
    "Auto": (step, auto_mesh),
    "Explicit": (step, explicit_mesh),
    "shard_map": (make_step(over_mesh), auto_mesh),
}

# %% [markdown]
# Each step is compiled and run. Loss and parameters are those of one device, up to the rounding of float32, and the new
# parameters are split like the old ones.

# %%
compiled = {}
for way, (step, mesh) in WAYS.items():
    arguments = place(mesh, PARAMETER_SPECS, parameters), place(mesh, BATCH_SPECS, batch)
    compiled[way] = step.lower(*arguments).compile()
    loss, new_parameters = compiled[way](*arguments)
    apart = max(np.abs(np.asarray(new_parameters[name]) - one_parameters[name]).max() for name in parameters)
    print(f"{way:<9}  loss {loss:.6f}, largest difference of a parameter {apart:.0e}")
    assert abs(loss - one_loss) <= 1e-6 * one_loss
    assert apart <= 1e-6
    for name, array in new_parameters.items():
        assert array.sharding.is_equivalent_to(NamedSharding(mesh, PARAMETER_SPECS[name]), array.ndim)


# %% [markdown]
# ## What they send
#
# The text of a compiled program has a line for each collective, with the arrays that it carries on one device, and says
# how often each loop runs.


# %%
KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


def collectives(program):
    """Kind, arrays as {"f32[2,3]": bytes}, and runs per step of each; 1 run means that it is in no loop."""
    turns = dict(re.findall(r" while\(.* body=(\S+),.*known_trip_count\D*(\d+)", program))
    assert len(turns) == program.count(" while(")
    # A branch of a conditional, which skips chunks without rows that count, runs as often as what it stands in.
    for body in re.findall(r"^%\S+ \(.*\{\n(?:  .*\n)*", program, re.MULTILINE):
        runs = turns.get(body.split(" ", 1)[0], 1)
        for branches in re.findall(r" conditional\(.*?computations?=\{?([^}]*)", body):
            turns |= dict.fromkeys(re.findall(r"%[\w.-]+", branches), runs)
    found = []
    for line in program.splitlines():
        if start := re.match(r"(?:ENTRY )?(%\S+) \(.*\{$", line):
            computation = start[1]
        elif sends := re.search(rf" = (\S.*?) ({KINDS})(?:-start)?\(", line):
            shapes = re.findall(r"([a-z]+(\d+)\[([\d,]*)\])", sends[1])
            arrays = [
                (shape, int(bits) // 8 * math.prod(int(n) for n in dims.split(",") if n))
                for shape, bits, dims in shapes
            ]
            found.append((sends[2], arrays, int(turns.get(computation, 1))))
    return found


sent = {way: collectives(program.as_text()) for way, program in compiled.items()}
for way, messages in sent.items():
    print(f"{way:<12}{'arrays':<32}{'in a loop':>9}{'runs':>6}{'bytes per step':>16}")
    for kind, arrays, runs in messages:
        shapes, num_bytes = " ".join(shape for shape, _ in arrays), sum(size for _, size in arrays)
        print(f"{kind:<12}{shapes:<32}{'yes' if runs > 1 else 'no':>9}{runs:>6}{runs * num_bytes:>16,}")
    print()

# %% [markdown]
# No hidden states, logits or kernel are gathered: there are only sums and maxima over devices. Their sizes show what
# they carry:
#
# - for each row of a chunk, over `vocab`, its largest logit, its sum of exponentials and its label's logit;
# - the gradient of the hidden states, over `vocab`, to which each device's classes contribute a part;
# - the gradient of the kernel, `f32[128,1024]`, over `data`, to which each half of the batch contributes a part;
# - the dense layer's gradient, and the sums of the mean.

# %%
KERNEL, HIDDEN, REST = "gradient of the kernel", "gradient of the hidden states", "all else"


def name_of(num_bytes, runs):
    """Names an array by its size: a device has a quarter of the kernel, and half of the rows (Auto axes: of a chunk)."""
    if num_bytes == 4 * WIDTH * CLASSES // 4:
        return KERNEL
    return HIDDEN if num_bytes * runs == 4 * WIDTH * ROWS // 2 else REST


totals = {way: dict.fromkeys((KERNEL, HIDDEN, REST), 0) for way in sent}
for way, messages in sent.items():
    assert {kind for kind, _, _ in messages} == {"all-reduce"}
    for _, arrays, runs in messages:
        for _, num_bytes in arrays:
            totals[way][name_of(num_bytes, runs)] += runs * num_bytes
    print(f"{way:<9}  {',  '.join(f'{name} {num_bytes:,} bytes' for name, num_bytes in totals[way].items())}")
assert totals["Explicit"][KERNEL] == totals["shard_map"][KERNEL] == 4 * WIDTH * CLASSES // 4

# %%
COLORS = {KERNEL: "#1f6f8b", HIDDEN: "#e0a030", REST: "#9aa5b1"}
MIB = 2**20

figure, axes = plt.subplots(figsize=(9, 2.8), layout="constrained")
left = np.zeros(len(totals))
for name, color in COLORS.items():
    widths = np.array([by_name[name] / MIB for by_name in totals.values()])
    axes.barh(list(totals), widths, left=left, height=0.6, color=color, label=name)
    left += widths
for y, total in enumerate(left):
    axes.text(total + 0.04, y, f"{total:.2f} MiB", va="center")
axes.invert_yaxis()
axes.set_xlim(0, 1.15 * max(left))
axes.set_xlabel("MiB that a device adds to those of others, per step")
axes.spines[["top", "right", "left"]].set_visible(False)
axes.tick_params(axis="y", length=0)
axes.legend(loc="lower right", frameon=False)

if IN_NOTEBOOK:
    plt.show()
else:
    path = Path(__file__).parent / "output" / "sharding.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    print("plot saved to", os.path.relpath(path))

# %% [markdown]
# ## Which to choose
#
# Under Auto axes, XLA for the CPU (jax 0.10 and 0.12) adds the gradient of the kernel over `data` once for each chunk,
# inside the loop. Under Explicit axes and in `shard_map`, each device first adds up the chunks of its own rows, and the
# gradient is sent once, after the loop. The other bytes are the same.
#
# The loop runs twice as often under Auto axes because a chunk there has 32 rows of the whole batch, and otherwise 32
# rows of each device.
#
# So if both rows and classes are split, use Explicit axes (the default of `jax.make_mesh`) or `shard_map`. On Auto axes
# a larger `chunk_size` means fewer chunks and fewer bytes.
#
# These are the bytes of the arrays. `docs/scaling.md` works out what that means for links between devices, up to 8192
# of them.
