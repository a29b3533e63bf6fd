"""`Mean` in training: parts of a batch, however unequal, give the gradient of the whole."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from tests.losses import assert_close

NUM_PARTS, PART_SIZE, LENGTH, NUM_FEATURES, NUM_CLASSES = 4, 2, 6, 3, 5
# How many tokens of each part count: none at all in one of them.
NUM_COUNTED = (12, 1, 0, 5)
NUM_STEPS = 3


class Batch(NamedTuple):
    """Sequences of tokens, NUM_PARTS · PART_SIZE of them."""

    features: np.ndarray
    labels: np.ndarray


def make_batch():
    rng = np.random.default_rng(0)
    labels = rng.integers(NUM_CLASSES, size=(NUM_PARTS, PART_SIZE * LENGTH))
    labels[np.arange(PART_SIZE * LENGTH)[None] >= np.array(NUM_COUNTED)[:, None]] = -100
    shape = NUM_PARTS * PART_SIZE, LENGTH
    return Batch(rng.normal(size=(*shape, NUM_FEATURES)).astype(np.float32), labels.reshape(shape))


def parts_of(batch):
    """Each leaf with a leading axis of parts."""
    return jax.tree.map(lambda leaf: jnp.reshape(leaf, (NUM_PARTS, -1, *leaf.shape[1:])), batch)


def make_params():
    rng = np.random.default_rng(1)
    shapes = {"in": (NUM_FEATURES, 4), "out": (4, NUM_CLASSES)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def loss_fn(params, batch, reduction):
    logits = jnp.tanh(batch.features @ params["in"]) @ params["out"]
    return jxent.softmax_cross_entropy(
        logits,
        batch.labels,
        class_weight=[0.5, 1, 2, 3, 1],
        ignore_index=-100,
        label_smoothing=0.1,
        z_loss=0.01,
        reduction=reduction,
    )


def gradient_of_whole(params, batch):
    return jax.grad(loss_fn)(params, batch, "mean")


def gradient_of_total(params, batch):
    """And the `Mean` whose total this is the gradient of: both add up."""

    def total(params):
        mean = loss_fn(params, batch, "partial")
        return mean.total, mean

    return jax.grad(total, has_aux=True)(params)


def divided(gradient, mean):
    return jax.tree.map(lambda leaf: leaf / mean.weight, gradient)


@functools.cache
def train(gradient_fn):
    """The parameters after each of some steps of gradient descent."""
    params, batch, history = make_params(), make_batch(), []
    step = jax.jit(lambda params: jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient_fn(params, batch)))
    for _ in range(NUM_STEPS):
        params = step(params)
        history.append(params)
    return history


def assert_trains_as_the_whole(gradient_fn):
    jax.tree.map(lambda got, want: assert_close(got, want, factor=2), train(gradient_fn), train(gradient_of_whole))


def assert_trains_otherwise(gradient_fn):
    moved = jax.tree.map(lambda got, want: np.abs(got - want).max(), train(gradient_fn), train(gradient_of_whole))
    assert max(jax.tree.leaves(moved)) > 0.05


def test_parts_weigh_differently():
    """Or the other tests would show nothing."""
    by_part = jax.vmap(lambda part: loss_fn(make_params(), part, "partial"))
    total, weight = jax.jit(by_part)(parts_of(make_batch()))
    assert len(set(weight.tolist())) == NUM_PARTS
    assert (total[2], weight[2]) == (0, 0)


def test_scan_over_microbatches():
    def gradient(params, batch):
        def add(so_far, part):
            return jax.tree.map(jnp.add, so_far, gradient_of_total(params, part)), None

        shapes = jax.eval_shape(gradient_of_total, params, batch)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return divided(*jax.lax.scan(add, zeros, parts_of(batch))[0])

    assert_trains_as_the_whole(gradient)


def test_scan_within_the_loss():
    def gradient(params, batch):
        def mean(params):
            def add(so_far, part):
                return so_far + loss_fn(params, part, "partial"), None

            zero = jnp.zeros(())
            return jax.lax.scan(add, jxent.Mean(zero, zero), parts_of(batch))[0].value()

        return jax.grad(mean)(params)

    assert_trains_as_the_whole(gradient)


@pytest.mark.slow
def test_optax_multi_steps():
    """It sums what it is given, here parts of unequal shape: so each total is divided by the weight of the whole."""

    def gradient(params, batch):
        optimizer = optax.MultiSteps(optax.sgd(1.0), NUM_PARTS, use_grad_mean=False)
        state, weight = optimizer.init(params), loss_fn(params, batch, "partial").weight
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6), slice(6, None)):
            part = jax.tree.map(lambda leaf, rows=rows: leaf[rows], batch)
            of_part = jax.grad(lambda params, part=part: loss_fn(params, part, "partial").total / weight)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(of_part(params), state, params)
        return jax.tree.map(jnp.negative, updates)

    assert_trains_as_the_whole(gradient)


def test_optax_microbatch():
    # Older releases of optax have none.
    microbatch = getattr(optax, "microbatch", None)

    def gradient(params, batch):
        return divided(*microbatch(gradient_of_total, argnums=1, microbatch_size=PART_SIZE)(params, batch))

    if microbatch is not None:
        assert_trains_as_the_whole(gradient)


@pytest.mark.slow
def test_data_parallel_devices():
    """A part on each of four."""
    mesh = jax.make_mesh((NUM_PARTS,), ("data",), axis_types=(AxisType.Auto,))
    on_devices = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())

    def gradient_inside(params, batch):
        gradient, mean = gradient_of_total(params, batch)
        # The parameters are the same on all devices, so that shard_map has added their gradients already.
        return divided(gradient, mean.psum("data"))

    def loss_inside(params, batch):
        return loss_fn(params, batch, "partial").psum("data").value()

    def split(params, batch):
        return gradient_of_whole(params, jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, P("data"))))

    assert_trains_as_the_whole(on_devices(gradient_inside))
    assert_trains_as_the_whole(jax.grad(on_devices(loss_inside)))
    assert_trains_as_the_whole(split)


def test_mean_of_means_is_something_else():
    def gradient(params, batch):
        gradients = jax.vmap(gradient_of_whole, (None, 0))(params, parts_of(batch))
        return jax.tree.map(lambda leaf: leaf.mean(0), gradients)

    assert_trains_otherwise(gradient)
