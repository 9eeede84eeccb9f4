"""Every figure of a report, in order, and a line for every figure that had to be left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vardax_flax.report import gates, windows
from vardax_flax.report.style import BLUE, ORANGE, RED, Drawing, Missing, Plot, array, canvas, house_style, plain_ticks, to_drawing

MAX_WINDOWS = 12
_MAX_POINTS = 300


class GateFigure(NamedTuple):
    """A figure belongs to the gates whose name contains one of `words` and to those whose details hold one of `keys`."""

    title: str
    words: tuple[str, ...]
    keys: tuple[str, ...]
    draw: Callable[[dict[str, Any]], Plot]


GATE_FIGURES = (
    GateFigure("rank histograms", ("sbc", "simulation_based"), ("ranks",), gates.rank_histograms),
    GateFigure("ECDF difference", ("sbc", "simulation_based"), ("ranks",), gates.ecdf_difference),
    GateFigure("empirical against nominal", ("coverage",), ("sets",), gates.coverage),
    GateFigure("means and spreads", ("posterior_agreement", "agreement_with"), ("spread_ratio",), gates.agreement),
    GateFigure("rank histogram", ("ensemble",), ("rank_histogram",), gates.ensemble_ranks),
)


def draw_all(results: dict[str, Any]) -> tuple[list[Drawing], list[str]]:
    """The figures of `results`, and `title: reason` for those that could not be drawn.

    Args:
        results: a checked report (`schema.check`).

    Example:
        >>> drawings, left_out = draw_all(results)
    """
    drawings, left_out = [], []
    with house_style():
        for title, draw in _wanted(results):
            try:
                drawings.append(to_drawing(draw()))
            except Missing as reason:
                left_out.append(f"{title}: {reason}.")
    extra = len(results.get("windows", [])) - MAX_WINDOWS
    if extra > 0:
        left_out.append(f"{extra} further windows: at most {MAX_WINDOWS} are drawn, all are in report.json.")
    return drawings, left_out


def _wanted(results: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Plot]]]:
    for gate in results["gates"]:
        gate = {"details": {}, **gate}
        name = gate["name"].lower().replace("-", "_").replace(" ", "_")
        for entry in GATE_FIGURES:
            named = any(word in name for word in entry.words)
            if not gate.get("skipped") and (named or any(gate["details"].get(key) is not None for key in entry.keys)):
                yield f"{gate['name']}: {entry.title}", partial(entry.draw, gate)
    yield "Loss curve", partial(loss_curve, results.get("training"))
    for window in results.get("windows", [])[:MAX_WINDOWS]:
        yield window["title"], partial(windows.draw, window)


def loss_curve(training: dict[str, Any] | None) -> Plot:
    """Training and held-out loss against the step, with the step whose parameters were kept."""
    if training is None:
        raise Missing("the results have no `training` record")
    loss = _series(training, "loss")
    held_out = _series(training, "validation") if training.get("validation") else None
    settled = loss[0, 0] + 0.3 * (loss[-1, 0] - loss[0, 0])
    figure, axes = canvas(1, 2, 3.1)
    for axis, start, title in zip(axes, (-np.inf, settled), ("whole run", "last 70 %"), strict=True):
        _loss_panel(axis, loss[loss[:, 0] >= start], BLUE, "training batches")
        if held_out is not None:
            _loss_panel(axis, held_out[held_out[:, 0] >= start], ORANGE, "held out")
        if training.get("best_step") is not None:
            axis.axvline(training["best_step"], color=RED, linestyle="--", linewidth=1.2, label=f"kept: step {training['best_step']}")
        axis.set(title=title, xlabel="optimiser step")
        axis.locator_params(axis="x", nbins=5)
    axes[0].set_ylabel("loss")
    finite = np.concatenate([series[np.isfinite(series)] for series in (loss[:, 1], *([] if held_out is None else [held_out[:, 1]]))])
    if finite.min() > 0 and finite.max() / finite.min() > 20:
        axes[0].set_yscale("log")
        plain_ticks(axes[0].yaxis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    caption = f"Loss over {training['steps']} steps; lower is better."
    if held_out is None:
        caption += " No held-out loss was recorded."
    else:
        caption += f" Best held-out value {np.nanmin(held_out[:, 1]):.4g}, last {held_out[-1, 1]:.4g}."
    if training.get("steps_per_second") is not None:
        caption += f" {training['steps_per_second']:.3g} steps per second."
    return Plot("Training: loss", caption, f"Loss curves. {caption}", figure)


def _loss_panel(axis: Any, series: np.ndarray, colour: str, label: str) -> None:
    """Group means as a line, the range within a group as a shade; groups without a finite value are gaps."""
    groups = np.array_split(series, max(1, min(len(series), _MAX_POINTS)))
    rows = [(g[:, 0].mean(), *_spread(g[:, 1])) for g in groups if len(g)]
    if not rows:
        return
    step, mean, low, high = np.array(rows).T
    if len(rows) < len(series):
        axis.fill_between(step, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.plot(step, mean, color=colour, linewidth=1.3, marker="o" if len(rows) <= 40 else None, markersize=3.5, label=label)


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    values = values[np.isfinite(values)]
    return (float(values.mean()), float(values.min()), float(values.max())) if values.size else (np.nan, np.nan, np.nan)


def _series(training: dict[str, Any], key: str) -> np.ndarray:
    values = array(training, key, 2, "training")
    if values.shape[1] != 2 or not np.isfinite(values).any(axis=0).all():
        raise Missing(f"training.{key} is no list of [step, value] with a finite value")
    return values
