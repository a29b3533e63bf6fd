"""A training step with Equinox, on padded batches: python docs/examples/train_equinox.py."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

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


class Tagger(eqx.Module):
    embed: eqx.nn.Embedding
    wide: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, width, key):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(VOCAB, width, key=keys[0])
        self.wide = eqx.nn.Linear(2 * width, 4 * width, key=keys[1])
        self.out = eqx.nn.Linear(4 * width, CLASSES, key=keys[2])

    def __call__(self, tokens):  # of one sentence
        embedded = jax.vmap(self.embed)(tokens)
        pairs = jnp.concatenate([embedded, jnp.roll(embedded, 1, axis=0)], axis=-1)
        return jax.vmap(self.out)(jax.nn.gelu(jax.vmap(self.wide)(pairs)))


optimizer = optax.adam(3e-3)


@eqx.filter_jit
def train_step(model, state, tokens, labels, mask):
    def loss_fn(model):
        # The mean is taken outside of vmap: inside, each sentence would count the same, whatever its length.
        return jxent.softmax_cross_entropy(jax.vmap(model)(tokens), labels, where=mask, reduction="mean")

    loss, grads = eqx.filter_value_and_grad(loss_fn)(model)
    updates, state = optimizer.update(grads, state, model)
    return eqx.apply_updates(model, updates), state, loss


model = Tagger(32, jax.random.key(0))
state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
for step in range(101):
    model, state, loss = train_step(model, state, *batch())
    if step % 20 == 0:
        print(f"step {step:3d}  loss {loss:.4f}")
