"""Where and with what a run was made."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import jxent

PEERS = ("numpy", "optax", "keras", "tokamax", "torch", "triton", "liger-kernel")
PLUGINS = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
ROOT = Path(__file__).resolve().parents[1]


def describe_machine() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "device": _cpu_name() if device.platform == "cpu" else device.device_kind,
        "platform": device.platform,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": today(),
        "commit": commit(),
        "versions": {"python": platform.python_version(), "jxent": jxent.__version__, **versions(PEERS + PLUGINS)},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of jax and of the packages that are installed."""
    found = {}
    for name in ("jax", "jaxlib", *packages):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str:
    """The commit of this repository, with a + if tracked files have changed since; empty outside a clone."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    if not shutil.which("git"):
        return ""
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
