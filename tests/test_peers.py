"""The cells of docs/beside-others.md that are marked with a dagger, against the packages themselves."""

import importlib.util
import inspect
import os
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jxent

for _name in ("torch", "keras"):
    if importlib.util.find_spec(_name) is None:
        pytest.skip(f"parity extra: {_name} is not installed", allow_module_level=True)

os.environ["KERAS_BACKEND"] = "jax"
import keras  # noqa: E402
import torch  # noqa: E402
from torch.nn import LinearCrossEntropyOptions  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "beside-others.md").read_text(encoding="utf-8")
FROM_LOGITS, FUSED_IN_TORCH = "| | jxent | optax |", "| | jxent | torch | Liger Kernel |"

optax_ids = optax.softmax_cross_entropy_with_integer_labels
keras_ids = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)

CONFIDENT, LABEL = np.array([[20.0, 0.0, 0.0]], np.float32), np.array([0])
LOGITS = np.array([[1.0, 2.0, 3.0]], np.float32)
# The first row holds NaN and does not count.
WITH_NAN, LABELS, MASK = np.array([[np.nan, 0, 1], [0, 1, 2]], np.float32), np.array([0, 2]), np.array([False, True])


def with_slope(loss, logits=CONFIDENT):
    """The loss, and its gradient."""
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(loss(x)))(jnp.asarray(logits))
    return float(value), np.asarray(gradient)


def torch_with_slope(logits, labels, **options):
    x = torch.tensor(logits, requires_grad=True)
    loss = F.cross_entropy(x, torch.tensor(labels), **options)
    loss.backward()
    return loss.item(), x.grad.numpy()


def rows(title, table=FROM_LOGITS):
    """The cells of a row of a table, named by its head: jxent, optax, torch, Keras, tokamax."""
    (lines,) = (part.splitlines() for part in TEXT.split("\n\n") if part.startswith(table))
    (line,) = (line for line in lines if line.startswith(f"| {title}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_table_is_about_the_releases_that_are_tested():
    for package in ("optax", "torch", "Keras"):
        assert f"{package} {version(package.lower()).split('+')[0]}" in TEXT


def test_confident_rows():
    assert rows("loss and slope of `[20, 0, 0]`")[:4] == ["4.1e-09, −4.1e-09", "0, 0", "0, 0", "0, 0"]
    loss, gradient = with_slope(lambda x: jxent.softmax_cross_entropy(x, LABEL))
    np.testing.assert_allclose([loss, gradient[0, 0]], [4.1223e-09, -4.1223e-09], rtol=1e-4)
    for found, slope in (
        with_slope(lambda x: optax_ids(x, LABEL)),
        torch_with_slope(CONFIDENT, LABEL),
        with_slope(lambda x: keras_ids(LABEL, x)),
    ):
        assert found == slope[0, 0] == 0


def test_a_label_of_minus_one():
    assert rows("label −1 that nothing masks")[:4] == ["NaN", "the last class", "an error", "a loss of 0"]
    bad = np.array([-1])
    assert np.isnan(jxent.softmax_cross_entropy(LOGITS, bad)[0])
    assert optax_ids(LOGITS, bad)[0] == optax_ids(LOGITS, np.array([2]))[0]
    with pytest.raises(IndexError):
        F.cross_entropy(torch.tensor(LOGITS), torch.tensor(bad))
    assert float(keras_ids(bad, jnp.asarray(LOGITS))[0]) == 0


@pytest.mark.slow
def test_nan_in_a_masked_row():
    of_keras = "in the gradient (`sample_weight`), stays there (`ignore_class`)"
    assert rows("NaN in a masked row")[:4] == ["stays there", "in the gradient", "in the gradient", of_keras]
    _, ours = with_slope(lambda x: jxent.softmax_cross_entropy(x, LABELS, where=MASK), WITH_NAN)
    assert np.all(ours[0] == 0)
    _, theirs = with_slope(lambda x: jnp.where(MASK, optax_ids(x, LABELS), 0), WITH_NAN)
    assert np.all(np.isnan(theirs[0]))
    _, theirs = torch_with_slope(WITH_NAN, np.where(MASK, LABELS, -100))
    assert np.all(np.isnan(theirs[0]))
    mean = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    _, theirs = with_slope(lambda x: mean(LABELS, x, sample_weight=MASK.astype(np.float32)), WITH_NAN)
    assert np.all(np.isnan(theirs[0]))
    mean = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100)
    _, theirs = with_slope(lambda x: mean(np.where(MASK, LABELS, -100), x), WITH_NAN)
    assert np.all(theirs[0] == 0)


def test_binary_labels_of_another_rank():
    assert rows("labels (4,)")[:4] == ["an error", "broadcast to (4, 4)", "an error", "taken as (4, 1)"]
    logits, labels = np.zeros((4, 1), np.float32), np.zeros(4, np.float32)
    with pytest.raises(ValueError, match=r"labels\[..., None\]"):
        jxent.sigmoid_binary_cross_entropy(logits, labels)
    with jax.numpy_rank_promotion("allow"):
        assert optax.sigmoid_binary_cross_entropy(logits, labels).shape == (4, 4)
        loss = keras.losses.BinaryCrossentropy(from_logits=True, reduction=None)(labels, logits)
    assert loss.shape == (4,)
    with pytest.raises(ValueError, match="size"):
        F.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(labels))


def test_dtype_of_the_loss_of_bfloat16_logits():
    assert rows("loss of bfloat16 logits")[:4] == ["float32", "bfloat16", "bfloat16", "float32"]
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    assert jxent.softmax_cross_entropy(logits, LABEL).dtype == jnp.float32
    assert optax_ids(logits, LABEL).dtype == jnp.bfloat16
    assert F.cross_entropy(torch.tensor(LOGITS).bfloat16(), torch.tensor(LABEL)).dtype == torch.bfloat16
    assert keras_ids(LABEL, logits).dtype == jnp.float32


def test_mean_of_nothing():
    assert rows("mean of nothing")[:4] == ["0", "–", "NaN", "0"]
    ignored = np.array([-100])
    assert jxent.softmax_cross_entropy(LOGITS, ignored, ignore_index=-100, reduction="mean") == 0
    assert torch.isnan(F.cross_entropy(torch.tensor(LOGITS), torch.tensor(ignored)))
    assert keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100)(ignored, LOGITS) == 0


def test_class_weights_and_smoothing_of_ids():
    assert rows("class weights, in the mean's")[:4] == ["yes", "no", "yes", "no"]
    assert rows("ids with label smoothing")[:4] == ["yes", "one-hot only", "yes", "one-hot only"]
    logits, labels = np.float32([[1, 2, 3], [3, 1, 0]]), np.array([0, 1])
    options = {"class_weight": np.float32([1, 2, 4]), "label_smoothing": 0.1}
    ours = jxent.softmax_cross_entropy(logits, labels, reduction="mean", **options)
    theirs = F.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), torch.tensor(options["class_weight"]), label_smoothing=0.1
    )
    np.testing.assert_allclose(float(ours), theirs.item(), rtol=1e-6)
    # The whole of what theirs take.
    assert set(inspect.signature(optax_ids).parameters) == {"logits", "labels", "axis", "where"}
    keras_takes = {"self", "from_logits", "ignore_class", "reduction", "axis", "name", "dtype"}
    assert set(inspect.signature(keras.losses.SparseCategoricalCrossentropy.__init__).parameters) == keras_takes


def test_class_axis_split_over_an_explicit_mesh_axis():
    assert rows("class axis split over Explicit")[:2] == ["yes", "an error in the gradient †"]
    mesh = jax.make_mesh((2,), ("classes",))
    with jax.set_mesh(mesh):
        logits = jax.device_put(jnp.ones((4, 6)), NamedSharding(mesh, P(None, "classes")))
        labels = jnp.zeros(4, jnp.int32)
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(jxent.softmax_cross_entropy(x, labels))))(logits)
        assert gradient.sharding.spec == P(None, "classes")
        with pytest.raises(Exception, match="out sharding could not be resolved"):
            jax.jit(jax.grad(lambda x: jnp.sum(optax_ids(x, labels))))(logits)


def fused_of_torch(hidden, labels=None, kernel=None, **options):
    """torch's loss from hidden states, in chunks of two rows, by tensors."""
    chunks = LinearCrossEntropyOptions(batch_chunk_size=2)
    labels = torch.tensor([0, 1, 2, 0, 1, 2]) if labels is None else labels
    kernel = KERNEL if kernel is None else kernel
    return F.linear_cross_entropy(hidden, kernel.to(hidden.dtype), labels, options=chunks, **options)


HIDDEN, KERNEL = torch.linspace(-1, 1, 24).reshape(6, 4), torch.linspace(0, 3, 20).reshape(5, 4).sin()


def fused_row(title):
    return rows(title, FUSED_IN_TORCH)[:2]


def test_torch_fused_class_weights_and_dtype():
    assert fused_row("class weights") == ["yes", "yes †"]
    assert fused_row("loss of bfloat16 hidden states") == ["float32", "bfloat16 †"]
    weight, labels = torch.tensor([1.0, 2, 4, 1, 3]), torch.tensor([0, 1, 2, 0, 1, 2])
    found = fused_of_torch(HIDDEN, weight=weight)
    arguments = HIDDEN.numpy(), KERNEL.numpy().T, labels.numpy()
    ours = jxent.linear_softmax_cross_entropy(*arguments, class_weight=weight.numpy(), reduction="mean")
    np.testing.assert_allclose(found.item(), float(ours), rtol=1e-6)
    assert fused_of_torch(HIDDEN.bfloat16()).dtype == torch.bfloat16
    hidden = jnp.asarray(arguments[0], jnp.bfloat16)
    assert jxent.linear_softmax_cross_entropy(hidden, *arguments[1:]).dtype == jnp.float32


def test_torch_fused_what_takes_the_whole_logits():
    assert fused_row("label smoothing") == ["yes", "takes the whole logits †"]
    assert fused_row("soft labels")[1].startswith("takes the whole logits †")
    with pytest.warns(UserWarning, match="``options`` ignored"):
        fused_of_torch(HIDDEN, label_smoothing=0.1)
    with pytest.warns(UserWarning, match="``options`` ignored"):
        fused_of_torch(HIDDEN, torch.full((6, 5), 0.2))


def test_torch_fused_bad_ids_and_masked_rows():
    assert fused_row("an id of −1") == ["NaN", "an error †"]
    assert fused_row("NaN in the hidden state") == ["stays there", "in the loss and all gradients †"]
    with pytest.raises(RuntimeError, match="out of bounds"):
        fused_of_torch(HIDDEN, torch.tensor([-1, 1, 2, 0, 1, 2]))
    hidden, kernel = HIDDEN.clone(), KERNEL.clone().requires_grad_()
    hidden[0] = torch.nan
    hidden.requires_grad_()
    labels = torch.tensor([-100, 1, 2, 0, 1, 2])
    loss = fused_of_torch(hidden, labels, kernel)
    loss.backward()
    assert loss.isnan()
    assert hidden.grad.isnan().any()
    assert kernel.grad.isnan().any()
    arguments = hidden.detach().numpy(), KERNEL.numpy().T

    def ours(hidden, kernel):
        return jxent.linear_softmax_cross_entropy(hidden, kernel, labels.numpy(), ignore_index=-100, reduction="mean")

    value, gradients = jax.value_and_grad(ours, (0, 1))(*map(jnp.asarray, arguments))
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_torch_fused_second_order():
    assert fused_row("second order") == ["yes", "no †"]
    hidden, kernel = HIDDEN.clone().requires_grad_(), KERNEL.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(fused_of_torch(hidden, kernel=kernel), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(gradient.sum(), kernel)
