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
    "big-endian": (np.array([0, 7], ">i4"), (3,), {}, "1 of 2|labels[1] = 7"),
    "4 bits": (np.array([0, -1], jnp.int4), (100,), {}, "1 of 2|labels[1] = -1"),
    "4 bits of jax": (jnp.array([0, 9], jnp.uint4), (9,), {}, "1 of 2|labels[1] = 9"),
    "64 bits beside ignore_index": (
        np.array([-(2**63), 2**63 - 1]),
        (3,),
        {"ignore_index": -(2**63)},
        "labels[1] = 92",
    ),
    "binary integers": ([0, 1, 2, -1], (None,), {}, "2 of 4 labels are outside [0, 1]: labels[2] = 2, labels[3] = -1"),
    "binary floats": (
        np.array([[0, 1], [1.5, -0.25]], np.float32),
        (None,),
        {},
        "2 of 4 labels are outside [0, 1]: labels[1, 0] = 1.5, labels[1, 1] = -0.25",
    ),
    "beyond rounding": (np.array([1.0011, -0.0011], np.float32), (None,), {}, "2 of 2|labels[0] = 1.0011"),
    "bfloat16": (jnp.array([1.0, 1.0078125], jnp.bfloat16), (None,), {}, "1 of 2|labels[1] = 1.00781"),
    "NaN": ([0.0, np.nan], (None,), {}, "1 of 2 labels are outside [0, 1]: labels[1] = nan"),
    "missing": ([0.0, -1.0, -1.0], (None,), {}, "labels[2] = -1.0; did you mean where=labels != -1.0 in the loss?"),
    "binary beyond ignore_index": (
        [0.0, -1.0, -2.0],
        (None,),
        {"ignore_index": -1},
        "1 of 3|not ignore_index=-1: labels[2]",
    ),
}
GOOD = {
    "list": ([0, 2, 1], (3,), {}),
    "the highest of its dtype": (np.array([0, 255], np.uint8), (256,), {}),
    "fewer than its dtype has": (np.array([0, 127], np.int8), (1000,), {}),
    "none": (np.zeros((0, 4), np.int32), (3,), {}),
    "ignored": (np.array([0, -100]), (3,), {"ignore_index": -100}),
    "ignore_index outside the dtype": (np.array([0, 1], np.uint8), (3,), {"ignore_index": -100}),
    "4 bits": (np.array([0, 7], jnp.int4), (100,), {}),
    "2 bits": (np.array([0, 3], jnp.uint2), (4,), {}),
    "4 bits of jax": (jnp.array([0, -1, 7], jnp.int4), (8,), {"ignore_index": -1}),
    "as many classes as there may be": ([0, 2**31 - 2], (2**31 - 1,), {}),
    "binary bools": ([True, False], (None,), {}),
    "binary integers": (np.array([0, 1], np.int8), (None,), {}),
    "binary floats": ([0.0, 0.5, 1.0], (None,), {}),
    "binary floats but for rounding": (np.array([-0.0009, 1.0009], np.float32), (None,), {}),
    "bfloat16": (jnp.array([0.0, 1.0], jnp.bfloat16), (None,), {}),
    "binary integers ignored": (np.array([0, -1], np.int8), (None,), {"ignore_index": -1}),
    "binary floats ignored": ([0.0, 1.0, -1.0], (None,), {"ignore_index": -1}),
    "no binary ones": (np.zeros((0, 2), np.float32), (None,), {}),
}
TRACED_BAD = {
    "negative": "from -1 to -1",
    "too high": "from 3 to 3",
    "beyond ignore_index": "from -1 to -1",
    "4 bits": "from -1 to -1",
    "4 bits of jax": "from 9 to 9",
    "binary integers": "from -1 to 2",
    "binary floats": "from -0.25 to 1.5",
    "bfloat16": "from 1.00781",
    "NaN": "from nan to nan",
    "binary beyond ignore_index": "from -2.0 to -2.0",
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


def traced(labels, arguments, options):
    """The error of a check of traced labels."""

    @jax.jit
    @checkify.checkify
    def step(labels):
        jxent.check_labels(labels, *arguments, **options)
        return labels

    error, same = step(jnp.asarray(labels))
    np.testing.assert_array_equal(same, np.asarray(labels))
    return error


@pytest.mark.parametrize(("labels", "arguments", "options"), GOOD.values(), ids=GOOD)
def test_check_labels_passes_good_ones_that_are_traced(labels, arguments, options):
    assert traced(labels, arguments, options).get() is None


@pytest.mark.parametrize("name", TRACED_BAD)
def test_check_labels_of_traced_labels_is_a_checkify_check(name):
    labels, arguments, options, words = BAD[name]
    how_many = re.match(r"\d+ of \d+", words)[0]
    with pytest.raises(
        checkify.JaxRuntimeError, match=f"check_labels: {how_many} labels .*, ranging {TRACED_BAD[name]}"
    ):
        traced(labels, arguments, options).throw()


def test_check_labels_counts_traced_labels_beyond_int32():
    @jax.jit
    @checkify.checkify
    def step(label):
        jxent.check_labels(jnp.broadcast_to(label, (65536, 32768)), 3)

    with pytest.raises(checkify.JaxRuntimeError, match="check_labels: 2147483648 of 2147483648 labels are outside"):
        step(7)[0].throw()


@pytest.mark.parametrize("dtype", ["bool", "int8", "int32"])
def test_check_labels_raises_where_a_binary_loss_is_nan(dtype):
    """Whether each label is good, by itself."""
    for label in np.array([0, 1, 2, -1, 100]).astype(dtype):
        loss = jxent.sigmoid_binary_cross_entropy(np.float32(0.5), label)
        if np.isnan(loss):
            with pytest.raises(ValueError, match="1 of 1"):
                jxent.check_labels(label, None)
        else:
            jxent.check_labels(label, None)


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
