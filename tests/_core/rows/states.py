"""Rows that try a state, and their states by the textbook, in extended precision and with no line of the package."""

import jax.numpy as jnp
import numpy as np

from jxent._core.rows.state import SHARE, RowState, TargetState, Wanted

NUM_CLASSES = 40  # more than XLA:CPU reduces in one pass
EVERYTHING = Wanted(
    targets=(
        ("label", ("missed", "below", "dot")),
        ("plain", ("missed", "below", "dot")),
        ("spread", ("below", "dot")),
        ("live", ()),
    ),
    top=True,
    dot=True,
)


def make_rows(rng, num_classes=NUM_CLASSES):
    """[4, V] float32 by name: each is a way in which a row may be awkward."""
    normal = 3 * rng.normal(size=(4, num_classes))
    confident = normal.copy()
    confident[range(4), [0, 1, num_classes // 2, num_classes - 1]] += 40
    tied = np.round(normal)
    tied[0] = 0
    tied[1, :3] = tied[1].max() + 1
    dead = np.where(rng.random(normal.shape) < 0.5, -np.inf, normal)
    dead[0] = [0, *[-np.inf] * (num_classes - 1)]
    dead[1] = [*[-np.inf] * (num_classes - 1), 0]
    spikes = np.full((4, num_classes), np.finfo(np.float32).min / 16)
    spikes[range(4), [0, 5, num_classes // 2, num_classes - 1]] = [0, 1e30, -1e30, 3]
    rows = {
        "random": normal,
        "nearly uniform": 0.01 * normal,
        "confident": confident,
        "tied": tied,
        "huge": normal + np.array([[1e8], [-1e8], [3e38], [-3e38]]),
        "half dead": dead,
        "masked with finfo.min": spikes,
    }
    return {name: values.astype(np.float32) for name, values in rows.items()}


def make_distributions(rng, num_classes=NUM_CLASSES):
    """[4, V]: two general ones, of which one has zeros, one of mass 3, and a one-hot."""
    q = rng.dirichlet(np.ones(num_classes), 4)
    q[1, ::2] = 0
    q[2] *= 3
    q[3] = np.arange(num_classes) == num_classes // 2
    return q.astype(np.float32)


def make_problem(rng, num_classes, dtype=np.float32):
    """All of these rows, each group with these distributions, and class weights; as NumPy arrays, x and q in `dtype`."""
    groups = make_rows(rng, num_classes).values()
    limit = float(jnp.finfo(dtype).max)
    x = np.concatenate([np.where(np.isinf(rows), rows, np.clip(rows, -limit, limit)) for rows in groups])
    q = np.tile(make_distributions(rng, num_classes), (len(groups), 1))
    return x.astype(dtype), q.astype(dtype), rng.uniform(0.5, 2, num_classes).astype(np.float32)


def textbook_state(x, q, w):
    """The state of `EVERYTHING` of rows [N, V]."""
    x, q, w = (a.astype(np.longdouble) for a in (x, q, w))
    with np.errstate(invalid="ignore", over="ignore"):
        row_max = x.max(-1)
        d = x - row_max[:, None]
        top = x.argmax(-1)
        is_other = np.arange(x.shape[-1]) != top[:, None]
        live = (x > -np.inf).astype(np.longdouble) * SHARE
        targets = {"label": q * w, "plain": q, "spread": live * w, "live": live}

        def of(name, t):
            fields = dict(EVERYTHING.targets)[name]
            values = {
                "missed": (t * -np.expm1(d)).sum(-1),
                "below": np.where(d < 0, t, 0).sum(-1),
                "dot": np.where(t == 0, 0, t * np.where(t == 0, 0, d)).sum(-1),
            }
            return TargetState(**{field: values[field] for field in fields}, mass=t.sum(-1))

        return RowState(
            targets={name: of(name, t) for name, t in targets.items()},
            excess=np.where(is_other, np.exp(d), 0).sum(-1),
            dot=np.where(d == -np.inf, 0, np.exp(d) * np.where(d == -np.inf, 0, d)).sum(-1),
            row_max=row_max,
            top=top,
        )


def assert_same_state(actual, expected, rtol=2e-6):
    """Relatively, each number by itself: nothing in a state may be lost to another one. Subnormals are flushed to 0."""
    for name in ("excess", "dot", "row_max", "top"):
        _assert_same(getattr(actual, name), getattr(expected, name), rtol, name)
    for name, target in expected.targets.items():
        for field, value in target._asdict().items():
            if value is not None:
                _assert_same(getattr(actual.targets[name], field), value, rtol, f"{name}.{field}")


def _assert_same(actual, expected, rtol, name):
    if expected is None:
        assert actual is None, name
        return
    expected = np.asarray(expected).astype(np.float64)
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=rtol, atol=1e-36, err_msg=name)
