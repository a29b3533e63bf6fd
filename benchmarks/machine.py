"""Where and with what a run was made."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import jxent

DISTRIBUTIONS = (
    "jax",
    "jaxlib",
    "numpy",
    "optax",
    "keras",
    "tokamax",
    "torch",
    "triton",
    "liger-kernel",
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
)
ROOT = Path(__file__).resolve().parents[1]


def describe_machine() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "device": cpu_name() if device.platform == "cpu" else device.device_kind,
        "platform": device.platform,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "versions": {"python": platform.python_version(), "jxent": jxent_version(), **installed_versions()},
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def jxent_version() -> str:
    return jxent.__version__


def installed_versions() -> dict[str, str]:
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def commit() -> str:
    """Of this repository, with a + where files that git knows were changed since; empty outside of a clone."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except FileNotFoundError:
        return ""
