"""A training step with Flax NNX, on padded batches: python docs/examples/train_nnx.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jxent

VOCAB, CLASSES, BATCH, LENGTH = 32, 10, 64, 24
rng = np.random.default_rng(0)
scores = rng.normal(size=(2, VOCAB, CLASSES))  # a label depends on its token and on the one before


def batch():
    """Sentences of unequal lengths, padded with zeros, and which of their places count."""
    tokens = rng.integers(VOCAB, size=(BATCH, LENGTH))
    labels = np.argmax(scores[0, tokens] + scores[1, np.roll(tokens, 1, axis=1)], axis=-1)
    mask = np.arange(LENGTH) < rng.integers(4, LENGTH + 1, size=(BATCH, 1))
    return np.where(mask, tokens, 0), np.where(mask, labels, 0), mask


class Tagger(nnx.Module):
    def __init__(self, width, rngs):
        self.embed = nnx.Embed(VOCAB, width, rngs=rngs)
        self.wide = nnx.Linear(2 * width, 4 * width, rngs=rngs)
        self.out = nnx.Linear(4 * width, CLASSES, rngs=rngs)

    def __call__(self, tokens):
        pairs = jnp.concatenate([self.embed(tokens), self.embed(jnp.roll(tokens, 1, axis=1))], axis=-1)
        return self.out(jax.nn.gelu(self.wide(pairs)))


@nnx.jit
def train_step(model, optimizer, tokens, labels, mask):
    def loss_fn(model):
        return jxent.softmax_cross_entropy(model(tokens), labels, where=mask, reduction="mean")

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


model = Tagger(32, nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
for step in range(101):
    loss = train_step(model, optimizer, *batch())
    if step % 20 == 0:
        print(f"step {step:3d}  loss {loss:.4f}")
