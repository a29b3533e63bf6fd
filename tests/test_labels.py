"""check_labels, where labels are concrete and where they are traced."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jxent

# Labels, the rest of the arguments, and what the error says after "labels are outside".
BAD = {
    "negative": ([0, 1, -1], (3,), {}, "1 of 3|[0, 3): labels[2] = -1"),
    "too high": (np.array([[0, 1], [3, 2]], np.uint8), (3,), {}, "1 of 4|[0, 3): labels[1, 0] = 3"),
    "a scalar": (jnp.array(7), (3,), {}, "1 of 1|[0, 3): labels = 7"),
    "64 bits": (np.array([0, 2**32]), (3,), {}, "1 of 2|labels[1] = 4294967296"),
    "unsigned 64 bits": (np.array([2**63], np.uint64), (3,), {}, "labels[0] = 9223372036854775808"),
    "beyond ignore_index": (
        [-100, 0, -1],
        (3,),
        {"ignore_index": -100},
        "1 of 3|[0, 3) and not ignore_index=-100: labels[2]",
    ),
    "many": (
        np.arange(12),
        (3,),
        {},
        "9 of 12|labels[3] = 3, labels[4] = 4, labels[5] = 5, labels[6] = 6, labels[7] = 7, …",
    ),
    "padding": ([0, 255, 255], (3,), {}, "labels[2] = 255; did you mean ignore_index=255?"),
}
GOOD = {
    "list": ([0, 2, 1], (3,), {}),
    "the highest of its dtype": (np.array([0, 255], np.uint8), (256,), {}),
    "fewer than its dtype has": (np.array([0, 127], np.int8), (1000,), {}),
    "none": (np.zeros((0, 4), np.int32), (3,), {}),
    "ignored": (np.array([0, -100]), (3,), {"ignore_index": -100}),
    "ignore_index outside the dtype": (np.array([0, 1], np.uint8), (3,), {"ignore_index": -100}),
}


@pytest.mark.parametrize(("labels", "arguments", "options", "words"), BAD.values(), ids=BAD)
def test_check_labels_says_how_many_and_which(labels, arguments, options, words):
    with pytest.raises(ValueError, match=r"^check_labels: ") as raised:
        jxent.check_labels(labels, *arguments, **options)
    for word in words.split("|"):
        assert word in str(raised.value), raised.value


@pytest.mark.parametrize(("labels", "arguments", "options"), GOOD.values(), ids=GOOD)
def test_check_labels_passes_good_ones(labels, arguments, options):
    assert jxent.check_labels(labels, *arguments, **options) is None


@pytest.mark.parametrize("name", ["negative", "too high", "beyond ignore_index", *GOOD])
def test_check_labels_of_traced_labels_is_a_checkify_check(name):
    labels, arguments, options, *words = (BAD | GOOD)[name]

    @jax.jit
    @checkify.checkify
    def step(labels):
        jxent.check_labels(labels, *arguments, **options)
        return jnp.sum(labels)

    error, total = step(np.asarray(labels))
    assert total == np.sum(labels)
    if not words:
        assert error.get() is None
        return
    bad = {"negative": "from -1 to -1", "too high": "from 3 to 3", "beyond ignore_index": "from -1 to -1"}[name]
    with pytest.raises(checkify.JaxRuntimeError, match=f"check_labels: {words[0].split('|')[0]} .* {bad}"):
        error.throw()


def test_check_labels_of_traced_labels_needs_checkify():
    with pytest.raises(ValueError, match="not functionalized"):
        jax.jit(lambda y: jxent.check_labels(y, 3))(np.array([0, 1]))


def test_check_labels_of_concrete_labels_within_a_trace():
    """Nothing is traced for them, and no checkify is needed."""

    def step(x, labels):
        jxent.check_labels(labels, 3)
        return x

    for labels in (np.array([0, 2]), jnp.array([0, 2]), [0, 2]):
        jaxpr = jax.make_jaxpr(lambda x, labels=labels: step(x, labels))(1.0)
        assert jaxpr.eqns == []
    with pytest.raises(ValueError, match=re.escape("labels[1] = 3")):
        jax.jit(lambda x: step(x, [0, 3]))(1.0)
