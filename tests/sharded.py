"""Prints OK if every loss gives the one-device numbers on meshes of four host devices. Run by test_sharding.

A program of its own, since the number of host devices is settled before jax starts.
"""

import itertools

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.losses import LOSSES, assert_close

SPLITS = ((P("batch", None), 0.0), (P("batch", "classes"), 0.1))


def main():
    jax.config.update("jax_num_cpu_devices", 4)
    rng = np.random.default_rng(0)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2, 2), ("batch", "classes"), axis_types=(axis_type, axis_type))
        for loss, (spec, smoothing) in itertools.product(LOSSES, SPLITS):
            check(loss, mesh, spec, smoothing, rng)
    print("OK")


def check(loss, mesh, spec, smoothing, rng):
    scores, labels = loss.inputs(rng, (8,))
    if spec[1] is not None:  # an axis that is split has to divide
        scores, labels = scores[:, :4], labels % 4 if loss.has_ids else labels[:, :4]
    options = {
        "class_weight": rng.uniform(0.5, 2, scores.shape[-1]).astype(np.float32),
        "sample_weight": rng.uniform(0.5, 2, loss.rows(scores)).astype(np.float32),
        "label_smoothing": smoothing,
    }

    def mean(scores, labels, class_weight, sample_weight):
        weights = {"class_weight": class_weight, "sample_weight": sample_weight}
        return loss.call(scores, labels, reduction="mean", label_smoothing=smoothing, **weights)

    def place(array, spec):
        return jax.device_put(array, NamedSharding(mesh, spec))

    arrays = (scores, labels, options["class_weight"], options["sample_weight"])
    want = jax.jit(jax.value_and_grad(mean, (0, 2, 3)))(*arrays)
    row_spec = spec if loss.is_binary else P(spec[0])
    placed = (
        place(scores, spec),
        place(labels, P(spec[0]) if loss.has_ids else spec),
        place(options["class_weight"], P(spec[1])),
        place(options["sample_weight"], row_spec),
    )
    got = jax.jit(jax.value_and_grad(mean, (0, 2, 3)))(*placed)
    jax.tree.map(assert_close, got, want)
    if mesh.axis_types[0] == AxisType.Explicit:
        assert got[1][0].sharding.spec == spec, (loss.name, got[1][0].sharding, spec)


if __name__ == "__main__":
    main()
