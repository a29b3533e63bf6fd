"""Runs the softmax loss and prints, as JSON, how many pages of memory each run touched for the first time.

A process of its own, by `measured`: memory that the C library has kept from before is not touched for the first time, and
what other tests have left there, in the arenas of all threads, nothing takes back.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jxent

N, V = 256, 50257
OPTIONS = {"no options": (), "all options": ("class_weight", "where", "label_smoothing", "z_loss", "sample_weight")}
# For glibc. Larger blocks are new from their first page and go back when freed; less than 4 MiB may stay with a thread (a
# row, say, of which the next has use).
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**22)}


def measured():
    """Page faults of `main` in its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.page_faults"],
        cwd=Path(__file__).parents[1],
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def main():
    x = jnp.ones((N, V))
    counts = {"hidden": page_faults(lambda x: jnp.sum(jnp.exp(x), -1), x)}
    for dtype in ("float32", "bfloat16"):
        for kind in ("ids", "distributions"):
            for options, names in OPTIONS.items():
                mean, *arguments = a_mean(dtype, kind, names)
                case = f"{options}-{kind}-{dtype}"
                counts[case] = {
                    "forward": page_faults(mean, *arguments),
                    "grad": page_faults(jax.grad(mean), *arguments),
                }
    print(json.dumps(counts))


def a_mean(dtype, kind, names):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(N, V)), dtype)
    labels = jnp.asarray(rng.integers(0, V, N)) if kind == "ids" else jax.nn.softmax(logits)
    values = {"class_weight": jnp.ones(V), "where": jnp.arange(N) > 3, "sample_weight": jnp.ones(N)}
    values |= {"label_smoothing": 0.1, "z_loss": 1e-4}
    chosen = {name: values[name] for name in names}

    def mean(logits, labels):
        return jxent.softmax_cross_entropy(logits, labels, reduction="mean", **chosen)

    return mean, logits, labels


def page_faults(f, *arguments):
    compiled = jax.jit(f).lower(*arguments).compile()
    counts = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        jax.block_until_ready(compiled(*arguments))
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts)


if __name__ == "__main__":
    main()
