"""Presets: one file each, whose header states the command, its time and the gate numbers to expect."""

from __future__ import annotations

import importlib

from train.config import Experiment
from vardax_flax.core.config import ConfigError, closest

PRESETS = ("debug", "linear_gaussian", "lorenz63", "lorenz96", "two_moons")


def load_preset(name: str) -> Experiment:
    """The experiment of a preset.

    Raises:
        ConfigError: there is none of that name; names the closest.
    """
    if name not in PRESETS:
        raise ConfigError(f"expected a preset of {', '.join(PRESETS)}, got {name!r}; do pick one{closest(name, PRESETS)}")
    return importlib.import_module(f"train.presets.{name}").EXPERIMENT


def describe_presets() -> str:
    """One line for each preset: its name and the first line of its header."""
    lines = []
    for name in PRESETS:
        header = (importlib.import_module(f"train.presets.{name}").__doc__ or "").strip().splitlines()[0]
        lines.append(f"  {name:<16} {header}")
    return "\n".join(lines)
