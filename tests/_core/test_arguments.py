"""The error table: every bad argument, the error it raises at trace time, and the words that tell how to mend the call."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent

softmax = jxent.softmax_cross_entropy
from_probs = jxent.cross_entropy_from_probs
from_log_probs = jxent.cross_entropy_from_log_probs
sigmoid = jxent.sigmoid_binary_cross_entropy
binary_probs = jxent.binary_cross_entropy_from_probs
MULTICLASS = {
    "softmax_cross_entropy: logits": softmax,
    "cross_entropy_from_probs: probs": from_probs,
    "cross_entropy_from_log_probs: log_probs": from_log_probs,
}
BINARY = {"sigmoid_binary_cross_entropy: logits": sigmoid, "binary_cross_entropy_from_probs: probs": binary_probs}
SOFTMAX_VARIANTS = {
    "softmax_focal_loss: logits": jxent.softmax_focal_loss,
    "poly1_cross_entropy: logits": jxent.poly1_cross_entropy,
}
SIGMOID_VARIANTS = {"sigmoid_focal_loss: logits": jxent.sigmoid_focal_loss}

x = np.full((4, 10), 0.5, np.float32)
ids = np.zeros(4, np.int32)
soft = np.full((4, 10), 0.1, np.float32)

# scores, labels, options, error, words of its message
MULTICLASS_TABLE = {
    "integer scores": (x.astype(np.int32), ids, {}, TypeError, "floating dtype; got int32; did you mean {}.astype"),
    "bool scores": (x > 0, ids, {}, TypeError, "floating dtype; got bool"),
    "complex scores": (x.astype(np.complex64), ids, {}, TypeError, "floating dtype; got complex64"),
    "text scores": ("logits", ids, {}, TypeError, "must be an array of numbers; got str 'logits'"),
    "no scores": (None, ids, {}, TypeError, "must be an array of numbers; got NoneType"),
    "scalar scores": (np.float32(1), np.int32(0), {}, ValueError, "axis=-1 is out of range for {} with shape ()"),
    "axis too high": (x, ids, {"axis": 2}, ValueError, "axis=2 is out of range for {} with shape (4, 10)"),
    "axis too low": (x, ids, {"axis": -3}, ValueError, "axis=-3 is out of range"),
    "axis not an integer": (x, ids, {"axis": 1.0}, TypeError, "axis must be a static integer; got 1.0 (float)"),
    "axis a bool": (x, ids, {"axis": True}, TypeError, "axis must be a static integer; got True (bool)"),
    "zero classes": (x[:, :0], ids, {}, ValueError, "shape (4, 0), which holds zero classes at axis=1"),
    "bool labels": (x, ids > 0, {}, TypeError, "labels has dtype bool; expected an integer dtype"),
    "bool labels of full shape": (x, x > 0, {}, TypeError, "labels has dtype bool"),
    "complex labels": (x, ids.astype(np.complex64), {}, TypeError, "labels has dtype complex64"),
    "key scores": (jax.random.key(0), ids, {}, TypeError, "floating dtype; got key<fry>"),
    "scores of differing shapes": ([x, x[:2]], ids, {}, TypeError, "got list whose parts differ in shape"),
    "scores and labels exchanged": (ids, x, {}, TypeError, "got int32|or are {} and labels swapped?"),
    "no labels": (x, None, {}, TypeError, "labels must be an array of numbers; got NoneType"),
    "key labels": (x, jax.random.key(0), {}, TypeError, "labels has dtype key<fry>; expected an integer dtype"),
    "a Mean for labels": (x, jxent.Mean(ids, ids), {}, TypeError, "got Mean; did you mean its .value()?"),
    "masked array": (
        x,
        np.ma.masked_array(ids, ids > 0),
        {},
        TypeError,
        "labels must be an array of numbers; got Mask",
    ),
    "class names": (x, list("abca"), {}, TypeError, "got list of text; for class names, np.unique(labels, return_inv"),
    "class names of NumPy": (x, np.array(list("abca")), {}, TypeError, "got ndarray of text|np.unique(labels"),
    "labels beyond 64 bits": (x, [2**70, 0, 0, 0], {}, TypeError, "labels must be|got list of integers beyond 64 bits"),
    "labels of objects": (x, ids.astype(object), {}, TypeError, "dtype object; did you mean np.asarray(labels, dtype"),
    "labels in one row": (x[None], ids, {}, ValueError, "expected (1, 4)|did you mean labels.reshape((1, 4))?"),
    "column of float ids": (x, x[:, :1], {}, ValueError, "did you mean labels.squeeze(-1).astype(jnp.int32)?"),
    "one-hot bools": (x, x > 0, {}, TypeError, "did you mean labels.astype(jnp.float32)?"),
    "images": (x.reshape(2, 5, 2, 2), np.zeros((2, 2, 2), int), {}, ValueError, "and axis=3; did you mean axis=1?"),
    "images of two": (x.reshape(2, 5, 4), np.zeros((2, 4), int), {}, ValueError, "and axis=2; did you mean axis=1?"),
    "images of as many as classes": (
        np.zeros((4, 4, 8, 8), np.float32),
        np.zeros((4, 8, 8), int),
        {},
        ValueError,
        "and axis=3; did you mean axis=1 or axis=0?",
    ),
    "column of ids": (x, ids[:, None], {}, ValueError, "labels has shape (4, 1)|expected (4,)|labels.squeeze(-1)?"),
    "one-hot integers": (x, soft.astype(np.int32), {}, ValueError, "(4, 10)|did you mean labels.astype(jnp.float32)?"),
    "float ids": (x, ids.astype(np.float32), {}, ValueError, "(4,)|did you mean labels.astype(jnp.int32)?"),
    "too few labels": (x, ids[:3], {}, ValueError, "labels has shape (3,)|expected (4,)"),
    "a scalar label": (x, np.int32(0), {}, ValueError, "labels has shape ()|expected (4,)"),
    "soft labels that would broadcast": (x, soft[:1], {}, ValueError, "labels has shape (1, 10)|(4, 10)"),
    "ids on the wrong axis": (x, np.zeros(10, np.int32), {}, ValueError, "(10,)|expected (4,)|did you mean axis=0?"),
    "class_weight of the wrong length": (x, ids, {"class_weight": np.ones(9)}, ValueError, "(9,); expected (10,)"),
    "class_weight of a wrong rank": (x, ids, {"class_weight": np.ones((4, 10))}, ValueError, "expected (10,)"),
    "class_weight a scalar": (x, ids, {"class_weight": 2.0}, ValueError, "class_weight has shape ()"),
    "class_weight bool": (x, ids, {"class_weight": np.ones(10, bool)}, TypeError, "class_weight must have|got bool"),
    "class_weight text": (x, ids, {"class_weight": "balanced"}, TypeError, "did you mean balanced_class_weights(class"),
    "class_weight a key": (x, ids, {"class_weight": jax.random.key(0)}, TypeError, "class_weight must have|key<fry>"),
    "class_weight a Mean": (x, ids, {"class_weight": jxent.Mean(x, x)}, TypeError, "got Mean; did you mean its .value"),
    "class_weight a dict": (x, ids, {"class_weight": {0: 1.0}}, TypeError, "got dict; did you mean a list of its val"),
    "sample_weight of the wrong length": (x, ids, {"sample_weight": np.ones(3)}, ValueError, "row shape (4,)"),
    "sample_weight of a wrong rank": (
        x,
        ids,
        {"sample_weight": np.ones((4, 1))},
        ValueError,
        "(4, 1)|row shape (4,)|.squeeze(-1)?",
    ),
    "sample_weight a scalar": (x, ids, {"sample_weight": 2.0}, ValueError, "sample_weight has shape ()"),
    "sample_weight bool": (
        x,
        ids,
        {"sample_weight": ids == 0},
        TypeError,
        "sample_weight must have|got bool|where=sample_weight?",
    ),
    "float mask": (x, ids, {"where": np.ones(4, np.float32)}, TypeError, "where must have dtype bool; got float32"),
    "integer mask": (x, ids, {"where": np.ones(4, np.int32)}, TypeError, "where must have dtype bool; got int32"),
    "integer list as mask": (x, ids, {"where": [1, 1, 0, 0]}, TypeError, "did you mean jnp.asarray(where) != 0?"),
    "key as mask": (x, ids, {"where": jax.random.split(jax.random.key(0), 4)}, TypeError, "dtype bool; got key<fry>"),
    "text as mask": (x, ids, {"where": "mask"}, TypeError, "where must be an array of bools; got str 'mask'"),
    "mask of the full shape": (x, ids, {"where": x > 0}, ValueError, "where has shape (4, 10); expected the row shape"),
    "mask of the wrong length": (x, ids, {"where": np.ones(3, bool)}, ValueError, "row shape (4,)"),
    "ignore_index a float": (x, ids, {"ignore_index": -100.0}, TypeError, "ignore_index must be a static integer"),
    "ignore_index a bool": (x, ids, {"ignore_index": False}, TypeError, "ignore_index must be a static integer"),
    "several ignore_index": (x, ids, {"ignore_index": (0, 1)}, TypeError, "got (0, 1) (tuple)|where=~jnp.isin(labels"),
    "ignore_index text": (x, ids, {"ignore_index": "-100"}, TypeError, "ignore_index must be a static integer"),
    "ignore_index with soft labels": (x, soft, {"ignore_index": 0}, ValueError, "mask rows with where instead"),
    "smoothing above 1": (x, ids, {"label_smoothing": 1.1}, ValueError, "label_smoothing must be in [0, 1]; got 1.1"),
    "smoothing below 0": (x, ids, {"label_smoothing": -0.1}, ValueError, "label_smoothing must be in [0, 1]"),
    "smoothing NaN": (x, ids, {"label_smoothing": np.nan}, ValueError, "label_smoothing must be in [0, 1]; got nan"),
    "smoothing of NumPy": (x, ids, {"label_smoothing": np.float32(2)}, ValueError, "label_smoothing must be in [0, 1]"),
    "smoothing of rank 0": (x, ids, {"label_smoothing": np.array(1.5)}, ValueError, "must be in [0, 1]; got 1.5"),
    "smoothing None": (x, ids, {"label_smoothing": None}, TypeError, "must be a number; got NoneType; leave it out"),
    "smoothing a bool": (x, ids, {"label_smoothing": True}, TypeError, "label_smoothing must have a floating"),
    "smoothing an array": (x, ids, {"label_smoothing": np.ones(4)}, ValueError, "must be a scalar|jax.vmap"),
    "smoothing text": (
        x,
        ids,
        {"label_smoothing": "0.1"},
        TypeError,
        "label_smoothing must be a number; got str '0.1'",
    ),
    "unknown reduction": (x, ids, {"reduction": "avg"}, ValueError, "'none', 'sum', 'mean', 'partial'; got 'avg'"),
    "reduction None": (x, ids, {"reduction": None}, ValueError, "'partial'; got None; did you mean 'none'?"),
    "reduction in capitals": (x, ids, {"reduction": "MEAN"}, ValueError, "got 'MEAN'; did you mean 'mean'?"),
    "reduction an array": (x, ids, {"reduction": x}, ValueError, "'partial'; got array("),
}
SOFTMAX_TABLE = {
    "z_loss an array": (x, ids, {"z_loss": np.ones(4)}, ValueError, "z_loss must be a scalar; got shape (4,)"),
    "z_loss NaN": (x, ids, {"z_loss": np.nan}, ValueError, "z_loss must be a number; got nan"),
    "z_loss beyond every integer": (x, ids, {"z_loss": 2**70}, TypeError, "z_loss must be a number; got int beyond 64"),
    "z_loss a bool": (x, ids, {"z_loss": True}, TypeError, "z_loss must have a floating or integer dtype; got bool"),
    "vocab_axis_name a list": (x, ids, {"vocab_axis_name": ["v"]}, ValueError, "a name, a tuple of names or None; got"),
    "vocab_axis_name empty": (x, ids, {"vocab_axis_name": ()}, ValueError, "a name, a tuple of names or None; got ()"),
    "vocab_axis_name an array": (x, ids, {"vocab_axis_name": ids}, ValueError, "a tuple of names or None; got array("),
    "vocab_axis_name of jax": (
        x,
        ids,
        {"vocab_axis_name": jnp.array(1)},
        ValueError,
        "a tuple of names or None; got Arr",
    ),
    "vocab_axis_name a key": (
        x,
        ids,
        {"vocab_axis_name": jax.random.key(0)},
        ValueError,
        "a tuple of names or None; got",
    ),
    "vocab_axis_name a dict": (
        x,
        ids,
        {"vocab_axis_name": {}},
        ValueError,
        "a tuple of names or None; got {{}} (dict)",
    ),
    "vocab_axis_name of lists": (
        x,
        ids,
        {"vocab_axis_name": (["v"],)},
        ValueError,
        "a tuple of names or None; got (['v",
    ),
    "vocab_axis_name 0": (x, ids, {"vocab_axis_name": 0}, ValueError, "there is no mapped axis 0 here"),
    "return_aux not a bool": (x, ids, {"return_aux": 1}, TypeError, "return_aux must be True or False; got 1 (int)"),
}
BINARY_TABLE = {
    "integer scores": (x.astype(np.int32), x, {}, TypeError, "floating dtype; got int32; did you mean {}.astype"),
    "labels one axis short": (x[:, :1], x[:, 0], {}, ValueError, "(4,)|(4, 1)|did you mean labels[..., None]?"),
    "labels one axis long": (x[:, 0], x[:, :1], {}, ValueError, "(4, 1)|(4,)|did you mean labels.squeeze(-1)?"),
    "labels that would broadcast": (x, x[:1], {}, ValueError, "labels has shape (1, 10); expected (4, 10)"),
    "class ids": (
        x,
        ids,
        {},
        ValueError,
        "for class ids, did you mean a multiclass loss, or jax.nn.one_hot(labels, 10)?",
    ),
    "text labels": (x, [["a"] * 10] * 4, {}, TypeError, "labels must be an array of numbers; got list of text"),
    "complex labels": (x, x.astype(np.complex64), {}, TypeError, "bool, integer or floating dtype; got complex64"),
    "no labels": (x, None, {}, TypeError, "labels must be an array of numbers"),
    "class_weight of two classes": (
        x,
        x,
        {"class_weight": [0.3, 0.7]},
        ValueError,
        "(2,)|not [w_neg, w_pos]|pos_weight",
    ),
    "class_weight a scalar": (x, x, {"class_weight": 2.0}, ValueError, "class_weight has shape ()|(10,)"),
    "class_weight without columns": (x[0, 0], x[0, 0], {"class_weight": 2.0}, ValueError, "no columns to weight"),
    "class_weight bool": (x, x, {"class_weight": np.ones(10, bool)}, TypeError, "class_weight must have|got bool"),
    "pos_weight of the wrong length": (x, x, {"pos_weight": np.ones(4)}, ValueError, "(4,); expected (10,)|or ()"),
    "pos_weight text": (x, x, {"pos_weight": "3"}, TypeError, "pos_weight must be an array of numbers"),
    "sample_weight a row": (x, x, {"sample_weight": np.ones(4)}, ValueError, "sample_weight has shape (4,)|(4, 10)"),
    "float mask": (x, x, {"where": x}, TypeError, "where must have dtype bool; got float32"),
    "mask a row": (
        x,
        x,
        {"where": ids == 0},
        ValueError,
        "where has shape (4,)|for one per row, did you mean where[..., None]?",
    ),
    "smoothing above 1": (x, x, {"label_smoothing": 2}, ValueError, "label_smoothing must be in [0, 1]; got 2"),
    "unknown reduction": (x, x, {"reduction": "batch"}, ValueError, "'none', 'sum', 'mean', 'partial'; got 'batch'"),
}
k = np.full((10, 7), 0.5, np.float32)
# hidden, kernel, labels, options, error, words of its message
LINEAR_TABLE = {
    "integer hidden": (ids[:, None], k, ids, {}, TypeError, "hidden must have a floating dtype; got int32"),
    "scalar hidden": (np.float32(1), k, ids, {}, ValueError, "hidden has shape (); expected (..., D)"),
    "integer kernel": (x, k > 0, ids, {}, TypeError, "kernel must have a floating dtype; got bool"),
    "kernel the other way": (x, k.T, ids, {}, ValueError, "(7, 10); expected (10, V)|pass transpose_kernel=True"),
    "kernel not transposed": (
        x,
        k,
        ids,
        {"transpose_kernel": True},
        ValueError,
        "(10, 7); expected (V, 10)|pass transpose_kernel=False",
    ),
    "kernel of another depth": (x, k[:9], ids, {}, ValueError, "(9, 7); expected (10, V), to go with hidden"),
    "kernel a vector": (x, k[:, 0], ids, {}, ValueError, "kernel has shape (10,); expected (10, V)"),
    "zero classes": (x, k[:, :0], ids, {}, ValueError, "kernel has shape (10, 0), which holds zero classes"),
    "transpose_kernel not a bool": (
        x,
        k,
        ids,
        {"transpose_kernel": 1},
        TypeError,
        "must be True or False; got 1 (int)",
    ),
    "column of ids": (x, k, ids[:, None], {}, ValueError, "labels has shape (4, 1)|expected (4,)|labels.squeeze(-1)?"),
    "soft labels of the depth": (x, k, soft, {}, ValueError, "(4, 10)|(4, 7)|hidden @ kernel of shape (4, 7)"),
    "bool labels": (x, k, ids > 0, {}, TypeError, "labels has dtype bool"),
    "bias of the depth": (x, k, ids, {"bias": np.ones(10)}, ValueError, "bias has shape (10,); expected (7,)"),
    "class_weight of the depth": (x, k, ids, {"class_weight": np.ones(10)}, ValueError, "(10,); expected (7,)"),
    "sample_weight a column": (x, k, ids, {"sample_weight": x[:, :1]}, ValueError, "(4, 1)|row shape (4,)"),
    "float mask": (x, k, ids, {"where": x[:, 0]}, TypeError, "where must have dtype bool; got float32"),
    "softcap of 0": (x, k, ids, {"logit_softcap": 0}, ValueError, "logit_softcap must be above 0, or None"),
    "softcap below 0": (x, k, ids, {"logit_softcap": -30.0}, ValueError, "must be above 0|got -30.0"),
    "softcap below every float": (x, k, ids, {"logit_softcap": 1e-60}, ValueError, "must be above 0|got 1e-60"),
    "softcap of rank 0": (x, k, ids, {"logit_softcap": np.array(-30.0)}, ValueError, "must be above 0|got -30.0"),
    "softcap NaN": (x, k, ids, {"logit_softcap": np.nan}, ValueError, "logit_softcap must be above 0"),
    "softcap an array": (x, k, ids, {"logit_softcap": np.ones(7)}, ValueError, "logit_softcap must be a scalar"),
    "softcap a bool": (x, k, ids, {"logit_softcap": True}, TypeError, "logit_softcap must have a floating|got bool"),
    "z_loss NaN": (x, k, ids, {"z_loss": np.nan}, ValueError, "z_loss must be a number; got nan"),
    "smoothing above 1": (x, k, ids, {"label_smoothing": 2}, ValueError, "label_smoothing must be in [0, 1]; got 2"),
    "ignore_index with soft labels": (x, k, k[:4], {"ignore_index": 0}, ValueError, "mask rows with where instead"),
    "chunk_size of 0": (x, k, ids, {"chunk_size": 0}, ValueError, "chunk_size must be at least 1, or None|got 0"),
    "chunk_size a float": (x, k, ids, {"chunk_size": 2.0}, TypeError, "chunk_size must be a static integer; got 2.0"),
    "unknown precision": (x, k, ids, {"precision": "best"}, ValueError, "precision must be None, 'default'|got 'best'"),
    "unknown reduction": (x, k, ids, {"reduction": "avg"}, ValueError, "'none', 'sum', 'mean', 'partial'; got 'avg'"),
    "return_aux not a bool": (x, k, ids, {"return_aux": 1}, TypeError, "return_aux must be True or False; got 1 (int)"),
    "vocab_axis_name outside": (x, k, ids, {"vocab_axis_name": "v"}, ValueError, "no mapped axis 'v' here|shard_map"),
}
# ids, options, error, words of its message; of logits, and of hidden states and a kernel.
IDS_TABLE = {
    "float ids": (x[:, 0], {}, TypeError, "ids must have an integer dtype (class ids); got float32"),
    "bool ids": (ids > 0, {}, TypeError, "ids must have an integer dtype (class ids); got bool"),
    "a distribution": (x, {}, TypeError, "ids must have an integer dtype (class ids); got float32"),
    "ids of too few rows": (
        ids[:3],
        {},
        ValueError,
        "ids has shape (3,); expected the row shape (4,), or (4, 'K') for K ids",
    ),
    "ids of one row for all": (ids[None], {}, ValueError, "ids has shape (1, 4); expected the row shape (4,)"),
    "ids of too many axes": (
        ids[:, None, None],
        {},
        ValueError,
        "ids has shape (4, 1, 1); expected the row shape (4,)",
    ),
    "float mask": (ids, {"where": x[:, 0]}, TypeError, "where must have dtype bool; got float32"),
    "mask of each id": (ids[:, None], {"where": ids[:, None] > 0}, ValueError, "where has shape (4, 1)"),
    "ignore_index a float": (ids, {"ignore_index": 1.0}, TypeError, "ignore_index must be a static integer"),
    "scale an array": (ids, {"logit_scale": np.ones(4)}, ValueError, "logit_scale must be a scalar; got shape (4,)"),
    "scale text": (ids, {"logit_scale": "1"}, TypeError, "logit_scale must be"),
    "scale NaN": (ids, {"logit_scale": np.nan}, ValueError, "logit_scale must be"),
    "return_entropy not a bool": (ids, {"return_entropy": 1}, TypeError, "return_entropy must be True or False"),
    "vocab_axis_name outside": (ids, {"vocab_axis_name": "v"}, ValueError, "no mapped axis 'v' here|shard_map"),
}
FOCAL_TABLE = {
    "gamma below 0": (x, x, {"gamma": -1}, ValueError, "gamma must be at least 0; got -1"),
    "gamma NaN": (x, x, {"gamma": np.nan}, ValueError, "gamma must be at least 0; got nan"),
    "gamma an array": (x, x, {"gamma": np.ones(4)}, ValueError, "gamma must be a scalar; got shape (4,)|jax.vmap"),
    "gamma None": (x, x, {"gamma": None}, TypeError, "gamma must be a number; got NoneType; leave it out"),
    "epsilon NaN": (x, x, {"epsilon": np.nan}, ValueError, "epsilon must be a number; got nan"),
    "alpha above 1": (x, x, {"alpha": 2}, ValueError, "alpha must be in [0, 1]; got 2"),
    "alpha below 0": (x, x, {"alpha": -1.0}, ValueError, "alpha must be in [0, 1]; got -1.0"),
    "alpha of the wrong length": (
        x,
        x,
        {"alpha": np.ones(4)},
        ValueError,
        "alpha has shape (4,); expected (10,)|or ()",
    ),
}
MEAN_TABLE = {
    "values text": ("v", {}, TypeError, "weighted_mean: values must be an array of numbers"),
    "values complex": (x.astype(np.complex64), {}, TypeError, "weighted_mean: values must have a floating dtype"),
    "float mask": (x, {"where": x}, TypeError, "weighted_mean: where must have dtype bool"),
    "mask of a wrong shape": (x, {"where": ids == 0}, ValueError, "weighted_mean: where has shape (4,)"),
    "weights of a wrong shape": (x, {"sample_weight": np.ones(10)}, ValueError, "sample_weight has shape (10,)"),
    "axis out of range": (x, {"axis": 2}, ValueError, "weighted_mean: axis=2 is out of range for values"),
    "weights a column's": (x, {"sample_weight": np.ones(10)}, ValueError, "did you mean sample_weight[None]?"),
    "empty None": (x, {"empty": None}, TypeError, "empty must be a number; got NoneType; leave it out"),
    "empty text": (x, {"empty": "nan"}, TypeError, "empty must be a number; got str 'nan'"),
    "empty an array": (x, {"empty": x}, ValueError, "empty must be a scalar; got shape (4, 10)"),
    "axis twice": (x, {"axis": (0, -2)}, ValueError, "axis=(0, -2) names an axis of values twice"),
    "axis a float": (x, {"axis": 0.0}, TypeError, "weighted_mean: axis must be a static integer"),
    "a Mean": (
        jxent.Mean(x, x),
        {},
        TypeError,
        "values must be an array of numbers; got Mean; did you mean its .value()?",
    ),
    "Means": ([jxent.Mean(x, x)] * 2, {}, TypeError, "values must be an array of numbers; got list of Mean"),
    "an aux": (
        jxent.CrossEntropyAux(x, x, x, x),
        {},
        TypeError,
        "values must be an array of numbers; got CrossEntropyAux",
    ),
}

HELPERS_TABLE = {
    "float labels": (
        lambda: jxent.class_counts([0.0], 2),
        TypeError,
        "class_counts: labels must have an integer dtype",
    ),
    "bool labels": (lambda: jxent.class_counts([True], 2), TypeError, "integer dtype (class ids); got bool"),
    "no classes": (lambda: jxent.class_counts([0], 0), ValueError, "num_classes must be at least 1; got 0"),
    "num_classes beyond int32": (
        lambda: jxent.class_counts([0], 10**30),
        ValueError,
        "num_classes must be below 2**31, as ids are int32; got 1000000000000000000000000000000",
    ),
    "too many classes to check": (
        lambda: jxent.check_labels([0], 2**31),
        ValueError,
        "num_classes must be below 2**31",
    ),
    "keys to count": (lambda: jxent.class_counts(jax.random.key(0), 2), TypeError, "(class ids); got key<fry>"),
    "keys to check": (
        lambda: jxent.check_labels(jax.random.key(0), 2),
        TypeError,
        "an array of numbers; got PRNGKeyArray",
    ),
    "a Mean to check": (lambda: jxent.check_labels(jxent.Mean(1, 2), 2), TypeError, "an array of numbers; got Mean"),
    "float num_classes": (lambda: jxent.class_counts([0], 2.0), TypeError, "num_classes must be a static integer"),
    "float mask": (lambda: jxent.class_counts([0], 2, where=[1.0]), TypeError, "where must have dtype bool"),
    "mask too long": (lambda: jxent.class_counts([0], 2, where=[True, False]), ValueError, "where has shape (2,)"),
    "counts of rank 2": (lambda: jxent.balanced_class_weights([[1, 2]]), ValueError, "counts has shape (1, 2)"),
    "bool counts": (lambda: jxent.balanced_class_weights([True]), TypeError, "counts must have a floating or integer"),
    "beta above 1": (lambda: jxent.effective_number_weights([1], beta=1.1), ValueError, "beta must be in [0, 1]; got"),
    "beta an array": (
        lambda: jxent.effective_number_weights([1], beta=np.ones(2)),
        ValueError,
        "beta must be a scalar",
    ),
    "beta a bool": (lambda: jxent.effective_number_weights([1], beta=True), TypeError, "beta must have a floating"),
    "tau below 0": (lambda: jxent.log_prior_adjustment([1], tau=-1), ValueError, "tau must be at least 0; got -1"),
    "float labels to check": (
        lambda: jxent.check_labels([0.0], 2),
        TypeError,
        "check_labels: labels must have an integer dtype",
    ),
    "binary labels to check": (
        lambda: jxent.check_labels([True], 2),
        TypeError,
        "got bool; for binary labels pass num_classes=None",
    ),
    "complex labels to check": (
        lambda: jxent.check_labels([1j], None),
        TypeError,
        "check_labels: labels must have a bool, integer or floating dtype; got complex128",
    ),
    "traced float labels": (lambda: jax.eval_shape(lambda y: jxent.check_labels(y, 2), x), TypeError, "got float32"),
    "ragged labels": (
        lambda: jxent.check_labels([[0], [0, 1]], 2),
        TypeError,
        "labels must be an array of numbers; got list whose parts differ in shape",
    ),
    "text labels": (
        lambda: jxent.check_labels(["cat"], 2),
        TypeError,
        "labels must be an array of numbers; got list of text; for",
    ),
    "labels beyond 64 bits": (lambda: jxent.check_labels([2**70], 2), TypeError, "list of integers beyond 64 bits"),
    "no labels to check": (lambda: jxent.check_labels(None, 2), TypeError, "an array of numbers; got NoneType"),
    "empty text": (lambda: jxent.Mean(x[0], x[0]).value("nan"), TypeError, "Mean.value: empty must be a number; got"),
    "no axis to add over": (
        lambda: jxent.Mean(x[0], x[0]).psum("v"),
        ValueError,
        "Mean.psum: there is no mapped axis 'v'",
    ),
    "Mean times a number": (lambda: jxent.Mean(1.0, 2.0) * 2, TypeError, "Mean: cannot be multiplied by int"),
    "a number times Mean": (lambda: 2 * jxent.Mean(1.0, 2.0), TypeError, "Mean: cannot be multiplied by int"),
    "no classes to check": (
        lambda: jxent.check_labels([0], -1),
        ValueError,
        "check_labels: num_classes must be at least 1",
    ),
    "float ignore_index": (
        lambda: jxent.check_labels([0], 2, ignore_index=0.5),
        TypeError,
        "ignore_index must be a static",
    ),
}


def is_short(message):
    """Two or three lines of a terminal, in words of this library."""
    return len(message) < 360 and "\n" not in message and "JAX" not in message


def table(functions, rows):
    """Each function with each row whose options it has."""
    return [
        pytest.param(fn, prefix, *row, id=f"{fn.__name__}-{name}")
        for prefix, fn in functions.items()
        for name, row in rows.items()
        if row[2].keys() <= inspect.signature(fn).parameters.keys()
    ]


CASES = table(MULTICLASS, MULTICLASS_TABLE) + table(BINARY, BINARY_TABLE)
CASES += table(MULTICLASS, SOFTMAX_TABLE)
CASES += table(SOFTMAX_VARIANTS, MULTICLASS_TABLE | FOCAL_TABLE) + table(SIGMOID_VARIANTS, BINARY_TABLE | FOCAL_TABLE)


@pytest.mark.parametrize(("fn", "prefix", "scores", "labels", "options", "error", "words"), CASES)
def test_bad_argument_is_named(fn, prefix, scores, labels, options, error, words):
    name, scores_name = prefix.split(": ")
    with pytest.raises(error) as raised:
        fn(scores, labels, **options)
    message = str(raised.value)
    assert message.startswith(f"{name}: ")
    assert is_short(message)
    for word in words.format(scores_name).split("|"):
        assert word in message, message


@pytest.mark.parametrize(
    ("hidden", "kernel", "labels", "options", "error", "words"), LINEAR_TABLE.values(), ids=LINEAR_TABLE
)
def test_linear_bad_argument_is_named(hidden, kernel, labels, options, error, words):
    with pytest.raises(error) as raised:
        jxent.linear_softmax_cross_entropy(hidden, kernel, labels, **options)
    message = str(raised.value)
    assert message.startswith("linear_softmax_cross_entropy: ")
    assert is_short(message)
    for word in words.split("|"):
        assert word in message, message


@pytest.mark.parametrize("fused", [False, True], ids=["softmax", "linear_softmax"])
@pytest.mark.parametrize(("labels", "options", "error", "words"), IDS_TABLE.values(), ids=IDS_TABLE)
def test_log_probs_bad_argument_is_named(fused, labels, options, error, words):
    fn, scores = (jxent.linear_softmax_log_probs, (x, k)) if fused else (jxent.softmax_log_probs, (x,))
    with pytest.raises(error) as raised:
        fn(*scores, labels, **options)
    message = str(raised.value)
    assert message.startswith(f"{fn.__name__}: ")
    assert is_short(message)
    for word in words.split("|"):
        assert word in message, message


@pytest.mark.parametrize(("values", "options", "error", "words"), MEAN_TABLE.values(), ids=MEAN_TABLE)
def test_weighted_mean_bad_argument_is_named(values, options, error, words):
    with pytest.raises(error, match=re.escape(words)):
        jxent.weighted_mean(values, **options)


@pytest.mark.parametrize(("call", "error", "words"), HELPERS_TABLE.values(), ids=HELPERS_TABLE)
def test_helpers_bad_argument_is_named(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()


def test_ignore_index_tracer_is_named():
    with pytest.raises(
        TypeError, match=r"ignore_index must be a static integer; got a traced value \(int32\[\]\).*static_argnames"
    ):
        jax.jit(lambda i: softmax(x, ids, ignore_index=i))(3)


def test_long_values_are_shortened():
    with pytest.raises(TypeError) as raised:
        softmax(x, ids, ignore_index=np.arange(3000))
    assert is_short(str(raised.value))
    with pytest.raises(ValueError, match=r"got 'x{56}\.\.\.$"):
        softmax(x, ids, reduction="x" * 3000)


def test_errors_come_at_trace_time():
    with pytest.raises(ValueError, match="labels has shape"):
        jax.eval_shape(softmax, jnp.zeros((4, 10)), jnp.zeros((4, 1), jnp.int32))


@pytest.mark.parametrize("other", [1, 2.0, (1.0, 2.0), [1.0], jnp.zeros(2), None], ids=str)
def test_mean_adds_means_only(other):
    mean = softmax(x, ids, reduction="partial")
    with pytest.raises(TypeError, match="Mean: can add another Mean or 0"):
        mean + other


def test_mean_is_not_concatenated():
    mean = softmax(x, ids, reduction="partial")
    with pytest.raises(TypeError, match="Mean: can add another Mean or 0; got tuple"):
        (1.0, 2.0) + mean  # noqa: RUF005


@pytest.mark.parametrize("fn", MULTICLASS.values())
def test_lists_are_accepted(fn):
    scores, labels = [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], [0, 2]
    options = {"class_weight": [1, 2, 3], "sample_weight": [1.0, 2.0], "where": [True, True]}
    arrays = {name: np.asarray(value) for name, value in options.items()}
    expected = fn(np.asarray(scores, np.float32), np.asarray(labels, np.int64), **arrays)
    np.testing.assert_array_equal(fn(scores, labels, **options), expected)
    assert expected.dtype == jnp.float32


def entries(array):
    return [np.array(entry) for entry in array]


def beside_one_of_jax(array):
    return [jnp.asarray(array[0]), *array[1:]]


def made_under_x64(array):
    with jax.enable_x64(True):
        return jnp.asarray(array)


# How 64-bit integers may come.
FORMS = {
    "array": np.asarray,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "list": np.ndarray.tolist,
    "list of scalars": list,
    "list of arrays": entries,
    "beside one of jax": beside_one_of_jax,
    "made under x64": made_under_x64,
    "buffer": memoryview,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("ignored", [None, -(2**63), 2**63 - 1, 2**40, -(2**31), 2**31 - 1, 3])
def test_wide_ids_are_the_ids_they_are(form, ignored):
    """Bad ones, whatever their last 32 bits are, but for the one that is ignored; here and for torch."""
    ids = np.array([0, 2**32, -(2**63), 2**63 - 1, 2**40, -(2**31), 2**31 - 1, 1])
    want = np.where(ids == ignored, 0, np.where((ids == 0) | (ids == 1), np.log(2), np.nan))
    zeros, given = np.zeros((8, 2), np.float32), form(ids)
    np.testing.assert_allclose(softmax(zeros, given, ignore_index=ignored), want, rtol=1e-6)
    assert np.isnan(jxent.class_counts(given, 2)).all()
    bad = np.flatnonzero(np.isnan(want))[0]
    with pytest.raises(ValueError, match=re.escape(f"labels[{bad}] = {ids[bad]}, ")):
        jxent.check_labels(given, 2, ignore_index=ignored)
    for fn in (jxent.torch_compat.cross_entropy, jxent.torch_compat.nll_loss):
        with pytest.raises(IndexError, match=re.escape(f"target is {ids[bad]} at ({bad},)")):
            fn(zeros, given, ignore_index=-100 if ignored is None else ignored)


def test_wide_ids_beside_a_tracer():
    def rows(first):
        return softmax(np.zeros((4, 2), np.float32), [first, np.int64(2**32), 2**40, -(2**63)], ignore_index=2**40)

    np.testing.assert_allclose(jax.jit(rows)(1), [np.log(2), np.nan, 0, np.nan], rtol=1e-6)


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">f2"])
def test_big_endian_arrays_are_the_numbers_they_are(dtype, rng):
    logits, labels, weight = rng.normal(size=(4, 3)), rng.integers(3, size=4), rng.uniform(1, 2, 4)
    got = softmax(logits.astype(dtype), labels.astype(">i2"), sample_weight=weight.astype(">f8"))
    want = softmax(logits.astype(dtype[1:]), labels, sample_weight=weight)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(
        jxent.weighted_mean([weight.astype(dtype)]), jxent.weighted_mean(weight.astype(dtype[1:]))
    )


@pytest.mark.parametrize("form", sorted(FORMS.keys() - {"beside one of jax"}))
@pytest.mark.parametrize("x64", [False, True])
def test_wide_integers_are_the_numbers_they_are(form, x64):
    """Without x64, jax has no integers beyond 32 bits: it would wrap those of NumPy and refuse those of Python."""
    wide = FORMS[form](np.array([20_000_000_000, 5_000_000_000]))
    zeros = np.zeros((2, 2), np.float32)
    with jax.enable_x64(x64):
        per_class = softmax(zeros, [0, 1], class_weight=wide)
        np.testing.assert_allclose(per_class, np.log(2) * np.asarray(wide), rtol=1e-6)
        per_row = softmax(zeros, [0, 1], sample_weight=wide, reduction="partial").weight
        np.testing.assert_allclose(per_row, 25e9, rtol=1e-6)
        np.testing.assert_allclose(softmax(zeros, [0, 1], z_loss=2**40), np.log(2) + 2**40 * np.log(2) ** 2, rtol=1e-6)
        np.testing.assert_allclose(jxent.weighted_mean(wide), 12.5e9, rtol=1e-6)
        np.testing.assert_allclose(jxent.balanced_class_weights(wide), [0.625, 2.5], rtol=1e-6)
        np.testing.assert_array_equal(np.isnan(softmax(zeros, wide)), [True, True])
        np.testing.assert_array_equal(softmax(zeros, wide, where=[False, False]), [0, 0])
