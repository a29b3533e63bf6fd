"""Several processes, each with devices of its own, train what one process does."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import training

ROOT = Path(__file__).parents[1]
NUM_PROCESSES = 2


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_together(commands, folder, deadline):
    """Runs all commands at once. As soon as one fails, or when time is up, all are killed and the test fails."""
    logs = [folder / f"process{i}.log" for i in range(len(commands))]
    running = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("wb") as output:
                running.append(subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT))
        end = time.monotonic() + deadline
        while any(process.poll() is None for process in running):
            if any(process.poll() for process in running) or time.monotonic() > end:
                break
            time.sleep(0.05)
        codes = [process.poll() for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    told = "\n".join(
        f"{log.name}: exit code {code}\n{log.read_text()[-2000:]}" for code, log in zip(codes, logs, strict=True)
    )
    assert codes == [0] * len(commands), told


@pytest.mark.slow
def test_two_processes_train_as_one_device_does(tmp_path):
    wanted = jax.device_get(training.train(training.loss_on_one_device))
    port = free_port()
    outputs = [tmp_path / f"parameters{i}.npz" for i in range(NUM_PROCESSES)]
    commands = [
        [sys.executable, "-m", "tests.training", str(port), str(NUM_PROCESSES), str(i), str(output)]
        for i, output in enumerate(outputs)
    ]
    run_together(commands, tmp_path, training.DEADLINE)
    for output in outputs:
        with np.load(output) as parameters:
            for name, values in wanted.items():
                assert np.abs(values - training.initial_parameters()[name]).max() > 0.01
                np.testing.assert_allclose(parameters[name], values, rtol=1e-5, atol=1e-6)


def test_a_killed_process_fails_the_test_at_once(tmp_path):
    """The other one, which would wait for it, is killed too."""
    program = "import os, signal, sys, time\nif {kill}: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(100)"
    commands = [[sys.executable, "-c", program.format(kill=kill)] for kill in (False, True)]
    start = time.monotonic()
    with pytest.raises(AssertionError, match=f"exit code -{signal.SIGKILL.value}"):
        run_together(commands, tmp_path, 50)
    assert time.monotonic() - start < 40


def test_a_process_that_hangs_fails_the_test_in_time(tmp_path):
    with pytest.raises(AssertionError, match="exit code None"):
        run_together([[sys.executable, "-c", "import time\ntime.sleep(100)"]], tmp_path, 0.2)
