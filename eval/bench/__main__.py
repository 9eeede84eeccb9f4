"""Measure:  python -m eval.bench [pipeline | sbc | streams | assimilation …]   (all by default)
          python -m eval.bench sbi --help       (accuracy on the tasks of a public benchmark; takes about two hours)
          python -m eval.bench peers --help     (speed beside other packages, each in an environment of its own)
          python -m eval.bench fields RUN_DIR   (accuracy on fields under satellite tracks)
          python -m eval.bench fourdvarnet      (the learned solver beside other implementations: speed, memory)
          python -m eval.bench gates            (how often each gate rejects an exact posterior, and planted defects)

Prints tables in Markdown: rates and ratios of things timed alternately in one run, medians.
"""

from __future__ import annotations

from eval.bench.assimilation import show_assimilation
from eval.bench.compare import show_peers
from eval.bench.fields import show_fields
from eval.bench.fourdvarnet import show_fourdvarnet
from eval.bench.gates import show_gates
from eval.bench.pipeline import pipeline
from eval.bench.sbc_cost import beside_a_loop, sbc_cost
from eval.bench.sbi import show_sbi
from eval.bench.streams import stream_rates
from train.cli import run
from vardax_flax.core.config import ConfigError, closest

PRESETS = ("two_moons", "lorenz63")


def show_pipeline() -> None:
    """The training loop beside the bare step."""
    columns = ("fit", "bare", "bare, batch ready", "fit / bare", "fit / bare, batch ready")
    print("\n| steps/s | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for preset in PRESETS:
        row = pipeline(preset)
        print(f"| {preset} | " + " | ".join(f"{row[c]:.2f}" if "/" in c else f"{row[c]:.0f}" for c in columns) + " |")


def show_sbc() -> None:
    """The cost of calibration."""
    row = sbc_cost()
    print("\n| seconds | first call | warm | one epoch of 10 000 simulations |\n|---|---|---|---|")
    print(f"| two_moons, 1000 runs × 999 draws | {row['first call']:.2f} | {row['warm']:.2f} | {row['epoch']:.2f} |")
    columns = ("milliseconds a run, 99 draws", "loop, sampler compiled", "loop, all compiled", "one pass", "loops / pass")
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for preset in ("linear_gaussian", "two_moons"):
        row = beside_a_loop(preset)
        times = " | ".join(f"{row[name]:.3f}" for name in ("plain", "loop", "pass"))
        print(f"| {preset}, 1000 runs | {times} | {row['plain / pass']:.0f}, {row['loop / pass']:.0f} |")


def show_streams() -> None:
    """What streams deliver."""
    print("\n| stream of lorenz63, batch 256 | examples/s |\n|---|---|")
    for name, rate in stream_rates().items():
        print(f"| {name} | {rate:,.0f} |")


BENCHMARKS = {"pipeline": show_pipeline, "sbc": show_sbc, "streams": show_streams, "assimilation": show_assimilation}
# on their own, with arguments
SCORES = {"sbi": show_sbi, "fields": show_fields, "peers": show_peers, "gates": show_gates, "fourdvarnet": show_fourdvarnet}


def main(arguments: list[str]) -> int:
    """Measure; returns the exit code."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if arguments and arguments[0] in SCORES:
        SCORES[arguments[0]](arguments[1:])
        return 0
    for name in arguments:
        if name not in BENCHMARKS:
            known = (*BENCHMARKS, *SCORES)
            raise ConfigError(f"expected a benchmark of {', '.join(known)}, got {name!r}; do pick one{closest(name, known)}")
    for name in arguments or BENCHMARKS:
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    run(main)
