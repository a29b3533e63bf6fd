"""A second eager call, of the same shapes, compiles nothing: neither of a function nor of its gradient."""

import contextlib

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from jxent import torch_compat
from tests.test_api import SIGNATURES, TORCH_SIGNATURES
from tests.test_sharding import make_mesh

# Lowered too, since compilation itself may be answered by a cache on disk.
_EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")
N, D, V = 12, 6, 8


@contextlib.contextmanager
def compilations():
    """A list of the programs that are compiled meanwhile."""
    seen = []

    def listen(event, _, **details):
        if event in _EVENTS:
            seen.append(details.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def linear(**options):
    def call(a, hidden):
        return jxent.linear_softmax_cross_entropy(hidden, a["kernel"], a["ids"], **options)

    return call, "hidden"


def reinforce(log_prob, entropy, advantage):
    return -advantage * log_prob - 0.1 * entropy


def of_scores(function, labels, scores="scores", **options):
    return (lambda a, x: function(x, a[labels], **options)), scores


# A function of one float argument, and the name of that in `arguments`.
CALLS = {
    "softmax_cross_entropy": of_scores(jxent.softmax_cross_entropy, "ids", reduction="mean"),
    "softmax_cross_entropy of distributions": of_scores(
        jxent.softmax_cross_entropy, "probs", label_smoothing=0.1, z_loss=0.1, reduction="partial"
    ),
    "softmax_focal_loss": of_scores(jxent.softmax_focal_loss, "ids", reduction="mean"),
    "poly1_cross_entropy": of_scores(jxent.poly1_cross_entropy, "probs", reduction="mean"),
    "cross_entropy_from_probs": of_scores(jxent.cross_entropy_from_probs, "ids", "probs", reduction="mean"),
    "cross_entropy_from_log_probs": of_scores(jxent.cross_entropy_from_log_probs, "probs", "log_probs"),
    "sigmoid_binary_cross_entropy": of_scores(jxent.sigmoid_binary_cross_entropy, "probs", reduction="mean"),
    "sigmoid_focal_loss": of_scores(jxent.sigmoid_focal_loss, "probs", reduction="mean"),
    "binary_cross_entropy_from_probs": of_scores(jxent.binary_cross_entropy_from_probs, "probs", "probs"),
    "linear_softmax_cross_entropy": linear(reduction="mean"),
    "linear_softmax_cross_entropy in chunks": linear(reduction="mean", chunk_size=4),
    "linear_softmax_cross_entropy with a remainder": linear(chunk_size=5, ignore_index=0),
    "linear_softmax_cross_entropy with aux": linear(reduction="partial", chunk_size=4, return_aux=True),
    "softmax_log_probs": of_scores(jxent.softmax_log_probs, "ids", logit_scale=0.5, return_entropy=True),
    "linear_softmax_log_probs": (
        (lambda a, x: jxent.linear_softmax_log_probs(x, a["kernel"], a["several"], chunk_size=4, return_entropy=True)),
        "hidden",
    ),
    "linear_softmax_loss": (
        (lambda a, x: jxent.linear_softmax_loss(reinforce, x, a["kernel"], a["ids"], a["scores"][:, 0], chunk_size=4)),
        "hidden",
    ),
    "softmax_distillation": (
        (lambda a, x: jxent.softmax_distillation(x, a["log_probs"], temperature=2.0, beta=0.3, where=a["where"])),
        "scores",
    ),
    "linear_softmax_distillation": (
        (lambda a, x: jxent.linear_softmax_distillation(x, a["kernel"], a["hidden"], a["kernel"], chunk_size=4)),
        "hidden",
    ),
    "softmax_cross_entropy of sparse labels": (
        (lambda a, x: jxent.softmax_cross_entropy(x, jxent.SparseLabels(a["several"], a["probs"][:, :3]))),
        "scores",
    ),
    "class_counts": ((lambda a, x: jxent.class_counts(a["ids"], V) * jnp.sum(x)), "scores"),
    "balanced_class_weights": ((lambda _, x: jxent.balanced_class_weights(x)), "counts"),
    "effective_number_weights": ((lambda _, x: jxent.effective_number_weights(x)), "counts"),
    "log_prior_adjustment": ((lambda _, x: jxent.log_prior_adjustment(x)), "counts"),
    "check_labels": ((lambda a, x: (jxent.check_labels(a["ids"], V), x)[1]), "scores"),
    "weighted_mean": ((lambda a, x: jxent.weighted_mean(x, where=a["where"][:, None])), "scores"),
    "torch_compat.cross_entropy": of_scores(torch_compat.cross_entropy, "ids"),
    "torch_compat.nll_loss": of_scores(torch_compat.nll_loss, "ids", "log_probs"),
    "torch_compat.binary_cross_entropy": of_scores(torch_compat.binary_cross_entropy, "probs", "probs"),
    "torch_compat.binary_cross_entropy_with_logits": of_scores(torch_compat.binary_cross_entropy_with_logits, "probs"),
}


def arguments(rng):
    probs = rng.dirichlet(np.ones(V), N)
    arrays = {
        "scores": rng.normal(size=(N, V)),
        "probs": probs,
        "log_probs": np.log(probs),
        "hidden": rng.normal(size=(N, D)),
        "kernel": rng.normal(size=(D, V)),
        "counts": rng.integers(1, 9, size=V),
    }
    arrays = {name: jnp.asarray(a, jnp.float32) for name, a in arrays.items()}
    return arrays | {
        "ids": jnp.asarray(rng.integers(V, size=N)),
        "several": jnp.asarray(rng.integers(V, size=(N, 3))),
        "where": jnp.asarray(rng.random(N) < 0.5),
    }


def gradient(call):
    """The gradient of the sum of everything floating in the result."""

    def total(a, x):
        leaves = [leaf for leaf in jax.tree.leaves(call(a, x)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return sum(jnp.sum(leaf) for leaf in leaves)

    return jax.grad(total, 1)


def assert_second_call_compiles_nothing(f, of_seed):
    for argument in of_seed:
        with compilations() as seen:
            jax.block_until_ready(f(*argument))
    assert seen == []


def test_eager_calls_are_those_of_every_public_function():
    names = {name.partition(" ")[0].removeprefix("torch_compat.") for name in CALLS}
    assert names == {*SIGNATURES, *(name.rpartition(".")[2] for name in TORCH_SIGNATURES)}, (
        "a call is missing from CALLS"
    )


@pytest.mark.parametrize("of", ["value", "gradient"])
@pytest.mark.parametrize("name", CALLS)
def test_second_eager_call_compiles_nothing(name, of):
    call, differentiated = CALLS[name]
    both = [arguments(np.random.default_rng(seed)) for seed in range(2)]
    f = call if of == "value" else gradient(call)
    assert_second_call_compiles_nothing(f, [(a, a[differentiated]) for a in both])


@pytest.mark.parametrize("of", ["value", "gradient"])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
def test_second_eager_call_on_a_mesh_compiles_nothing(axis_type, of):
    mesh = make_mesh(axis_type)
    specs = {"hidden": P("data"), "ids": P("data"), "kernel": P(None, "classes")}

    def placed(a):
        return {name: jax.device_put(a[name], NamedSharding(mesh, spec)) for name, spec in specs.items()}

    both = [placed(arguments(np.random.default_rng(seed))) for seed in range(2)]
    call = linear(reduction="mean", chunk_size=4)[0]
    f = call if of == "value" else gradient(call)
    with jax.set_mesh(mesh):
        assert_second_call_compiles_nothing(f, [(a, a["hidden"]) for a in both])
