"""Random arguments, option by option, beside the textbook in float64: of each kind of loss as many cases as some seconds allow.

The seeds are fixed, so that a case that fails fails again; `JXENT_RANDOM_SECONDS` and `JXENT_RANDOM_SEED` take the search
further.
"""

import itertools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from tests import oracle
from tests.losses import LOSSES, VARIANTS

ORACLES = {loss.call.__name__: loss.oracle for loss in LOSSES + VARIANTS}
SECONDS = float(os.environ.get("JXENT_RANDOM_SECONDS", "6"))
SEED = int(os.environ.get("JXENT_RANDOM_SEED", "0"))
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
MULTICLASS = {
    "softmax_cross_entropy": {"label_smoothing": 0.1, "z_loss": 1e-2},
    "softmax_focal_loss": {"gamma": 1.5},
    "poly1_cross_entropy": {"epsilon": 0.7, "label_smoothing": 0.1},
    "cross_entropy_from_log_probs": {"label_smoothing": 0.1},
}


def cases(name):
    """Each with its seed, until the time is over; some at any rate."""
    start = time.monotonic()
    for i in itertools.count():
        if i >= 4 and time.monotonic() - start > SECONDS:
            return
        seed = (SEED, i, *name.encode())
        yield seed, np.random.default_rng(seed)


def maybe(rng, options):
    return {name: value for name, value in options.items() if rng.random() < 0.5}


def make_logits(rng, shape, dtype):
    """[N, V] around 0, confident, or with classes that do not exist."""
    x = rng.normal(size=shape) * rng.choice([1.0, 10.0, 60.0])
    if rng.random() < 0.3:
        x[rng.random(shape) < 0.2] = -np.inf
        x[:, 0] = 1.0  # at least one is live
    return np.asarray(jnp.asarray(x, dtype))


def make_labels(rng, x):
    """On classes that exist: elsewhere the loss is inf, which other tests look at."""
    n, v = x.shape
    live = np.asarray(x, np.float32) > -np.inf
    if rng.random() < 0.5:
        ids = np.array([rng.choice(np.flatnonzero(row)) for row in live])
        return ids.astype(rng.choice([np.int8, np.uint8, np.int32, np.uint32]))
    q = live * rng.dirichlet(np.ones(v), size=n)
    return np.asarray(jnp.asarray(q, rng.choice(DTYPES)))


def textbook_result(name, x, labels, options, counts, reduction):
    options = dict(options)
    sample_weight = options.pop("sample_weight", None)
    rows, weight = ORACLES[name](x, labels, **options, xp=jnp)
    return oracle.reduce(rows, weight, sample_weight=sample_weight, where=counts, reduction=reduction, xp=jnp)


def assert_near(actual, wanted, dtype, seed):
    rtol = 3e-5 + 4 * float(jnp.finfo(dtype).eps)
    wanted = np.asarray(wanted, np.float64)
    atol = rtol * np.max(np.abs(wanted), initial=0) * 1e-2 + float(jnp.finfo(dtype).smallest_subnormal) * 4
    np.testing.assert_allclose(np.asarray(actual, np.float64), wanted, rtol=rtol, atol=atol, err_msg=f"seed {seed}")


@pytest.mark.parametrize("name", MULTICLASS)
def test_multiclass_losses_and_gradients_are_the_textbooks(name):
    for seed, rng in cases(name):
        n, v, dtype = 6, int(rng.choice([3, 50])), rng.choice(DTYPES)
        x = make_logits(rng, (n, v), dtype)
        if name.endswith("log_probs"):
            x = np.asarray(jax.nn.log_softmax(jnp.asarray(x, jnp.float32)).astype(dtype))
        labels = make_labels(rng, x)
        options = maybe(rng, MULTICLASS[name] | {"class_weight": rng.uniform(0.5, 2, v).astype(np.float32)})
        options |= maybe(rng, {"sample_weight": rng.uniform(0.5, 2, n).astype(np.float32)})
        counts = np.arange(n) % 3 > 0 if rng.random() < 0.5 else np.ones(n, bool)
        given, x_given, labels_given = dict(options), x.copy(), labels.copy()
        if not counts.all():
            x_given[~counts] = np.nan
            if labels.ndim == 1 and rng.random() < 0.5:
                labels_given[~counts], given["ignore_index"] = 101, 101
            else:
                given["where"] = counts
        reduction = str(rng.choice(["none", "sum", "mean"]))
        cotangent = rng.normal(size=n if reduction == "none" else ()).astype(np.float32)
        given = {k: (jnp.float32(a) if isinstance(a, float) and rng.random() < 0.5 else a) for k, a in given.items()}

        def ours(x, name=name, labels=labels_given, given=given, reduction=reduction):
            return getattr(jxent, name)(x, labels, reduction=reduction, **given)

        value, pull = jax.vjp(ours, jnp.asarray(x_given))
        (gradient,) = pull(cotangent)
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), options)
            wide_labels = labels if labels.ndim == 1 else jnp.asarray(np.asarray(labels, np.float64))

            def true(x, name=name, labels=wide_labels, wide=wide, counts=counts, reduction=reduction):
                return textbook_result(name, x, labels, wide, counts, reduction)

            wanted, pull = jax.vjp(true, jnp.asarray(np.asarray(x, np.float64)))
            (wanted_gradient,) = pull(np.asarray(cotangent, np.float64))
            wanted, wanted_gradient = jax.device_get((wanted, wanted_gradient))
        assert_near(value, wanted, jnp.float32, seed)
        assert_near(gradient, np.nan_to_num(wanted_gradient), dtype, seed)


BINARY = {
    "sigmoid_binary_cross_entropy": {"pos_weight": 1.7, "label_smoothing": 0.1},
    "sigmoid_focal_loss": {"alpha": 0.3, "gamma": 1.5},
    "binary_cross_entropy_from_probs": {"pos_weight": 1.7, "label_smoothing": 0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BINARY)
def test_binary_losses_and_gradients_are_the_textbooks(name):
    for seed, rng in cases(name):
        n, v, dtype = 6, 4, rng.choice(DTYPES)
        is_probs = name.endswith("probs")
        x = rng.uniform(0.01, 0.99, (n, v)) if is_probs else rng.normal(size=(n, v)) * rng.choice([1.0, 8.0])
        x = np.asarray(jnp.asarray(x, dtype))
        labels = rng.integers(2, size=(n, v)) if rng.random() < 0.5 else rng.uniform(size=(n, v)).astype(np.float32)
        options = maybe(rng, BINARY[name] | {"sample_weight": rng.uniform(0.5, 2, (n, v)).astype(np.float32)})
        if name != "sigmoid_focal_loss":
            options |= maybe(rng, {"class_weight": rng.uniform(0.5, 2, v).astype(np.float32)})
        counts = rng.random((n, v)) < 0.7 if rng.random() < 0.5 else np.ones((n, v), bool)
        x_given, given = np.where(counts, x, np.asarray(np.nan, x.dtype)), dict(options)
        if not counts.all():
            given["where"] = counts
        reduction = str(rng.choice(["none", "sum", "mean"]))
        cotangent = rng.normal(size=(n, v) if reduction == "none" else ()).astype(np.float32)

        def ours(x, labels=labels, given=given, reduction=reduction):
            return getattr(jxent, name)(x, labels, reduction=reduction, **given)

        value, pull = jax.vjp(ours, jnp.asarray(x_given))
        (gradient,) = pull(cotangent)
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), options)
            y = jnp.asarray(np.asarray(labels, np.float64))

            def true(x, y=y, wide=wide, counts=counts, reduction=reduction):
                return textbook_result(name, x, y, wide, counts, reduction)

            wanted, pull = jax.vjp(true, jnp.asarray(np.asarray(x, np.float64)))
            (wanted_gradient,) = pull(np.asarray(cotangent, np.float64))
            wanted, wanted_gradient = jax.device_get((wanted, wanted_gradient))
        assert_near(value, wanted, jnp.float32, seed)
        assert_near(gradient, wanted_gradient, dtype, seed)


@pytest.mark.slow
def test_fused_losses_are_those_of_materialised_logits():
    for seed, rng in cases("fused"):
        n, d, v = 7, 5, int(rng.choice([3, 40]))
        hidden, kernel = rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(d, v)).astype(np.float32)
        labels = rng.integers(v, size=n) if rng.random() < 0.5 else rng.dirichlet(np.ones(v), size=n).astype(np.float32)
        options = maybe(
            rng,
            {
                "class_weight": rng.uniform(0.5, 2, v).astype(np.float32),
                "sample_weight": rng.uniform(0.5, 2, n).astype(np.float32),
                "where": rng.random(n) < 0.7,
                "label_smoothing": 0.1,
                "z_loss": 1e-2,
            },
        )
        bias = rng.normal(size=v).astype(np.float32)
        form = maybe(rng, {"logit_softcap": 4.0, "chunk_size": int(rng.choice([1, 3, 7]))})
        transpose, reduction = bool(rng.random() < 0.5), str(rng.choice(["none", "sum", "mean"]))
        cotangent = rng.normal(size=n if reduction == "none" else ()).astype(np.float32)

        def fused(h, k, b, labels=labels, form=form, options=options, transpose=transpose, reduction=reduction):
            k = k.T if transpose else k
            return jxent.linear_softmax_cross_entropy(
                h, k, labels, bias=b, transpose_kernel=transpose, reduction=reduction, **form, **options
            )

        def materialised(h, k, b, labels=labels, form=form, options=options, reduction=reduction):
            x = jnp.dot(h, k, precision="highest") + b[None]
            x = form["logit_softcap"] * jnp.tanh(x / form["logit_softcap"]) if "logit_softcap" in form else x
            return jxent.softmax_cross_entropy(x, labels, reduction=reduction, **options)

        for a, b in zip(
            *(_with_gradients(f, cotangent, hidden, kernel, bias) for f in (fused, materialised)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6, err_msg=f"seed {seed}")


def _with_gradients(f, cotangent, *arguments):
    value, pull = jax.vjp(f, *map(jnp.asarray, arguments))
    return value, *pull(jnp.asarray(cotangent))
