"""The figures that show single cases: a state over time with its uncertainty, or posterior draws of two parameters beside a reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from vardax_flax.report.style import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    SKY,
    Missing,
    Plot,
    array,
    canvas,
    evenly,
    names_of,
    same_shape,
)

MAX_VARIABLES = 6
_MAX_TIMES = 300


def draw(window: dict[str, Any]) -> Plot:
    """The figure of one window, by its `kind`."""
    return trajectory(window) if window["kind"] == "trajectory" else scatter(window)


def trajectory(window: dict[str, Any]) -> Plot:
    """Prior range, posterior mean with its 90 % band, truth and observations over time, one panel a variable."""
    place = f"window {window['title']!r}"
    time = array(window, "time", 1, place)
    mean, low, high = (array(window, f"posterior_{key}", 2, place) for key in ("mean", "low", "high"))
    truth, prior_low, prior_high = (_optional(window, key, place) for key in ("truth", "prior_low", "prior_high"))
    same_shape(mean, place, posterior_low=low, posterior_high=high, truth=truth, prior_low=prior_low, prior_high=prior_high)
    if len(mean) != len(time):
        raise Missing(f"{place}.posterior_mean has {len(mean)} times, `time` has {len(time)}")
    obs_time, obs = _observations(window, mean.shape[1], place)
    shown, keep = evenly(mean.shape[1], MAX_VARIABLES), evenly(len(time), _MAX_TIMES)
    names = names_of(window, mean.shape[1], "variable")
    figure, axes = canvas(len(shown), 1, 0.9 + 1.45 * len(shown), sharex=True)
    at = time[keep]
    for axis, i in zip(axes, shown, strict=True):
        if prior_low is not None and prior_high is not None:
            axis.fill_between(at, prior_low[keep, i], prior_high[keep, i], color=GREY, alpha=0.25, linewidth=0, label="prior, 90 %")
        axis.fill_between(at, low[keep, i], high[keep, i], color=SKY, alpha=0.55, linewidth=0, label="posterior, 90 %")
        axis.plot(at, mean[keep, i], color=BLUE, label="posterior mean")
        if truth is not None:
            axis.plot(at, truth[keep, i], color="black", linestyle="--", linewidth=1.1, label="truth")
        if obs_time is not None and obs is not None:
            axis.plot(obs_time, obs[:, i], "o", color=RED, markersize=3.5, label="observations")
        axis.set_ylabel(names[i])
    axes[-1].set_xlim(at[0], at[-1]) if at[0] < at[-1] else None
    axes[-1].set_xlabel(window.get("time_label", "time"))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    figure.align_ylabels(axes)
    caption = "Shaded: 90 % bands. "
    if truth is not None:
        inside = 100 * np.nanmean(np.where(np.isnan(truth), np.nan, (truth >= low) & (truth <= high)))
        caption += f"The truth lies inside the posterior's band at {inside:.0f} % of the times and variables of this one case. "
    absent = [name for name, values in (("truth", truth), ("prior", prior_low), ("observations", obs)) if values is None]
    caption += f"Not given: {', '.join(absent)}. " if absent else ""
    caption += f"{len(shown)} of {mean.shape[1]} variables are drawn. " if len(shown) < mean.shape[1] else ""
    return Plot(window["title"], caption.strip(), f"Time series of {', '.join(names[i] for i in shown)}. {caption}".strip(), figure)


def _optional(window: dict[str, Any], key: str, place: str) -> np.ndarray | None:
    return None if window.get(key) is None else array(window, key, 2, place)


def _observations(window: dict[str, Any], count: int, place: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    if window.get("obs") is None:
        return None, None
    obs_time, obs = array(window, "obs_time", 1, place), array(window, "obs", 2, place)
    if obs.shape != (len(obs_time), count):
        raise Missing(f"{place}.obs has shape {obs.shape}, expected {(len(obs_time), count)} with null where nothing was observed")
    return obs_time, obs


def scatter(window: dict[str, Any]) -> Plot:
    """Posterior draws of two parameters beside reference draws, on the same axes."""
    place = f"window {window['title']!r}"
    draws = array(window, "draws", 2, place)
    reference = _optional(window, "reference", place)
    truth = array(window, "truth", 1, place) if window.get("truth") is not None else None
    for name, values in (("draws", draws), ("reference", reference)):
        if values is not None and values.shape[1] != 2:
            raise Missing(f"{place}.{name} has {values.shape[1]} columns, expected 2")
    if truth is not None and truth.shape != (2,):
        raise Missing(f"{place}.truth has shape {truth.shape}, expected (2,)")
    names = names_of(window, 2, "parameter")
    groups = [(f"posterior ({len(draws)} draws)", draws, BLUE)]
    if reference is not None:
        groups.append((f"reference ({len(reference)} draws)", reference, ORANGE))
    figure, axes = canvas(1, 2, 3.9, sharex=True, sharey=True)
    for axis in axes[len(groups) :]:
        axis.set_visible(False)
    for axis, (title, points, colour) in zip(axes, groups, strict=False):
        axis.plot(points[:, 0], points[:, 1], "o", color=colour, alpha=0.5, markersize=2.5, markeredgewidth=0)
        if truth is not None:
            axis.plot(truth[0], truth[1], "+", color="black", markersize=12, markeredgewidth=2, label="truth")
            axis.legend(loc="best")
        axis.set(title=title, xlabel=names[0])
    axes[0].set_ylabel(names[1])
    caption = f"Draws of {names[0]} and {names[1]} for one observation"
    caption += "; no reference draws were given." if reference is None else ", beside reference draws: the two clouds should look alike."
    return Plot(window["title"], caption, f"Scatter plot. {caption}", figure)
