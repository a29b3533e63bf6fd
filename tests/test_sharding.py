"""Meshes of both axis types, rows and classes split."""

import subprocess
import sys
from pathlib import Path


def test_losses_on_meshes_are_those_on_one_device():
    command = [sys.executable, "-m", "tests.sharded"]
    result = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.split() == ["OK"]
