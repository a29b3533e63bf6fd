"""`python -m benchmarks`: sets what has to be set before JAX and Keras are imported, and runs."""

import os
import sys

os.environ["KERAS_BACKEND"] = "jax"
# Compile times are of compilations.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
# torch has to find room on the same GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from benchmarks.cli import main

if __name__ == "__main__":
    sys.exit(main())
