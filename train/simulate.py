"""Simulate offline:  python -m train.simulate PRESET --out DIR --n 10000 [--seed 0]

Writes checksummed shards that `python -m train PRESET --records DIR` trains on. Killed and called again, it makes only what is missing.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated

import tyro

from train.cli import parse, run
from train.presets import load_preset
from vardax_flax.core.config import to_dict
from vardax_flax.simulators import SimulatorConfig
from vardax_flax.streams import write_records


@dataclasses.dataclass(frozen=True)
class Options:
    """Simulate a preset's pairs (x, y) into a directory.

    Args:
        simulator: its values are flags.
        out: directory of the shards; data/PRESET by default.
        n: number of simulations.
        seed: of the simulations.
        shard_size: simulations in a file.
    """

    simulator: SimulatorConfig
    out: Annotated[str, tyro.conf.arg(name="out")] = ""
    n: int = 10_000
    seed: int = 0
    shard_size: int = 8192


def main(arguments: list[str]) -> int:
    """Simulate; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    experiment = load_preset(arguments[0])
    default = Options(experiment.simulator, f"data/{experiment.name}")
    options = parse(Options, default, arguments[1:], f"python -m train.simulate {arguments[0]}")
    manifest = write_records(
        options.simulator, options.out, n=options.n, seed=options.seed, shard_size=options.shard_size,
        fingerprint=to_dict(options.simulator), on_shard=lambda done, total: print(f"shard {done}/{total}", file=sys.stderr),
    )  # fmt: skip
    command = f"python -m train {experiment.name} --records {options.out}"
    print(f"{manifest.n} simulations of {experiment.name} in {options.out}; train with: {command}")
    return 0


if __name__ == "__main__":
    run(main)
