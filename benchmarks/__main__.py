"""`python -m benchmarks`: sets what must be set before JAX and Keras are imported, then runs."""

import os
import sys

os.environ["KERAS_BACKEND"] = "jax"
# Otherwise a compile time could be that of reading a cache.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
# Leaves room for torch on the same GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# The truth is computed on the CPU.
if (platforms := os.environ.get("JAX_PLATFORMS")) and "cpu" not in platforms:
    os.environ["JAX_PLATFORMS"] = f"{platforms},cpu"

from benchmarks.cli import main

if __name__ == "__main__":
    sys.exit(main())
