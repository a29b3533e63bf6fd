"""Everybody who takes part. To add one: a module here with a list `CONTENDERS`, and its name below."""

from __future__ import annotations

from benchmarks.contenders import floors, keras_losses, optax_losses, ours, tokamax_losses, torch_losses
from benchmarks.contenders.base import Contender

MODULES = (floors, ours, optax_losses, keras_losses, tokamax_losses, torch_losses)


def everybody() -> list[Contender]:
    return [contender for module in MODULES for contender in module.CONTENDERS]
