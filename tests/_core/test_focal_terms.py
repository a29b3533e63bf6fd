"""What focal and poly-1 add to a cross entropy: digits, finite derivatives of every order, and what peers compute.

What they share with the other losses, and their options, is in test_properties.
"""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from tests.losses import VARIANTS, assert_close

INF = np.inf
NUM_CLASSES = 6
GAMMAS = (0, 0.5, 2, 5)
EPS = 2.0**-23


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(60):
        yield


def exact(array):
    return [mpmath.mpf(float(x)) for x in array]


def dot(a, b):
    return mpmath.fsum(x * y for x, y in zip(a, b, strict=True))


def true_row(logits, q):
    """Cross entropy and miss of one row, and the gradients of both."""
    x, q = exact(logits), exact(q)
    e = [mpmath.exp(v - max(x)) for v in x]
    p = [v / mpmath.fsum(e) for v in e]
    # Summed from the others, so that 60 digits do for logits 1e4 apart.
    not_p = [mpmath.fsum(p[:c] + p[c + 1 :]) for c in range(len(p))]
    loss = -dot(q, [mpmath.log1p(-n) if n < 0.5 else mpmath.log(v) for v, n in zip(p, not_p, strict=True)])
    others = [mpmath.fsum(q[:c] + q[c + 1 :]) for c in range(len(p))]
    d_loss = [o * v - a * n for o, v, a, n in zip(others, p, q, not_p, strict=True)]
    hits = [a * v for a, v in zip(q, p, strict=True)]
    d_miss = [v * mpmath.fsum(hits[:c] + hits[c + 1 :]) - hits[c] * not_p[c] for c, v in enumerate(p)]
    return loss, dot(q, not_p), d_loss, d_miss


def true_focal(row, gamma):
    loss, miss, d_loss, d_miss = row
    ratio = gamma * loss / miss
    return miss**gamma * loss, [miss**gamma * (a + ratio * b) for a, b in zip(d_loss, d_miss, strict=True)]


def extreme_rows(rng):
    """Logits at every scale, confident and tied rows among them, and an id and a distribution for each."""
    scales = np.repeat([1, 10, 40, 1e4], 8)
    logits = (scales[:, None] * rng.normal(size=(scales.size, NUM_CLASSES))).astype(np.float32)
    logits[::8] = np.where(np.arange(NUM_CLASSES) == 2, scales[::8, None], 0)
    logits[1::8, :2] = logits[1::8].max(-1, keepdims=True)
    ids = np.where(np.arange(scales.size) % 2, rng.integers(NUM_CLASSES, size=scales.size), logits.argmax(-1))
    return logits, ids, rng.dirichlet(np.full(NUM_CLASSES, 0.3), scales.size).astype(np.float32)


def assert_digits(values, gradients, truths, num_roundings):
    """Relative to the truth, and gradients to their largest element; what float32 flushes is left out."""
    for value, gradient, (true_value, true_gradient), roundings in zip(
        values, gradients, truths, num_roundings, strict=True
    ):
        largest = max(map(abs, true_gradient))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        if largest > 1e-30 and true_value > 1e-30:
            assert abs(float(value) - true_value) < roundings * EPS * true_value
            for a, b in zip(gradient, true_gradient, strict=True):
                assert abs(float(a) - b) < roundings * EPS * largest


@pytest.mark.parametrize("kind", ["ids", "distributions"])
def test_softmax_focal_loss_and_poly1_keep_their_digits_at_every_scale(kind, rng):
    """Half of the distributions are one-hot."""
    logits, ids, q = extreme_rows(rng)
    one_hot = np.eye(NUM_CLASSES, dtype=np.float32)[ids]
    if kind == "ids":
        labels, q = ids, one_hot
    else:
        logits, labels = np.tile(logits, (2, 1)), np.concatenate([q, one_hot])
        q = labels
    rows = [true_row(*row) for row in zip(logits, q, strict=True)]
    # Rounding logit differences of d moves the loss by d roundings, and s^γ by γ times as many.
    spread = [min(np.ptp(row), float(-np.log(EPS * EPS))) for row in logits]

    def focal(x, gamma):
        return jxent.softmax_focal_loss(x, labels, gamma=gamma)

    def poly1(x, epsilon):
        return jxent.poly1_cross_entropy(x, labels, epsilon=epsilon)

    def values_and_gradients(loss, factor):
        return loss(logits, factor), jax.grad(lambda x: loss(x, factor).sum())(logits)

    @jax.jit
    def everything(gammas, epsilon):
        focals = jax.vmap(lambda gamma: values_and_gradients(focal, gamma))(gammas)
        return focals, values_and_gradients(poly1, epsilon)

    focals, poly = everything(jnp.array(GAMMAS, jnp.float32), jnp.float32(2))
    for gamma, values, gradients in zip(GAMMAS, *focals, strict=True):
        truths = [true_focal(row, mpmath.mpf(gamma)) for row in rows]
        assert_digits(values, gradients, truths, [(1 + gamma) * (4 + d) for d in spread])
    truths = [(c + 2 * s, [a + 2 * b for a, b in zip(dc, ds, strict=True)]) for c, s, dc, ds in rows]
    assert_digits(*poly, truths, [2 * (4 + d) for d in spread])


def test_sigmoid_focal_loss_keeps_its_digits_at_every_scale(rng):
    """Against the softmax of [0, x] and the distribution [1 − y, y], which is the same loss."""
    x = np.concatenate([[0, 20, -20, 80, -80, 1e4, -1e4], 10 * rng.normal(size=9)]).astype(np.float32)
    y = np.concatenate([np.zeros(x.size), np.ones(x.size), rng.uniform(0.1, 0.9, x.size)]).astype(np.float32)
    x = np.tile(x, 3)
    rows = [true_row([0, a], [1 - mpmath.mpf(float(b)), b]) for a, b in zip(x, y, strict=True)]

    @jax.jit
    @jax.vmap
    def everything(gamma):
        def loss(x):
            return jxent.sigmoid_focal_loss(x, y, gamma=gamma)

        return loss(x), jax.grad(lambda x: loss(x).sum())(x)

    for gamma, values, gradients in zip(GAMMAS, *everything(jnp.array(GAMMAS, jnp.float32)), strict=True):
        truths = [true_focal(row, mpmath.mpf(gamma)) for row in rows]
        truths = [(value, gradient[1:]) for value, gradient in truths]
        roundings = (1 + gamma) * (6 + np.minimum(np.abs(x), 100))
        cases = list(zip(values, gradients[:, None], truths, roundings, strict=True))
        assert_digits(*zip(*cases[: 2 * x.size // 3], strict=True))
        # Between 0 and 1 there is a logit where the gradient is 0.
        for value, gradient, (true_value, true_gradient), n in cases[2 * x.size // 3 :]:
            assert abs(float(value) - true_value) <= n * EPS * true_value
            assert abs(float(gradient[0]) - true_gradient[0]) <= n * EPS * max(1, true_value)


# --- derivatives of every kind, against the plain formulas in float64 -------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("loss", [loss for loss in VARIANTS if loss.has_float_labels], ids=lambda loss: loss.name)
@pytest.mark.usefixtures("x64")
def test_variants_have_every_derivative_to_second_order(loss, rng):
    """Second order in scores, labels, class weights and hyper-parameters together, by both forward and reverse over reverse."""
    hyper_parameters = {
        "softmax_focal_loss": {"gamma": 1.7, "class_weight": rng.uniform(0.5, 2, 4)},
        "poly1_cross_entropy": {"epsilon": -0.7, "class_weight": rng.uniform(0.5, 2, 4)},
        "sigmoid_focal_loss": {"gamma": 1.7, "alpha": 0.3},
    }
    labels = rng.uniform(0.05, 0.95, 4) if loss.is_binary else rng.dirichlet(np.ones(4))
    inputs = {"logits": 2 * rng.normal(size=4), "labels": labels, **hyper_parameters[loss.call.__name__]}
    flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.asarray, inputs))

    def ours(flat):
        return loss.call(**unravel(flat), reduction="sum")

    def plain(flat):
        return jnp.sum(loss.oracle(**unravel(flat), xp=jnp)[0])

    def everything(f, flat):
        return jax.value_and_grad(f)(flat), jax.jvp(f, (flat,), (jnp.cos(flat),))[1], jax.hessian(f)(flat)

    wanted = jax.jit(lambda flat: everything(plain, flat))(flat)
    got, backwards = jax.jit(lambda flat: (everything(ours, flat), jax.jacrev(jax.grad(ours))(flat)))(flat)
    jax.tree.map(lambda a, b: assert_close(a, b, np.float64, 20), got, wanted)
    assert_close(backwards, wanted[-1], np.float64, 20)


@pytest.mark.parametrize("kind", ["ids", "distributions", "sigmoid"])
def test_focal_losses_are_finite_to_second_order_wherever_the_loss_is(kind):
    """From a loss that float32 flushes to 0 up to one of 1e4, by logits and γ at once."""
    gaps = np.array([0, 1, 20, 60, 80, 87, 88, 104, 200, 1e4, INF, -1, -20, -100, -1e4], np.float32)
    logits, loss = np.stack([np.zeros_like(gaps), -gaps, -gaps], -1), jxent.softmax_focal_loss
    labels = np.zeros(gaps.size, np.int32)
    if kind == "sigmoid":
        logits, loss, labels = gaps, jxent.sigmoid_focal_loss, labels + 1
    elif kind == "distributions":
        # Both 1 and 0.75 of it on the label; a class at −inf can have no part of it.
        live = gaps != INF
        labels = np.concatenate([np.eye(3)[labels], np.tile([0.75, 0.25, 0], (sum(live), 1))]).astype(np.float32)
        logits = np.concatenate([logits, logits[live]])

    def row(x, gamma, y):
        return loss(x, y, gamma=gamma, reduction="sum")

    def everything(x, gamma, y):
        return row(x, gamma, y), jax.grad(row, (0, 1))(x, gamma, y), jax.hessian(row, (0, 1))(x, gamma, y)

    over_rows = jax.vmap(everything, (0, None, 0))
    got = jax.jit(jax.vmap(over_rows, (None, 0, None)))(logits, jnp.array(GAMMAS, jnp.float32), labels)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
    # The loss of the wrong rows tends to the gap and the log of how many classes are right instead, and s^γ to 1.
    value, (gradient, by_gamma), _ = jax.tree.map(lambda leaf: np.asarray(leaf[:, : gaps.size]), got)
    others = 1 if kind == "sigmoid" else 2
    assert_close(value[0, 0], np.log(1 + others))
    np.testing.assert_allclose(value[:, -2:], np.tile(np.add([100, 1e4], np.log(others)), (4, 1)), rtol=1e-6)
    np.testing.assert_allclose(np.abs(gradient).reshape(4, gaps.size, -1)[:, -2:].max(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(by_gamma[:, -1], 0)


def test_focal_losses_on_a_dead_class_are_inf_with_a_finite_gradient():
    """A label on a logit of −inf: as cross entropy, since s is 1 there."""
    want = np.array([np.e / (np.e + 1), -1, 1 / (np.e + 1)])

    def by_logits_and_gamma(loss, *inputs):
        value_and_grad = jax.value_and_grad(lambda x, gamma, y: loss(x, y, gamma=gamma), (0, 1))
        over_gammas = jax.vmap(value_and_grad, (None, 0, None))
        return jax.jit(over_gammas)(inputs[0], jnp.array(GAMMAS, jnp.float32), inputs[1])

    for label in (jnp.int32(1), jnp.array([0.0, 1, 0])):
        value, (gradient, by_gamma) = by_logits_and_gamma(jxent.softmax_focal_loss, jnp.array([1, -INF, 0]), label)
        np.testing.assert_array_equal(value, INF)
        assert_close(gradient, np.tile(want, (4, 1)))
        np.testing.assert_array_equal(by_gamma, 0)
    value, (gradient, by_gamma) = by_logits_and_gamma(jxent.sigmoid_focal_loss, jnp.float32(-INF), jnp.int32(1))
    np.testing.assert_array_equal((value, gradient, by_gamma), np.array([[INF], [-1], [0]]) * np.ones((3, 4)))


def test_variants_of_a_bad_label_or_a_nan_are_nan():
    logits = np.array([[0, 0], [0, 0], [0, np.nan], [-INF, -INF]], np.float32)
    for loss in (jxent.softmax_focal_loss, jxent.poly1_cross_entropy):
        for labels in (np.array([0, 2, 0, 0]), np.float32([[1, 0], [np.nan, 0], [1, 0], [1, 0]])):
            run = jax.jit(jax.value_and_grad(lambda x, labels=labels, loss=loss: loss(x, labels).sum()))
            assert np.isnan(run(logits)[0])
            np.testing.assert_array_equal(np.isnan(run(logits)[1]), [[False] * 2] + [[True] * 2] * 3)
    np.testing.assert_array_equal(np.isnan(jxent.sigmoid_focal_loss(np.zeros(2, np.float32), [2, 1])), [True, False])


def test_softmax_focal_loss_keeps_class_weights_out_of_the_factor(rng):
    logits, q = rng.normal(size=(4, 3)).astype(np.float32), rng.dirichlet(np.ones(3), 4).astype(np.float32)
    for labels in (np.array([0, 1, 2, 1]), q):
        rows = jxent.softmax_focal_loss(logits, labels)
        assert_close(jxent.softmax_focal_loss(logits, labels, class_weight=[3.0] * 3), 3 * np.asarray(rows))


def test_a_hyper_parameter_of_zero_gives_the_cross_entropy(rng):
    logits, labels = rng.normal(size=(4, 3)).astype(np.float32), np.array([0, 1, 1, 0])
    want = jxent.softmax_cross_entropy(logits, labels)
    for zero in (0, np.float32(0), jnp.zeros(())):
        np.testing.assert_array_equal(jxent.softmax_focal_loss(logits, labels, gamma=zero), want)
        np.testing.assert_array_equal(jxent.poly1_cross_entropy(logits, labels, epsilon=zero), want)
        np.testing.assert_array_equal(
            jxent.sigmoid_focal_loss(want, labels, gamma=zero), jxent.sigmoid_binary_cross_entropy(want, labels)
        )
    # For alpha 0 is a number as any other.
    assert jxent.sigmoid_focal_loss(2.0, 1, alpha=0) == 0


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
def test_softmax_focal_loss_of_distributions_on_a_mesh_that_splits_the_classes(axis_type, rng):
    """The step that sums over the classes, of those that the variants add."""
    logits = rng.normal(size=(4, 6)).astype(np.float32)
    q = rng.dirichlet(np.ones(6), 4).astype(np.float32)
    mesh = jax.make_mesh((2, 2), ("data", "classes"), axis_types=(axis_type,) * 2)
    placed = jax.device_put((logits, q), NamedSharding(mesh, P("data", "classes")))
    run = jax.jit(jax.value_and_grad(lambda x, q: jxent.softmax_focal_loss(x, q, reduction="sum"), (0, 1)))
    jax.tree.map(assert_close, run(*placed), run(logits, q))


def test_focal_losses_in_a_shard_map_of_rows(rng):
    """Where labels and γ are the same on all devices their gradients are the sums over these."""
    logits = rng.normal(size=(4, 6)).astype(np.float32)
    inputs = logits, rng.dirichlet(np.ones(6), 1).astype(np.float32), jnp.float32(1.5)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def total(x, q, gamma):
        q = jnp.tile(q, (x.shape[0], 1))
        softmax = jxent.softmax_focal_loss(x, q, gamma=gamma, reduction="sum")
        return softmax + jxent.sigmoid_focal_loss(x, q, gamma=gamma, alpha=0.3, reduction="sum")

    by_rows = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("data"), P(), P()))
    outside = jax.value_and_grad(by_rows(lambda *a: jax.lax.psum(total(*a), "data"), out_specs=P()), (0, 1, 2))
    inside = by_rows(jax.grad(total, (0, 1, 2)), out_specs=(P("data"), P(), P()))
    value, gradient = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(*inputs)
    got = jax.jit(lambda *inputs: (outside(*inputs), inside(*inputs)))(*inputs)
    jax.tree.map(assert_close, jax.device_get(got), ((value, gradient), gradient))


# --- peers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 0.25, 0.0, np.array([0.2, 0.5, 0.9], np.float32)], ids=str)
def test_sigmoid_focal_loss_matches_optax(alpha, rng):
    """For labels between 0 and 1 too. By a label of exactly 0 or 1 its gradient leaves one of two terms out."""
    logits = (3 * rng.normal(size=(16, 3))).astype(np.float32)
    labels = np.where(rng.uniform(size=(16, 3)) < 0.3, rng.integers(2, size=(16, 3)), rng.uniform(size=(16, 3)))
    labels = labels.astype(np.float32)
    by_optax = alpha if not isinstance(alpha, np.ndarray) else alpha[None]

    def pair(loss, alpha, gamma):
        value, pull = jax.vjp(lambda x, y: loss(x, y, alpha=alpha, gamma=gamma), logits, labels)
        return value, pull(jnp.cos(logits))

    for gamma in (0.5, 2.0):
        got = jax.jit(lambda gamma=gamma: pair(jxent.sigmoid_focal_loss, alpha, gamma))()
        want = jax.jit(lambda gamma=gamma: pair(optax.losses.sigmoid_focal_loss, by_optax, gamma))()
        between = (labels > 0) & (labels < 1)
        got, want = ((value, d_x, np.where(between, d_y, 0)) for value, (d_x, d_y) in (got, want))
        jax.tree.map(lambda a, b: assert_close(a, b, factor=10), got, want)


def test_poly1_cross_entropy_matches_optax(rng):
    logits, q = rng.normal(size=(16, 5)).astype(np.float32), rng.dirichlet(np.ones(5), 16).astype(np.float32)
    q[:5] = np.eye(5)
    for epsilon in (2.0, -1.0):

        def pair(loss, epsilon=epsilon):
            value, pull = jax.vjp(lambda x, y: loss(x, y, epsilon=epsilon), logits, q)
            return value, pull(jnp.arange(16.0))

        got, want = pair(jxent.poly1_cross_entropy), pair(optax.losses.poly_loss_cross_entropy)
        jax.tree.map(lambda a, b: assert_close(a, b, factor=5), got, want)


def test_focal_factor_survives_where_a_plain_power_does_not():
    """Why the rule exists: ∂(1 − p)^γ of a confident row is 0 · inf in the formula as it stands."""

    def plain(x, gamma):
        p = jax.nn.softmax(x)[0]
        return (1 - p) ** gamma * -jnp.log(p)

    logits = np.float32([30, 0, 0])
    assert np.isnan(jax.grad(plain)(logits, 0.5)).any()
    loss, gradient = jax.value_and_grad(lambda x: jxent.softmax_focal_loss(x, 0, gamma=0.5))(logits)
    s = 2 * np.exp(-30.0)
    np.testing.assert_allclose(loss, s**1.5, rtol=1e-6)
    np.testing.assert_allclose(gradient, 1.5 * s**1.5 * np.array([-1, 0.5, 0.5]), rtol=1e-6)
