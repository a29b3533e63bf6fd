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
# # Policy gradients: learning to sort from rewards alone
#
# A small decoder gets four digits and has to write them in order. It never sees a sorted row: it writes answers, each
# answer gets a reward, and GRPO makes rewarded answers more likely. This is how language models are trained on tasks
# whose answers can be checked.
#
# Such a loss is a function of two numbers for each token, the log-probability of what was written and the entropy of
# the distribution it was drawn from. `jxent.linear_softmax_loss` takes that function and goes from the hidden states to
# its mean and gradient, without the logits.
#
# You need `pip install "jxent[notebooks]"`. Nothing is downloaded. Two CPU cores need less than a minute.

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
from tqdm import tqdm

import jxent

IN_NOTEBOOK = "get_ipython" in globals()
if not IN_NOTEBOOK:
    matplotlib.use("Agg")  # as a script, this file saves its plot and needs no display

import matplotlib.pyplot as plt

# %% [markdown]
# ## The task and its reward
#
# A sequence has four digits, a mark that says "now sort", and four more digits, which the model writes. The reward of
# an answer is the share of its places that hold the right digit.

# %%
LENGTH, DIGITS = 4, 10
MARK = DIGITS  # the token after the last digit


def rewards(prompts, answers):
    return np.mean(answers == np.sort(prompts, axis=1), axis=1)


example = np.array([[7, 1, 9, 1]])
for answer in ([[1, 1, 7, 9]], [[1, 7, 7, 9]], [[9, 7, 1, 1]]):
    print(f"{example[0]} → {np.array(answer[0])}: reward {rewards(example, np.array(answer))[0]:.2f}")

# %% [markdown]
# ## The policy
#
# The model has two blocks, each of attention and a perceptron. It returns hidden states and leaves the last layer to
# the loss. That layer starts at zero, so the first answers are drawn evenly from all digits.

# %%
WIDTH, HEADS, BLOCKS = 48, 4, 2


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.RMSNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.to_heads = nnx.Linear(WIDTH, 3 * WIDTH, use_bias=False, rngs=rngs)
        self.from_heads = nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs)
        self.wide = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.narrow = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        heads = self.to_heads(self.norms[0](x)).reshape(*x.shape[:-1], 3 * HEADS, WIDTH // HEADS)
        attended = jax.nn.dot_product_attention(*jnp.split(heads, 3, axis=-2), is_causal=True)
        x = x + self.from_heads(attended.reshape(x.shape))
        return x + self.narrow(nnx.gelu(self.wide(self.norms[1](x))))


class Policy(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.table = nnx.Param(rngs.params.normal((DIGITS + 1, WIDTH)))
        self.positions = nnx.Param(rngs.params.normal((2 * LENGTH, WIDTH)))
        self.blocks = nnx.List([Block(rngs) for _ in range(BLOCKS)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.kernel = nnx.Param(jnp.zeros((WIDTH, DIGITS)))

    def __call__(self, tokens):
        x = self.table[tokens] + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


policy = Policy(nnx.Rngs(0))

# %% [markdown]
# ## Writing answers
#
# We draw each digit from the softmax of the logits of one position. Here we do need logits.


# %%
@nnx.jit
def write(policy, prompts, key):
    tokens = jnp.pad(prompts, ((0, 0), (0, LENGTH + 1))).at[:, LENGTH].set(MARK)
    for place in range(LENGTH, 2 * LENGTH):
        hidden = policy(tokens[:, :-1])[:, place]
        drawn = jax.random.categorical(jax.random.fold_in(key, place), hidden @ policy.kernel[...])
        tokens = tokens.at[:, place + 1].set(drawn)
    return tokens


# %% [markdown]
# ## The loss
#
# `clipped` is the per-token loss of PPO and GRPO: the ratio of a token's probability to its probability when it was
# written, times the answer's advantage, but no further than the clip, plus a small bonus for entropy. Algorithms of
# this kind differ only in this function.
#
# The tokens of the prompt were not written by the policy. `where` masks them: they have no loss and no gradient.


# %%
def clipped(log_prob, entropy, old_log_prob, advantage):
    ratio = jnp.exp(log_prob - old_log_prob)
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    return -surrogate - 0.003 * entropy


IS_ANSWER = np.arange(2 * LENGTH) >= LENGTH


def loss(policy, tokens, old_log_prob, advantage):
    return jxent.linear_softmax_loss(
        clipped,
        policy(tokens[:, :-1]),
        policy.kernel[...],
        tokens[:, 1:],
        old_log_prob,
        advantage,
        where=IS_ANSWER[None],
    )


@nnx.jit
def log_probs(policy, tokens):
    """Log-probabilities of the tokens that were written, and the entropies they were drawn with."""
    hidden = policy(tokens[:, :-1])
    return jxent.linear_softmax_log_probs(
        hidden, policy.kernel[...], tokens[:, 1:], where=IS_ANSWER[None], return_entropy=True
    )


# %% [markdown]
# The prompts below have the mark 10 among their labels, which is no class of the last layer. In a row that counts, it
# would be a bad label and make the loss NaN; in a masked row it does nothing. For the policy that wrote the answers,
# the ratio is 1, the surrogate is the advantage, and the gradient is that of REINFORCE:

# %%
rng = np.random.default_rng(0)
tokens = write(policy, rng.integers(DIGITS, size=(6, LENGTH)), jax.random.key(0))
print(tokens[0])
old = log_probs(policy, tokens)
advantage = jnp.asarray(np.repeat(rng.normal(size=(6, 1)), 2 * LENGTH, axis=1), jnp.float32)


def reinforce(log_prob, entropy, old_log_prob, advantage):
    return -advantage * log_prob - 0.003 * entropy


def gradient(row_loss):
    def mean(kernel):
        arguments = policy(tokens[:, :-1]), kernel, tokens[:, 1:], old.log_prob, advantage
        return jxent.linear_softmax_loss(row_loss, *arguments, where=IS_ANSWER[None])

    return jax.grad(mean)(policy.kernel[...])


difference = jnp.max(jnp.abs(gradient(clipped) - gradient(reinforce))) / jnp.max(jnp.abs(gradient(reinforce)))
print(f"log-probability and entropy of the first digit: {old.log_prob[0, LENGTH]:.4f} {old.entropy[0, LENGTH]:.4f}")
print(f"largest relative difference of the gradients of PPO and REINFORCE: {difference:.0e}")

# %% [markdown]
# ## Training
#
# Each step draws 32 prompts and writes eight answers to each. An answer's advantage is how far its reward is above the
# mean of its group, in standard deviations. This is the G of GRPO, and it needs no second network. We make two updates
# from each batch, so in the second the ratio is no longer 1.

# %%
STEPS, PROMPTS, GROUP, UPDATES = 250, 32, 8, 2

rate = optax.warmup_cosine_decay_schedule(0, 2e-3, 20, STEPS * UPDATES)
optimizer = nnx.Optimizer(policy, optax.chain(optax.clip_by_global_norm(1), optax.adamw(rate)), wrt=nnx.Param)


@nnx.jit
def update(policy, optimizer, tokens, old_log_prob, advantage):
    gradients = nnx.grad(loss)(policy, tokens, old_log_prob, advantage)
    optimizer.update(policy, gradients)


def advantages(reward):
    groups = reward.reshape(PROMPTS, GROUP)
    centred = groups - groups.mean(axis=1, keepdims=True)
    by_answer = centred / (groups.std(axis=1, keepdims=True) + 1e-3)
    return np.repeat(by_answer.reshape(-1, 1), 2 * LENGTH, axis=1).astype(np.float32)


history = []
quiet = not (IN_NOTEBOOK or sys.stdout.isatty())
with tqdm(total=STEPS, desc="training", unit="step", file=sys.stdout, disable=quiet) as bar:
    for step in range(STEPS):
        prompts = np.repeat(rng.integers(DIGITS, size=(PROMPTS, LENGTH)), GROUP, axis=0)
        tokens = write(policy, prompts, jax.random.key(step))
        reward = rewards(prompts, np.asarray(tokens[:, LENGTH + 1 :]))
        log_prob, entropy = log_probs(policy, tokens)
        for _ in range(UPDATES):
            update(policy, optimizer, tokens, log_prob, advantages(reward))
        history.append((reward.mean(), np.mean(reward == 1), float(entropy.sum() / (len(tokens) * LENGTH))))
        bar.update()
        if step % 50 == 0 or step == STEPS - 1:
            mean, solved, nats = history[-1]
            bar.write(f"step {step:3d}  reward {mean:.3f}  all four right {solved:.3f}  entropy {nats:.3f}")

# %% [markdown]
# ## What it learned
#
# We take a thousand prompts with one answer each, and print the first four.

# %%
prompts = np.random.default_rng(1).integers(DIGITS, size=(1000, LENGTH))
answers = np.asarray(write(policy, prompts, jax.random.key(STEPS))[:, LENGTH + 1 :])
for prompt, answer in zip(prompts[:4], answers, strict=False):
    print(f"{prompt} → {answer}")
print(f"all four right: {np.mean(rewards(prompts, answers) == 1):.3f} of 1000")

# %% [markdown]
# ## What it costs with a real vocabulary
#
# Ten digits need no special loss. Language models have a hundred thousand classes, so we ask the compiler how much
# memory the same loss takes there, from hidden states of width 512 at 4096 positions, and how much it takes on
# materialised log-probabilities.

# %%
VOCABULARIES = {"Llama 2": 32000, "GPT-2": 50257, "Llama 3": 128256}
ROWS = 4096
MIB = 2**20


def fused(hidden, kernel, tokens, old_log_prob, advantage):
    return jxent.linear_softmax_loss(clipped, hidden, kernel, tokens, old_log_prob, advantage)


def materialised(hidden, kernel, tokens, old_log_prob, advantage):
    log_p = jax.nn.log_softmax(hidden @ kernel)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    log_prob = jnp.take_along_axis(log_p, tokens[:, None], axis=1)[:, 0]
    return jnp.mean(clipped(log_prob, entropy, old_log_prob, advantage))


def memory(loss, vocabulary):
    shapes = (ROWS, 512), (512, vocabulary), (ROWS,), (ROWS,), (ROWS,)
    dtypes = jnp.float32, jnp.float32, jnp.int32, jnp.float32, jnp.float32
    arguments = [jax.ShapeDtypeStruct(*each) for each in zip(shapes, dtypes, strict=True)]
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    return program.memory_analysis().temp_size_in_bytes / MIB


for name, size in VOCABULARIES.items():
    ours, theirs = memory(fused, size), memory(materialised, size)
    print(f"{name}, {size:6d} classes: materialised {theirs:5.0f} MiB, fused {ours:4.0f} MiB")

# %% [markdown]
# ## In pictures
#
# The plots show the reward and the entropy of the drawn digits. The entropy starts at log 10 and falls as the policy
# makes up its mind.

# %%
reward, solved, entropy = np.array(history).T
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.plot(reward, color="#1f6f8b", label="reward")
left.plot(solved, color="#e4573d", label="all four right")
left.set_ylim(0, 1.02)
left.set_title("reward", fontsize=11)
left.legend(frameon=False, loc="lower right")
right.plot(entropy, color="#1f6f8b")
right.axhline(np.log(DIGITS), color="black", linestyle=":", linewidth=1)
right.annotate("log 10", (STEPS, np.log(DIGITS)), (0, -12), textcoords="offset points", ha="right")
right.set_ylim(0)
right.set_title("entropy, nats", fontsize=11)
for axes in (left, right):
    axes.set_xlabel("step")
    axes.spines[["top", "right"]].set_visible(False)

if IN_NOTEBOOK:
    plt.show()
else:
    path = Path(__file__).parent / "output" / "policy_gradient.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    print("plot saved to", os.path.relpath(path))
