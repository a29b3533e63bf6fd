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
# # A language model without logits
#
# We train a small decoder to guess the next word of English text. The usual way makes a logit for each word of the
# vocabulary at each position, and with a large vocabulary these logits may take more memory than all the rest.
# `jxent.linear_softmax_cross_entropy` goes from the hidden states to the loss and never holds the logits whole.
#
# The notebook ends with some text that the model writes, the memory of this loss and of the usual one, and a passage
# with the words that surprise the model.
#
# You need `pip install "jxent[notebooks]"`. Nothing is downloaded: the text comes with Python. Two CPU cores need less
# than a minute.

# %%
import os
import re
import sys
import textwrap
from pathlib import Path
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import jxent

IN_NOTEBOOK = "get_ipython" in globals()
if not IN_NOTEBOOK:
    matplotlib.use("Agg")  # as a script, this file saves its plot and needs no display

import matplotlib.pyplot as plt

# %% [markdown]
# ## The data
#
# Python's `help()` comes with some eighty articles about the language. We keep their prose and leave out headings,
# tables, programs, and text that repeats another article. A word is a run of letters or of other marks, with the space
# before it. The mark ¶ begins a paragraph. The text differs a little between versions of Python, and so do the numbers
# below.

# %%
WORD = re.compile(r"¶| ?\w+| ?[^\w\s¶]+")


def prose(article):
    for paragraph in re.split(r"\n\s*\n", article):
        plain = " ".join(re.sub('["*]', "", paragraph).split())
        letters = sum(char.isalpha() or char == " " for char in plain)
        if len(plain) >= 30 and letters > 0.75 * len(plain) and not re.match(r">>>|\w+ in version", plain):
            yield plain


seen = set()
articles = []
for name in sorted(topics):
    fresh = [paragraph for paragraph in dict.fromkeys(prose(topics[name])) if paragraph not in seen]
    seen.update(fresh)
    articles.append([word for paragraph in fresh for word in ("¶", *WORD.findall(paragraph))])

words = np.unique(np.concatenate([article for article in articles if article]))
word_ids = {word: number for number, word in enumerate(words)}
print(f"{len(words)} words in the vocabulary, {sum(map(len, articles))} in the text. For example:")
print(textwrap.fill(next(prose(topics["with"])), 100))

# %% [markdown]
# ## Windows, and labels that do not count
#
# The model sees windows of 64 words. The label of each word is the word that follows it. The last window of an article
# is not full: its labels end in −100, which `ignore_index` leaves out.
#
# Every tenth window is held out. No model can know a word that training never shows, so where such a word is the label
# of a held-out window, it is −100 too.

# %%
LENGTH = 64
IGNORED = -100


def windows(ids):
    count = -(-(len(ids) - 1) // LENGTH)
    padded = np.full(count * LENGTH + 1, IGNORED, np.int32)
    padded[: len(ids)] = ids
    inputs, labels = padded[:-1].reshape(count, LENGTH), padded[1:].reshape(count, LENGTH)
    return np.where(inputs == IGNORED, 0, inputs), labels


cut = [windows([word_ids[word] for word in article]) for article in articles if len(article) > 1]
inputs, labels = (np.concatenate(part) for part in zip(*cut, strict=True))
held_out = np.arange(len(inputs)) % 10 == 9
train_inputs, train_labels = inputs[~held_out], labels[~held_out]
test_inputs, test_labels = inputs[held_out], labels[held_out]

counts = np.bincount(train_labels[train_labels != IGNORED], minlength=len(words))
unknown = (test_labels != IGNORED) & (counts[test_labels] == 0)
test_labels = np.where(unknown, IGNORED, test_labels)
by_frequency = np.exp(-np.mean(np.log((counts / counts.sum())[test_labels[test_labels != IGNORED]])))

for name, part in (("training", train_labels), ("held-out", test_labels)):
    print(f"{len(part)} {name} windows, {np.sum(part != IGNORED)} labels that count, {np.sum(part == IGNORED)} ignored")
print(f"{np.sum(unknown)} of the ignored labels are words that training never shows")

# %% [markdown]
# ## The model
#
# The model has two blocks, each of attention and a perceptron. The table of word vectors is used twice, as is common:
# it turns words into vectors at the start, and it is the kernel of the last layer. The model returns the hidden states
# and leaves that last layer to the loss.

# %%
WIDTH, HEADS, BLOCKS, DROPOUT = 128, 4, 2, 0.2


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.RMSNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.to_heads = nnx.Linear(WIDTH, 3 * WIDTH, use_bias=False, rngs=rngs)
        self.from_heads = nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs)
        self.wide = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.narrow = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(DROPOUT, rngs=rngs)

    def __call__(self, x):
        heads = self.to_heads(self.norms[0](x)).reshape(*x.shape[:-1], 3 * HEADS, WIDTH // HEADS)
        attended = jax.nn.dot_product_attention(*jnp.split(heads, 3, axis=-2), is_causal=True)
        x = x + self.dropout(self.from_heads(attended.reshape(x.shape)))
        return x + self.dropout(self.narrow(nnx.gelu(self.wide(self.norms[1](x)))))


class Decoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.table = nnx.Param(rngs.params.normal((len(words), WIDTH)) / WIDTH**0.5)
        self.positions = nnx.Param(rngs.params.normal((LENGTH, WIDTH)) / WIDTH**0.5)
        self.blocks = nnx.List([Block(rngs) for _ in range(BLOCKS)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(DROPOUT, rngs=rngs)

    def __call__(self, inputs):
        x = self.dropout(self.table[inputs] * WIDTH**0.5 + self.positions[...])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


model = Decoder(nnx.Rngs(0))
print(f"{sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))} parameters")

# %% [markdown]
# ## The loss
#
# The one call below is what this notebook is about:
#
# - `transpose_kernel=True` takes the table as it is, `[words, width]`. No transposed copy is made.
# - `ignore_index` drops the labels of −100, as in the quickstart.
# - `z_loss` adds a little of log² of the softmax's denominator, which keeps the logits from drifting.
# - `reduction="partial"` returns the two sums of the mean undivided, as a `Mean(total, weight)`.


# %%
def loss(model, inputs, labels, z_loss=1e-4, reduction="partial"):
    return jxent.linear_softmax_cross_entropy(
        model(inputs),
        model.table[...],
        labels,
        transpose_kernel=True,
        ignore_index=IGNORED,
        z_loss=z_loss,
        reduction=reduction,
    )


# %% [markdown]
# ## Microbatches
#
# A batch that does not fit in memory goes through in parts. Labels that do not count make the parts unequal, and the
# mean of their means is not the mean of the batch. So we differentiate the total, add up totals, weights and gradients,
# and divide once, when all parts are in.


# %%
@nnx.jit
def accumulate(model, sums, inputs, labels):
    def total(model):
        part = loss(model, inputs, labels)
        return part.total, part

    (_, part), grads = nnx.value_and_grad(total, has_aux=True)(model)
    return jax.tree.map(jnp.add, sums, (part, grads))


def gradient(sums):
    part, grads = sums
    return jax.tree.map(lambda grad: grad / part.weight, grads)


nothing = jxent.Mean(jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))

# %% [markdown]
# A batch of sixteen windows, sorted from the shortest and split into four parts, shows that this matters. Divided once,
# the parts give the gradient of the batch. The mean of the four means is far from it.


# %%
def distance(grads, others):
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, grads, others)) / optax.tree.norm(others))


model.eval()  # no dropout
shortest = np.argsort(np.sum(train_labels != IGNORED, axis=1), kind="stable")[:16]
whole = gradient(accumulate(model, nothing, train_inputs[shortest], train_labels[shortest]))

parts = [accumulate(model, nothing, train_inputs[rows], train_labels[rows]) for rows in shortest.reshape(4, 4)]
divided_once = gradient(jax.tree.map(lambda *leaves: sum(leaves), *parts))
mean_of_means = jax.tree.map(lambda *leaves: sum(leaves) / 4, *map(gradient, parts))

print("labels that count in each part:", ", ".join(f"{part.weight:.0f}" for part, _ in parts))
print(f"gradient of the parts, divided once:  {distance(divided_once, whole):.0e} away from that of the batch")
print(f"gradient of the mean of their means:  {distance(mean_of_means, whole):.0e} away")

# %% [markdown]
# ## Training
#
# Each step takes four microbatches of four windows. After each epoch we print the perplexity, e to the mean loss: a
# model of perplexity 100 is as unsure as one that has to choose among 100 words. We compute it without dropout and
# without z-loss, on the held-out windows and on as many training windows.

# %%
EPOCHS, MICROBATCHES, ROWS = 6, 4, 4
STEPS = len(train_inputs) // (MICROBATCHES * ROWS)  # windows that do not fill a batch sit out the epoch

rate = optax.warmup_cosine_decay_schedule(0, 6e-3, EPOCHS * STEPS // 10, EPOCHS * STEPS)
adam = optax.chain(optax.clip_by_global_norm(1), optax.adamw(rate, b2=0.98, weight_decay=0.1))
optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)


@nnx.jit
def update(model, optimizer, sums):
    optimizer.update(model, gradient(sums))


@nnx.jit
def evaluate(model, inputs, labels):
    return jnp.exp(loss(model, inputs, labels, z_loss=0).value())


rng = np.random.default_rng(0)
sample = rng.choice(len(train_inputs), len(test_inputs), replace=False)
perplexities = []


def report(bar, epoch):
    model.eval()
    train = float(evaluate(model, train_inputs[sample], train_labels[sample]))
    test = float(evaluate(model, test_inputs, test_labels))
    perplexities.append((train, test))
    bar.write(f"epoch {epoch}/{EPOCHS}  perplexity: train {train:7.1f}, held-out {test:7.1f}")
    model.train()


quiet = not (IN_NOTEBOOK or sys.stdout.isatty())
with tqdm(total=EPOCHS * STEPS, desc="training", unit="step", file=sys.stdout, disable=quiet) as bar:
    report(bar, 0)
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(len(train_inputs))[: STEPS * MICROBATCHES * ROWS]
        for batch in order.reshape(STEPS, MICROBATCHES, ROWS):
            sums = nothing
            for rows in batch:
                sums = accumulate(model, sums, train_inputs[rows], train_labels[rows])
            update(model, optimizer, sums)
            bar.update()
        report(bar, epoch)

model.eval()
print(f"to compare: guessing each held-out word by its frequency alone has perplexity {by_frequency:.1f}")

# %% [markdown]
# ## What the model writes
#
# We draw each next word from the softmax of the logits, a little sharpened. Here we do need logits, but only those of
# one position. The result sounds like the manual, and no more: there is far too little text to learn sense from.

# %%
TEMPERATURE = 0.7
STARTS = ["¶The", "¶If the", "¶A class"]


@nnx.jit
def next_words(model, inputs, position, key):
    hidden = model(inputs)[:, position]
    return jax.random.categorical(key, hidden @ model.table[...].T / TEMPERATURE)


def write(starts):
    starts = [[word_ids[word] for word in WORD.findall(start)] for start in starts]
    text = np.zeros((len(starts), LENGTH), np.int32)
    for row, start in zip(text, starts, strict=True):
        row[: len(start)] = start
    for position in range(LENGTH - 1):
        drawn = np.asarray(next_words(model, text, position, jax.random.key(position)))
        for row, start, word in zip(text, starts, drawn, strict=True):
            if position + 1 >= len(start):
                row[position + 1] = word
    return ["".join(words[row]) for row in text]


for number, text in enumerate(write(STARTS), 1):
    print(textwrap.fill(f"{number}. {text}…", 100, subsequent_indent="   "))

# %% [markdown]
# ## What the loss takes in memory
#
# Training this small model gained nothing: the logits of a microbatch are few, and fit in one chunk. So we ask the
# compiler, which knows before anything runs, what larger sizes take: the loss of 4096 positions, and its gradients with
# respect to the hidden states (of width 512) and the table, with the vocabulary above and those of three well-known
# models.
#
# The usual loss, here that of optax, takes the logits as an argument, so they exist whole, and so does their gradient.

# %%
VOCABULARIES = {"this notebook": len(words), "Llama 2": 32000, "GPT-2": 50257, "Llama 3": 128256}
MIB = 2**20


def usual_loss(hidden, table, labels):
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T, labels).mean()


def fused_loss(hidden, table, labels):
    return jxent.linear_softmax_cross_entropy(hidden, table, labels, transpose_kernel=True, reduction="mean")


def memory(loss, vocabulary):
    hidden, table = (jax.ShapeDtypeStruct((rows, 512), jnp.float32) for rows in (4096, vocabulary))
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    plan = step.lower(hidden, table, jax.ShapeDtypeStruct((4096,), jnp.int32)).compile().memory_analysis()
    return np.array([plan.argument_size_in_bytes + plan.output_size_in_bytes, plan.temp_size_in_bytes]) / MIB


usual, fused = (np.array([memory(f, size) for size in VOCABULARIES.values()]) for f in (usual_loss, fused_loss))

print("MiB beside the arguments and their gradients:")
for (name, size), (_, theirs), (_, ours) in zip(VOCABULARIES.items(), usual, fused, strict=True):
    print(f"{name:>13}, {size:6d} words: logits {theirs:6.0f}, fused {ours:4.0f}, {theirs / ours:4.1f} times less")

# %% [markdown]
# ## The whole of it in pictures
#
# On the left is the perplexity, epoch by epoch. The held-out windows fall behind: there is little text, and the model
# begins to learn it by heart. On the right is the memory. The pale foot of each bar is what both losses need: the
# hidden states, the table and their gradients. What jxent adds is little more than the logits of one chunk, and the sum
# of the table's gradient over the chunks.
#
# Below is the held-out window of middling difficulty. The redder a word, the less the model expected it: the shade is
# the word's own loss, from `reduction="none"`.

# %%
USUAL, FUSED, SHARED, SURPRISE = "#9aa5b1", "#1f6f8b", "#e4e8ec", "#e4573d"
COLUMNS = 112

word_loss = np.asarray(loss(model, test_inputs, test_labels, z_loss=0, reduction="none"))
full = np.flatnonzero(np.all(test_labels != IGNORED, axis=1))
passage = full[np.argsort(word_loss[full].mean(axis=1))[len(full) // 2]]

figure = plt.figure(figsize=(11, 6), layout="constrained")
charts, below = figure.subfigures(2, 1, height_ratios=(3, 1))
left, right = charts.subplots(1, 2, width_ratios=(1, 1.3))

for name, color, values in (
    ("train", USUAL, [train for train, _ in perplexities]),
    ("held-out", FUSED, [test for _, test in perplexities]),
):
    left.plot(values, color=color, marker="o", clip_on=False)
    left.annotate(
        f"{name}: {values[-1]:.0f}", (EPOCHS, values[-1]), (9, 0), textcoords="offset points", color=color, va="center"
    )
left.axhline(by_frequency, color="black", linestyle=":", linewidth=1)
left.annotate(
    f"by frequency alone: {by_frequency:.0f}", (EPOCHS, by_frequency), (0, 4), textcoords="offset points", ha="right"
)
left.set_yscale("log")
left.set_yticks([100, 1000, 10000], ["100", "1,000", "10,000"])
left.minorticks_off()
left.set_title("perplexity", fontsize=11)
left.set_xlabel("epoch")
left.spines[["top", "right"]].set_visible(False)

places = np.arange(len(VOCABULARIES))
for offset, color, name, bars in ((-0.2, USUAL, "with logits (optax)", usual), (0.2, FUSED, "fused (jxent)", fused)):
    needed, beside = bars.T / 1024
    top = right.bar(places + offset, beside, bottom=needed, width=0.38, color=color, label=name)
    foot = right.bar(places + offset, needed, width=0.38, color=SHARED)
    right.bar_label(top, [f"{total:.1f}" for total in needed + beside], padding=2)
right.set_xticks(places, [f"{name}\n{size:,} words" for name, size in VOCABULARIES.items()])
right.tick_params(axis="x", length=0)
right.set_title("peak memory of the loss and its gradients, GiB", fontsize=11)
right.spines[["top", "right", "left"]].set_visible(False)
right.set_yticks([])
right.margins(y=0.08)
foot.set_label("what both need")
right.legend(loc="upper left", frameon=False)

below.suptitle("a passage the model has not seen: the redder a word, the less expected", fontsize=11)
page = below.subplots()
page.set_axis_off()
column = line = 0
for word, surprise in zip(words[test_labels[passage]], word_loss[passage] / np.log(len(words)), strict=True):
    if column + len(word) > COLUMNS:
        column, line = 0, line + 1
    page.barh(line, len(word), left=column, height=0.86, color=SURPRISE, alpha=min(0.9 * surprise, 1))
    page.text(column, line, word, family="monospace", fontsize=11, va="center_baseline")
    column += len(word)
page.set_xlim(0, COLUMNS)
page.set_ylim(line + 0.5, -0.5)

if IN_NOTEBOOK:
    plt.show()
else:
    path = Path(__file__).parent / "output" / "language_model.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    print("plot saved to", os.path.relpath(path))
