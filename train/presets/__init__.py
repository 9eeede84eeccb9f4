"""Presets: one file each, whose header states the command, its time and the gate numbers to expect; `sbi` holds ten at once."""

from __future__ import annotations

import importlib

from train.config import Experiment
from train.presets import sbi
from vardax_flax.core.config import ConfigError, closest

PRESETS = ("debug", "fields", "linear_gaussian", "lorenz63", "lorenz96", "two_moons", *sbi.EXPERIMENTS)


def load_preset(name: str) -> Experiment:
    """The experiment of a preset.

    Raises:
        ConfigError: there is none of that name; names the closest.
    """
    if name not in PRESETS:
        raise ConfigError(f"expected a preset of {', '.join(PRESETS)}, got {name!r}; do pick one{closest(name, PRESETS)}")
    if name in sbi.EXPERIMENTS:
        return sbi.EXPERIMENTS[name]
    return importlib.import_module(f"train.presets.{name}").EXPERIMENT


def describe_presets() -> str:
    """One line for each preset: its name and the first line of its header, or of its simulator's."""
    lines = []
    for name in PRESETS:
        source = type(sbi.EXPERIMENTS[name].simulator) if name in sbi.EXPERIMENTS else importlib.import_module(f"train.presets.{name}")
        lines.append(f"  {name:<28} {(source.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join(lines)
