"""docs/recipes.md: the lines of each recipe, against a formula of what the function that they replace computes."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
B, T, D, V = 3, 6, 8, 11
LENGTHS = np.array([6, 2, 4])
MASK = np.arange(T) < LENGTHS[:, None]


def recipe(title):
    """What the code of one section defines."""
    (section,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    names = {"jax": jax, "jnp": jnp, "jxent": jxent}
    for block in re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        exec(block, names)
    return SimpleNamespace(**names)


@pytest.fixture
def a():
    rng = np.random.default_rng(0)
    return SimpleNamespace(
        logits=jnp.asarray(3 * rng.normal(size=(B, T, V)), jnp.float32),
        hidden=jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32),
        kernel=jnp.asarray(rng.normal(size=(D, V)), jnp.float32),
        bias=jnp.asarray(rng.normal(size=V), jnp.float32),
        ids=jnp.asarray(rng.integers(V, size=(B, T))),
        rows=jnp.asarray(rng.normal(size=(3, B, T)), jnp.float32),
        advantages=jnp.array([1.2, -0.8, 0.5]),
    )


def log_p_of(logits, ids):
    return jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]


def smoothed(logits, ids, epsilon):
    """Rows with ε/(V−1) for every class but the label's, without the constant that some subtract."""
    q = jnp.where(jax.nn.one_hot(ids, logits.shape[-1]) == 1, 1 - epsilon, epsilon / (logits.shape[-1] - 1))
    return -jnp.sum(q * jax.nn.log_softmax(logits), axis=-1)


def log_z_of(logits):
    return jax.nn.logsumexp(logits, axis=-1)


def mean_of(rows, weights=MASK):
    return jnp.sum(rows * jnp.asarray(weights, jnp.float32)) / np.sum(weights, dtype=np.float32)


def assert_same(ours, formula, *arrays):
    """The values, and the gradients by all arrays."""
    by = tuple(range(len(arrays)))
    found, expected = (jax.jit(jax.value_and_grad(f, by))(*arrays) for f in (ours, formula))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), found, expected)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("weights", [MASK.astype(np.float32), None], ids=["weights", "no weights"])
def test_flax_lm1b(a, epsilon, weights):
    def ours(logits):
        total, weight = recipe("Flax: lm1b, wmt").compute_weighted_cross_entropy(logits, a.ids, weights, epsilon)
        return total / weight

    counted = np.ones((B, T)) if weights is None else weights
    assert_same(ours, lambda x: mean_of(smoothed(x, a.ids, epsilon), counted), a.logits)


@pytest.mark.parametrize("tied", [False, True])
def test_flax_lm1b_from_hidden_states(a, tied):
    def ours(hidden, kernel, bias):
        decoder = {"Embed_0": {"embedding": kernel.T}, "logitdense": {"kernel": kernel, "bias": bias}}
        loss_fn = recipe("Flax: lm1b, wmt").loss_from_hidden_states
        return loss_fn(decoder, hidden, a.ids, jnp.asarray(MASK, jnp.float32), tied)[0]

    def formula(hidden, kernel, bias):
        logits = hidden @ kernel / np.sqrt(np.float32(D)) if tied else hidden @ kernel + bias.reshape(1, 1, V)
        return mean_of(-log_p_of(logits, a.ids))

    assert_same(ours, formula, a.hidden, a.kernel, a.bias)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_flax_gemma(a, epsilon):
    loss_fn = recipe("Flax NNX: gemma").compute_weighted_cross_entropy
    weights = jnp.asarray(MASK, jnp.float32)
    rows = smoothed(a.logits, a.ids, epsilon) * weights
    np.testing.assert_allclose(
        loss_fn(a.logits, a.ids, weights, epsilon), rows.sum(axis=1) * B / MASK.sum(dtype=np.float32), rtol=1e-5
    )
    assert_same(
        lambda x: loss_fn(x, a.ids, weights, epsilon).mean(),
        lambda x: mean_of(smoothed(x, a.ids, epsilon)),
        a.logits,
    )


def test_flax_mnist(a):
    line = "jxent.softmax_cross_entropy(logits, batch['label'], reduction=\"mean\")"
    assert line in TEXT

    def ours(logits):
        return eval(line, {"jxent": jxent, "logits": logits, "batch": {"label": a.ids[0]}})

    assert_same(ours, lambda x: -jnp.mean(log_p_of(x, a.ids[0])), a.logits[0])


@pytest.mark.parametrize("tied", [False, True])
def test_maxtext(a, tied):
    cap, z = 5.0, 1e-2
    config = SimpleNamespace(
        enable_dropout=False,
        logits_dot_in_fp32=True,
        logits_via_embedding=tied,
        final_logits_soft_cap=cap if tied else None,
        normalize_embedding_logits=tied,
        z_loss_multiplier=z,
    )
    data = {"targets": a.ids, "targets_segmentation": jnp.asarray(MASK, jnp.int32)}

    def ours(hidden, kernel):
        decoder = SimpleNamespace(
            decoder_norm=lambda y: y,
            dropout=lambda y, deterministic: y,
            logits_dense=SimpleNamespace(kernel=kernel),
        )
        model = SimpleNamespace(decoder=decoder, token_embedder=SimpleNamespace(embedding=kernel.T))
        total, z_total = recipe("MaxText: vocabulary tiling").vocab_tiling_nnx_loss(model, hidden, data, config, True)
        return total + jax.lax.stop_gradient(z_total)

    def formula(hidden, kernel):
        logits = hidden @ kernel
        if tied:
            logits = cap * jnp.tanh(logits / np.sqrt(np.float32(D)) / cap)
        z_rows = z * log_z_of(logits) ** 2
        rows = -log_p_of(logits, a.ids) + z_rows + jax.lax.stop_gradient(z_rows)
        return jnp.sum(jnp.where(MASK, rows, 0))

    assert_same(ours, formula, a.hidden, a.kernel)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tied", [False, True])
def test_tunix_log_probabilities(a, tied, temperature):
    def ours(hidden, kernel):
        model = SimpleNamespace(
            config=SimpleNamespace(use_tied_embedding=tied),
            embedder=SimpleNamespace(input_embedding=kernel.T),
            lm_head=SimpleNamespace(w=kernel),
        )
        compute = recipe("Tunix: log-probabilities").compute_chunked_logps
        log_prob, entropy = compute(model, hidden, a.ids, temperature, 4, True)
        return jnp.sum(a.rows[0] * log_prob + a.rows[1] * entropy)

    def formula(hidden, kernel):
        log_p = jax.nn.log_softmax(hidden @ kernel / temperature)
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
        return jnp.sum(a.rows[0] * log_p_of(log_p, a.ids) + a.rows[1] * entropy)

    assert_same(ours, formula, a.hidden, a.kernel)


@pytest.mark.parametrize("mode", ["token-mean", "sequence-mean-token-mean"])
@pytest.mark.parametrize(("epsilon_c", "beta"), [(None, 0.0), (1.1, 0.04)])
def test_tunix_grpo(a, mode, epsilon_c, beta):
    code = recipe("Tunix: the loss of GRPO")
    row_loss = code.make_row_loss(0.2, 0.28, epsilon_c, beta)
    base = log_p_of(a.hidden @ a.kernel / 0.7, a.ids)
    old, reference = base + 0.3 * a.rows[0], base + 0.2 * a.rows[1]

    def ours(hidden, kernel):
        arrays = old, a.advantages, reference
        return code.policy_loss(row_loss, hidden, kernel, a.ids, jnp.asarray(MASK), *arrays, 0.7, mode)

    def formula(hidden, kernel):
        log_prob = log_p_of(hidden @ kernel / 0.7, a.ids)
        advantage = jnp.broadcast_to(a.advantages[:, None], (B, T))
        ratio = jnp.exp(log_prob - old)
        loss = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.28) * advantage)
        if epsilon_c is not None:
            loss = jnp.where(advantage < 0, jnp.minimum(loss, -epsilon_c * advantage), loss)
        loss += beta * (jnp.exp(reference - log_prob) - (reference - log_prob) - 1)
        if mode == "token-mean":
            return mean_of(loss)
        return jnp.mean(jnp.sum(jnp.where(MASK, loss, 0), axis=1) / LENGTHS.astype(np.float32))

    assert_same(ours, formula, a.hidden, a.kernel)


def test_tunix_supervised(a):
    def ours(logits):
        code = recipe("Tunix: supervised fine-tuning")
        total, weight = code.weighted_sum_and_weight(logits, a.ids, jnp.asarray(MASK, jnp.int32))
        return total / weight

    assert_same(ours, lambda x: mean_of(-log_p_of(x, a.ids)), a.logits)


@pytest.mark.parametrize("weight", [0.5 * MASK.astype(np.float32), None], ids=["weight", "no weight"])
def test_levanter(a, weight):
    def ours(hidden, kernel):
        given = None if weight is None else jnp.asarray(weight)
        return recipe("levanter").next_token_loss(hidden, kernel, a.ids, given, 1e-2, 5.0)

    def formula(hidden, kernel):
        logits = 5 * jnp.tanh((hidden @ kernel)[:, :-1] / 5)
        rows = -log_p_of(logits, a.ids[:, 1:]) + 1e-2 * log_z_of(logits) ** 2
        return mean_of(rows, np.ones((B, T - 1)) if weight is None else weight[:, :-1])

    assert_same(ours, formula, a.hidden, a.kernel)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_easydel(a, epsilon):
    labels = jnp.where(MASK, a.ids, -100)

    def ours(hidden, kernel):
        return recipe("EasyDeL").causal_lm_loss(hidden, labels, kernel, label_smoothing=epsilon, z_loss=1e-2)[0]

    def formula(hidden, kernel):
        logits = (hidden @ kernel)[:, :-1]
        rows = smoothed(logits, a.ids[:, 1:], epsilon) + 1e-2 * log_z_of(logits) ** 2
        return mean_of(rows, MASK[:, 1:])

    assert_same(ours, formula, a.hidden, a.kernel)
    _, accuracy = recipe("EasyDeL").causal_lm_loss(a.hidden, labels, a.kernel)
    right = jnp.argmax(a.hidden @ a.kernel, axis=-1)[:, :-1] == labels[:, 1:]
    np.testing.assert_allclose(accuracy, right.sum() / MASK[:, 1:].sum(), rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_axlearn(a, epsilon):
    labels = jnp.where(MASK, a.ids, -1)
    cross_entropy = recipe("axlearn").cross_entropy
    options = {"label_smoothing": epsilon, "z_loss_scale": 1e-2}

    def formula(logits):
        log_p = jax.nn.log_softmax(logits)
        rows = -(1 - epsilon) * log_p_of(log_p, a.ids) - epsilon * jnp.mean(log_p, axis=-1)
        return mean_of(rows + 1e-2 * log_z_of(logits) ** 2)

    assert_same(lambda x: cross_entropy(x, labels, **options)[0], formula, a.logits)
    loss, parts = cross_entropy(a.logits, labels, **options)
    np.testing.assert_allclose(parts["z_loss"], mean_of(log_z_of(a.logits) ** 2), rtol=1e-6)
    np.testing.assert_allclose(parts["cross_entropy_loss"], loss - 1e-2 * parts["z_loss"], rtol=1e-6)
    np.testing.assert_allclose(
        parts["accuracy"], mean_of((jnp.argmax(a.logits, -1) == labels).astype(jnp.float32)), rtol=1e-6
    )
    assert np.all(np.asarray(parts["per_target_loss"])[~MASK] == 0)


def test_axlearn_soft_labels_and_weights(a):
    soft = jax.nn.softmax(a.logits[::-1])
    weights = jnp.asarray(MASK * np.linspace(0.5, 2, T, dtype=np.float32))
    options = {"live_targets": weights, "soft_target_labels": soft}
    assert_same(
        lambda x: recipe("axlearn").cross_entropy(x, a.ids, **options)[0],
        lambda x: mean_of(-jnp.sum(soft * jax.nn.log_softmax(x), axis=-1), np.asarray(weights)),
        a.logits,
    )


def test_each_recipe_has_a_test():
    titles = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    source = Path(__file__).read_text(encoding="utf-8")
    assert len(titles) == 10
    assert [title for title in titles if f'recipe("{title}")' not in source] == ["Flax NNX: mnist"]
