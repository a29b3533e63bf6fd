"""What a call takes of the memory: by the operating system's account on the CPU, by the device's elsewhere.

The compiler's account (`temp_bytes`) does not show all: what XLA's libraries on the CPU allocate for themselves is not in it.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.contenders.base import Program

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # man 5 proc, /proc/pid/clear_refs


def available_bytes() -> int | None:
    """Of the memory that a program on the device could still get, or None where nobody says."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        found = re.search(r"MemAvailable: +(\d+) kB", _text(Path("/proc/meminfo")))
        return int(found[1]) * 1024 if found else None
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def growth_bytes(program: Program) -> int | None:
    """By how much one call raises the memory in use at its peak, its results included; None where nobody says."""
    if program.device_growth is not None:
        return program.device_growth()
    if jax.default_backend() == "cpu":
        return _resident_growth(program.call)
    return _device_growth(program.call)


def _resident_growth(call: Callable[[], Any]) -> int | None:
    if not (CLEAR.exists() and os.access(CLEAR, os.W_OK)):
        return None
    # Freed memory that the C library keeps for later would hide that it is taken again.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    CLEAR.write_text(RESET_PEAK, encoding="ascii")
    before = _status_bytes("VmRSS")
    call()
    return max(0, _status_bytes("VmHWM") - before)


def _device_growth(call: Callable[[], Any]) -> int | None:
    """None also where a call before this one had a higher peak: it cannot be reset."""
    device = jax.devices()[0]
    before = device.memory_stats()
    call()
    after = device.memory_stats()
    if not before or not after or after["peak_bytes_in_use"] <= before["peak_bytes_in_use"]:
        return None
    return after["peak_bytes_in_use"] - before["bytes_in_use"]


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _text(STATUS), re.MULTILINE)
    if found is None:
        raise OSError(f"{STATUS} has no {field}")
    return int(found[1]) * 1024


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii") if path.exists() else ""
