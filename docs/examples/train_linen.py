"""A training step with Flax Linen, on padded batches: python docs/examples/train_linen.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

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


class Tagger(nn.Module):
    width: int

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(VOCAB, self.width)
        pairs = jnp.concatenate([embed(tokens), embed(jnp.roll(tokens, 1, axis=1))], axis=-1)
        return nn.Dense(CLASSES)(jax.nn.gelu(nn.Dense(4 * self.width)(pairs)))


@jax.jit
def train_step(state, tokens, labels, mask):
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, tokens)
        return jxent.softmax_cross_entropy(logits, labels, where=mask, reduction="mean")

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


model = Tagger(32)
params = model.init(jax.random.key(0), batch()[0])["params"]
state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(3e-3))
for step in range(101):
    state, loss = train_step(state, *batch())
    if step % 20 == 0:
        print(f"step {step:3d}  loss {loss:.4f}")
