"""Presets: files of experiments, whose header states the command, its time and the gate numbers to expect."""

from __future__ import annotations

from train.config import Experiment
from train.presets import debug, fields, fourdvarnet, gp2d, gp_sites, linear_gaussian, lorenz63, lorenz96, sbi, two_moons
from vardax_flax.core.config import ConfigError, closest

FILES = (debug, fields, gp_sites, linear_gaussian, lorenz63, lorenz96, two_moons, sbi, fourdvarnet, gp2d)
PRESETS: dict[str, Experiment] = {name: experiment for file in FILES for name, experiment in file.EXPERIMENTS.items()}


def load_preset(name: str) -> Experiment:
    """The experiment of a preset.

    Raises:
        ConfigError: there is none of that name; names the closest.
    """
    if name not in PRESETS:
        raise ConfigError(f"expected a preset of {', '.join(PRESETS)}, got {name!r}; do pick one{closest(name, PRESETS)}")
    return PRESETS[name]


def describe_presets() -> str:
    """One line for each preset: its name, the first line of its header, or of its simulator's where a file holds several, and its head."""
    lines = []
    for file in FILES:
        for name, experiment in file.EXPERIMENTS.items():
            source = file if len(file.EXPERIMENTS) == 1 else type(experiment.simulator)
            about = (source.__doc__ or "").strip().splitlines()[0].rstrip(".")
            lines.append(f"  {name:<28} {about} ({experiment.posterior.head_type})")
    return "\n".join(lines)
