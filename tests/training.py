"""Three steps of a small classifier, on one device or on a mesh, and as a program for one of several processes.

    python -m tests.training PORT NUM_PROCESSES PROCESS_ID OUTPUT

joins the others on 127.0.0.1:PORT, trains on the devices of all, and writes the parameters to OUTPUT. Rows and classes
are split so that both are shared by devices of different processes.
"""

import faulthandler
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jxent

NUM_STEPS, NUM_ROWS, NUM_FEATURES, WIDTH, NUM_CLASSES = 3, 16, 6, 8, 12
DEVICES_PER_PROCESS = 2
# Seconds after which a process gives up, whatever the others do.
DEADLINE = 120
PARAMETER_SPECS = {"embed": P(), "kernel": P(None, "classes")}
BATCH_SPECS = {"features": P("data"), "labels": P("data")}


def initial_parameters():
    rng = np.random.default_rng(0)
    return {
        "embed": rng.normal(size=(NUM_FEATURES, WIDTH)).astype(np.float32),
        "kernel": rng.normal(size=(WIDTH, NUM_CLASSES)).astype(np.float32),
    }


def batch_of(step):
    """The rows of one device count for less than those of the other: they are mostly masked."""
    rng = np.random.default_rng(1 + step)
    labels = rng.integers(NUM_CLASSES, size=NUM_ROWS).astype(np.int32)
    labels[: NUM_ROWS // 2 - 1] = -100
    return {"features": rng.normal(size=(NUM_ROWS, NUM_FEATURES)).astype(np.float32), "labels": labels}


def partial_loss(hidden, kernel, labels, vocab_axis_name=None):
    options = {"ignore_index": -100, "label_smoothing": 0.1, "z_loss": 1e-2, "vocab_axis_name": vocab_axis_name}
    return jxent.linear_softmax_cross_entropy(hidden, kernel, labels, reduction="partial", chunk_size=5, **options)


def loss_on_one_device(parameters, batch):
    hidden = jnp.tanh(batch["features"] @ parameters["embed"])
    return partial_loss(hidden, parameters["kernel"], batch["labels"]).value()


def loss_on_devices(parameters, batch):
    """Inside a shard_map."""
    hidden = jnp.tanh(batch["features"] @ parameters["embed"])
    return partial_loss(hidden, parameters["kernel"], batch["labels"], "classes").psum("data").value()


def loss_on_mesh(mesh):
    return jax.shard_map(loss_on_devices, mesh=mesh, in_specs=(PARAMETER_SPECS, BATCH_SPECS), out_specs=P())


def train(loss, place_parameters=lambda x: x, place_batch=lambda x: x):
    @jax.jit
    def step(parameters, batch):
        gradient = jax.grad(loss)(parameters, batch)
        return jax.tree.map(lambda p, g: p - 0.5 * g, parameters, gradient)

    parameters = place_parameters(initial_parameters())
    for i in range(NUM_STEPS):
        parameters = step(parameters, place_batch(batch_of(i)))
    return parameters


def placed(mesh, specs, arrays):
    """NumPy arrays, the same in all processes → arrays split over the devices of all of them."""
    return {
        name: jax.make_array_from_callback(array.shape, NamedSharding(mesh, specs[name]), array.__getitem__)
        for name, array in arrays.items()
    }


def mesh_across_processes(num_processes):
    """Each row and each column of devices has one of every process: process i holds a diagonal."""
    devices = np.array(jax.devices()).reshape(num_processes, DEVICES_PER_PROCESS)
    assert [{device.process_index for device in row} for row in devices] == [{i} for i in range(num_processes)]
    diagonal = [[devices[(i + j) % num_processes, i] for j in range(num_processes)] for i in range(DEVICES_PER_PROCESS)]
    return jax.sharding.Mesh(np.array(diagonal), ("data", "classes"))


def main(port, num_processes, process_id, output):
    faulthandler.dump_traceback_later(DEADLINE, exit=True)
    num_processes, process_id = int(num_processes), int(process_id)
    jax.config.update("jax_num_cpu_devices", DEVICES_PER_PROCESS)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes, process_id, initialization_timeout=DEADLINE)
    mesh = mesh_across_processes(num_processes)
    place_parameters = functools.partial(placed, mesh, PARAMETER_SPECS)
    parameters = train(loss_on_mesh(mesh), place_parameters, functools.partial(placed, mesh, BATCH_SPECS))
    everywhere = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(parameters)
    np.savez(output, **jax.device_get(everywhere))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
