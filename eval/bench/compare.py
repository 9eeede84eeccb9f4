"""Measure beside other packages:  python -m eval.bench peers [--peers flowjax …] [--rounds 3]

two_moons, 10 000 simulations, batches of 200, 5 transforms × 2 × 50 hidden units, 8 bins. Every package runs in an environment and a
process of its own (`make bench-peers` makes the environments from `eval/bench/peers/*.txt`), on the same data, by its own fastest
way; all take turns, and the table shows medians and their ratios to ours. What is not installed is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vardax_flax.core.config import require

SCRIPTS = Path(__file__).parent / "peers"
ENVIRONMENTS = Path(".venv-peers")
OURS = ("nsf", "spline", "affine")  # autoregressive and coupling splines, coupling affine
# what is compared with which of ours; the flow of flowjax is autoregressive, the others are coupling flows or nearest to them
PEERS = {"flowjax": "nsf", "bayesflow": "spline", "sbijax": "spline", "sbi": "spline"}
# layers of bayesflow each move both halves, so that five transforms lie between two of them and three; its own five layers are ten
VARIANTS = {"bayesflow": {"4 transforms": "2", "6 transforms": "3", "5 layers": "5"}}
COLUMNS = {
    "own": "fit, steps/s",
    "scan": "step in a scan, steps/s",
    "samples": "samples/s",
    "log_prob": "log_prob/s",
    "cold": "50 epochs cold, s",
    "first_step": "first step, s",
}
LIMIT = 1800  # seconds of one script


def measure(python: Path, script: str, *arguments: str) -> dict[str, Any]:
    """The numbers one script prints, or {"problem": …}."""
    # a build of the library must not be imported by a peer, nor a cache of compiled programs make it look fast
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "PYTHON"))}
    if script == "ours.py":
        clean["PYTHONPATH"] = str(Path.cwd())
    command = [str(python), str(SCRIPTS / script), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=clean, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"problem": f"not done in {LIMIT} s"}
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    return {"problem": (done.stderr.strip().splitlines() or ["no result"])[-1]}


def rows(peers: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Medians over rounds in which every script takes its turn; a script that fails is not asked again."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for name, python, arguments in _jobs(peers):
            results = found.setdefault(name, [])
            if results and "problem" in results[-1]:
                continue
            kind = name.split(",")[0]
            script = "ours.py" if kind == "ours" else f"with_{kind}.py"
            missing = {"problem": "not installed; do run make bench-peers"}
            results.append(measure(python, script, *arguments) if python.exists() else missing)
    return {name: _medians(results) for name, results in found.items()}


def _jobs(peers: list[str]) -> Iterator[tuple[str, Path, list[str]]]:
    for family in OURS:
        yield f"ours, {family}", Path(sys.executable), [family]
    for peer in peers:
        python = ENVIRONMENTS / peer / "bin" / "python"
        variants = VARIANTS.get(peer)
        yield from [(f"{peer}, {name}", python, [value]) for name, value in variants.items()] if variants else [(peer, python, [])]


def _medians(results: list[dict[str, Any]]) -> dict[str, Any]:
    if "problem" in results[-1]:
        return results[-1]
    return results[0] | {name: float(np.median([r[name] for r in results])) for name in (*COLUMNS, "ready") if name in results[0]}


def show_peers(arguments: list[str]) -> None:
    """Print the table: medians, and in brackets how many times better ours of the same kind is."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench peers", description=__doc__)
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    require(options.rounds > 0, "--rounds of at least 1", options.rounds, "pass more")
    table = rows(options.peers, options.rounds)
    print("\n| two_moons | version | " + " | ".join(COLUMNS.values()) + " |\n|---|---|" + "---|" * len(COLUMNS))
    for name, row in table.items():
        if "problem" in row:
            print(f"| {name} | {row['problem']} |" + " |" * len(COLUMNS))
            continue
        ours = table.get(f"ours, {PEERS.get(name.split(',')[0])}", {})
        print(f"| {name} | {row['version']} | " + " | ".join(_cell(column, row, ours) for column in COLUMNS) + " |")
    waits = [f"{name} {row['ready']:.1f} s" for name, row in table.items() if "ready" in row]
    print(f"\nFrom the imports to the first step, nothing cached: {'; '.join(waits)}")


def _cell(column: str, row: dict[str, Any], ours: dict[str, Any]) -> str:
    if column not in row:
        return "–"
    seconds = column in ("cold", "first_step")
    text = f"{row[column]:.1f}" if seconds else f"{row[column]:,.0f}"
    if column not in ours:
        return text
    return f"{text} ({row[column] / ours[column] if seconds else ours[column] / row[column]:.2f} ×)"
