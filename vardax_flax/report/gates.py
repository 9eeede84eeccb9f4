"""The figures that show why a gate passed or failed: rank histograms, ECDF differences, coverage, agreement with an oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import binom

from vardax_flax.report.style import (
    BAND,
    BLUE,
    CYCLE,
    DARK_RED,
    GREY,
    ORANGE,
    RED,
    Missing,
    Plot,
    array,
    canvas,
    evenly,
    listing,
    names_of,
    plain_ticks,
    same_shape,
)

MAX_PANELS = 12
MAX_CURVES = 40


def failing(details: dict[str, Any], count: int) -> list[bool]:
    """Which hypotheses the gate rejects: an adjusted p-value at or below its level."""
    values, level = details.get("p_holm"), details.get("level")
    if not isinstance(values, list) or len(values) != count:
        return [False] * count
    return [p is not None and p <= (0.05 if level is None else level) for p in values]


def _shapes(details: dict[str, Any], m: int) -> list[str]:
    """What the gate says of each quantity's ranks, if it does."""
    words = details.get("shapes")
    return [str(word) for word in words] if isinstance(words, list) and len(words) == m else [""] * m


def _ranks(gate: dict[str, Any]) -> tuple[np.ndarray, int, list[str], list[bool]]:
    """Ranks of the runs that did not fail, L, names and rejections."""
    details, place = gate["details"], f"gate {gate['name']!r}: details"
    ranks = array(details, "ranks", 2, place)
    n_samples = details.get("n_samples")
    if not isinstance(n_samples, int) or n_samples < 1:
        raise Missing(f"{place} has no `n_samples`")
    ranks = ranks[(ranks >= 0).all(axis=1)]
    if ranks.size == 0 or ranks.max() > n_samples:
        raise Missing(f"{place}.ranks are not within 0 … {n_samples}")
    return ranks, n_samples, names_of(details, ranks.shape[1], "quantity"), failing(details, ranks.shape[1])


def _remarks(details: dict[str, Any]) -> str:
    """What the figure does not show: failed runs, quantities that were not tested, how much the observations tell."""
    text = f" {details['n_failed']} runs with non-finite draws are not drawn and fail the gate." if details.get("n_failed") else ""
    summary = details.get("contraction_summary")
    if isinstance(summary, dict) and None not in (summary.get("median"), summary.get("p05"), summary.get("p95")):
        text += f" The observations remove {100 * summary['median']:.0f} % of the prior variance "
        text += f"(median; 5–95 %: {100 * summary['p05']:.0f} to {100 * summary['p95']:.0f} %)."
    untested = details.get("skipped_quantities")
    if isinstance(untested, dict) and untested:
        text += f" Not tested: {'; '.join(f'{name} ({reason})' for name, reason in untested.items())}."
    return text


def _band(details: dict[str, Any], key: str, grid: np.ndarray, place: str) -> tuple[np.ndarray, np.ndarray]:
    band = details.get(key)
    if not isinstance(band, dict):
        raise Missing(f"{place} has no `{key}`")
    lower, upper = (array(band, side, 1, f"{place}.{key}") for side in ("lower", "upper"))
    same_shape(grid, f"{place}.{key}", lower=lower, upper=upper)
    return lower, upper


def diagnosis(gate: dict[str, Any]) -> str:
    """`x0: draws too narrow, …` for the failing quantities of a rank gate; empty where there are no ranks."""
    try:
        ranks, n_samples, names, failed = _ranks(gate)
    except (Missing, KeyError):
        return ""
    shapes = _shapes(gate["details"], len(names))
    return listing([f"{names[i]}: {shapes[i]}" if shapes[i] else names[i] for i in range(len(names)) if failed[i]])


def _bins(n_runs: int, n_samples: int) -> np.ndarray:
    """Integer bin edges in 0 … L + 1, equally wide where L + 1 has a fitting divisor, with about ten expected counts or more a bin."""
    limit = max(4, min(20, n_runs // 10))
    divisors = [b for b in range(5, limit + 1) if (n_samples + 1) % b == 0]
    count = divisors[-1] if divisors else min(limit, n_samples + 1)
    return np.linspace(0, n_samples + 1, count + 1).round().astype(int)


def rank_histograms(gate: dict[str, Any]) -> Plot:
    """Histogram of the ranks of every test quantity, relative to the uniform one, with the pointwise 99 % binomial band."""
    ranks, n_samples, names, failed = _ranks(gate)
    n_runs, m = ranks.shape
    shapes = _shapes(gate["details"], m)
    shown = sorted(sorted(range(m), key=lambda i: not failed[i])[:MAX_PANELS])
    edges = _bins(n_runs, n_samples)
    share = np.diff(edges) / (n_samples + 1)
    low, high = (np.array(side) / (n_runs * share) for side in binom.interval(0.99, n_runs, share))
    heights = {i: np.histogram(ranks[:, i], bins=edges - 0.5)[0] / (n_runs * share) for i in shown}
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure, axes = canvas(rows, columns, 0.6 + 1.65 * rows, sharex=True, sharey=True)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    for position, (axis, i) in enumerate(zip(axes, shown, strict=False)):
        axis.stairs(high, edges, baseline=low, fill=True, color=BAND)
        axis.stairs(heights[i], edges, color=RED if failed[i] else BLUE, linewidth=1.5)
        axis.axhline(1.0, color=GREY, linewidth=0.8)
        title = f"✗ {names[i]}\n{shapes[i]}".rstrip() if failed[i] else names[i]
        axis.set_title(title, color=DARK_RED if failed[i] else "black", fontsize=9)
        axis.set(xlim=(0, n_samples + 1), xticks=[0, (n_samples + 1) / 2, n_samples + 1])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.tick_params(labelbottom=position + columns >= len(shown))
    axes[0].set_ylim(0, 1.08 * max(high.max(), *(values.max() for values in heights.values())))
    figure.supxlabel(f"rank of the truth among {n_samples} draws", fontsize=10)
    figure.supylabel("frequency ÷ expected", fontsize=10)
    bad = [names[i] for i in range(m) if failed[i]]
    caption = f"Ranks over {n_runs} simulated cases, in {len(share)} bins. A posterior that is right gives flat histograms, "
    caption += "with 99 % of the bars in the band; ∪ means too narrow, ∩ too wide, a slope a bias. "
    caption += f"{len(bad)} of {m} quantities reject: {listing(bad)}." if bad else f"None of the {m} quantities rejects."
    caption += f" {m - len(shown)} of them are not drawn, failing ones come first." if len(shown) < m else ""
    caption += _remarks(gate["details"])
    return Plot(f"{gate['name']}: rank histograms", caption, f"Rank histograms of {len(shown)} quantities. {caption}", figure)


def ecdf_difference(gate: dict[str, Any]) -> Plot:
    """Empirical minus uniform distribution function of the ranks of all quantities, in the simultaneous band of one of them."""
    ranks, n_samples, names, failed = _ranks(gate)
    details, place = gate["details"], f"gate {gate['name']!r}: details"
    z = array(details, "z", 1, place)
    single = _band(details, "band", z, place)
    lower, upper = _band(details, "band_familywise", z, place) if details.get("band_familywise") is not None else single
    n_runs, m = ranks.shape
    ecdf = np.stack([np.searchsorted(np.sort(column), z * (n_samples + 1) - 0.5) for column in ranks.T], axis=1) / n_runs
    figure, (axis,) = canvas(1, 1, 3.6)
    axis.fill_between(z, lower - z, upper - z, color=BAND, step="mid", label=f"band of all {m}", linewidth=0)
    for side in single:
        axis.step(z, side - z, where="mid", color=GREY, linewidth=1, linestyle=":", label="band of one" if side is single[0] else None)
    axis.axhline(0.0, color=GREY, linewidth=0.8)
    good = [i for i in range(m) if not failed[i]]
    bad = [i for i in range(m) if failed[i]]
    for order, i in enumerate(good[:MAX_CURVES]):
        few = len(good) <= 2 * len(CYCLE)
        label = names[i] if few else (f"{len(good)} others" if bad else f"{len(good)} quantities") if order == 0 else None
        style = {"color": CYCLE[order % len(CYCLE)], "linestyle": "-" if order < len(CYCLE) else "--"} if few else {"color": GREY}
        axis.plot(z, ecdf[:, i] - z, linewidth=1.1, label=label, **style)  # type: ignore[arg-type]
    for order, i in enumerate(bad[:MAX_CURVES]):
        label = f"✗ {names[i]}" if order < 8 else None
        axis.plot(z, ecdf[:, i] - z, color=RED, linewidth=2.2, linestyle=("-", "--", ":", "-.")[order % 4], label=label)
    axis.set_xlabel("rank ÷ (number of draws + 1)")
    axis.set_ylabel("ECDF − uniform")
    axis.set_xlim(0, 1)
    figure.legend(loc="outside right upper")
    caption = f"How far the distribution of the ranks lies from uniform ({n_runs} cases, {n_samples} draws), with the simultaneous band "
    caption += f"that all curves of a right posterior stay in with probability {1 - (details.get('level') or 0.05):.0%}. "
    caption += f"Failing: {listing([names[i] for i in bad])}." if bad else "No quantity rejects."
    caption += f" At most {MAX_CURVES} curves of either kind are drawn." if max(len(good), len(bad)) > MAX_CURVES else ""
    return Plot(f"{gate['name']}: ECDF difference", caption, f"Differences of {m} empirical distribution functions. {caption}", figure)


def coverage(gate: dict[str, Any]) -> Plot:
    """Empirical minus nominal coverage of central intervals (every component) and of highest-density regions."""
    details, place = gate["details"], f"gate {gate['name']!r}: details.sets"
    sets = details.get("sets")
    if not isinstance(sets, dict) or not all(isinstance(item, dict) for item in sets.values()) or not sets:
        raise Missing(f"gate {gate['name']!r}: details has no `sets`")
    failed = dict(zip(sets, failing(details, len(sets)), strict=True))
    curves = {}
    for name, item in sets.items():
        nominal, empirical = (array(item, key, 1, f"{place}[{name!r}]") for key in ("nominal", "empirical"))
        same_shape(nominal, f"{place}[{name!r}]", empirical=empirical)
        key = "band_familywise" if item.get("band_familywise") is not None else "band"
        curves[name] = np.stack([nominal, empirical, *_band(item, key, nominal, f"{place}[{name!r}]")])
    central = [name for name in sets if name.startswith("central")]
    panels = {"central intervals": central, "highest-density regions": [name for name in sets if name not in central]}
    panels = {title: members for title, members in panels.items() if members}
    figure, axes = canvas(1, len(panels), 3.7, sharey=True)
    for axis, (title, members) in zip(axes, panels.items(), strict=True):
        nominal, _, lower, upper = curves[members[0]]
        axis.fill_between(nominal, 100 * (lower - nominal), 100 * (upper - nominal), color=BAND, label="simultaneous band", linewidth=0)
        axis.axhline(0.0, color=GREY, linewidth=0.8)
        _coverage_curves(axis, curves, [m for m in members if not failed[m]], [m for m in members if failed[m]])
        axis.set(title=title, xlabel="nominal coverage", xlim=(0, 1))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=8, ncols=2)
    axes[0].set_ylabel("empirical − nominal\n(percentage points)")
    gaps = {name: float(c[1, i] - c[0, i]) for name, c in curves.items() for i in [np.nanargmax(np.abs(c[1] - c[0]))]}
    worst = max(gaps, key=lambda name: abs(gaps[name]))
    caption = "How often the truth lies in regions of a given posterior probability. Below zero the posterior is too narrow or biased, "
    caption += f"above it too wide. The largest departure is {100 * gaps[worst]:+.1f} percentage points ({worst})."
    caption += "" if len(panels) == 2 else f" Only {next(iter(panels))} were tested."
    caption += _remarks(details)
    return Plot(f"{gate['name']}: empirical against nominal", caption, caption, figure)


def _coverage_curves(axis: Any, curves: dict[str, np.ndarray], good: list[str], bad: list[str]) -> None:
    few = len(good) <= 4
    for order, name in enumerate(good[i] for i in evenly(len(good), MAX_CURVES)):
        label = name.removeprefix("central ") if few else f"{len(good)} not rejected" if order == 0 else None
        nominal, empirical = curves[name][:2]
        colour = CYCLE[order] if few else GREY
        axis.plot(nominal, 100 * (empirical - nominal), color=colour, linewidth=1.2, marker="o", markersize=2.5, label=label)
    for order, name in enumerate(bad[i] for i in evenly(len(bad), MAX_CURVES)):
        label = f"✗ {name.removeprefix('central ')}" if order < 5 else f"✗ {len(bad) - 5} more" if order == 5 else None
        nominal, empirical = curves[name][:2]
        axis.plot(nominal, 100 * (empirical - nominal), color=RED, linewidth=2, linestyle=("-", "--", ":", "-.")[order % 4], label=label)


def agreement(gate: dict[str, Any]) -> Plot:
    """Distance of the fast posterior from the oracle: |z| of the means over events × components, and the ratio of spreads."""
    details, place = gate["details"], f"gate {gate['name']!r}: details"
    z = np.abs(array(details, "z", 2, place))
    ratio = array(details, "spread_ratio", 2, place)
    if ratio.shape[1] != z.shape[1]:
        raise Missing(f"{place}.spread_ratio has {ratio.shape[1]} components, `z` has {z.shape[1]}")
    finite = z[np.isfinite(z)]
    positive = np.where(ratio > 0, ratio, np.nan)
    if finite.size == 0 or not np.isfinite(positive).any():
        raise Missing(f"{place}.z or spread_ratio has no usable number")
    tolerance = float(details.get("tolerance_sigma") or 1.0)
    bound = float(details.get("spread_ratio_bound") or 2.0)
    figure, (left, right) = canvas(1, 2, 3.3)
    top = max(2 * tolerance, float(np.quantile(finite, 0.995)))
    edges = np.linspace(0, top, 31)
    left.stairs(100 * np.histogram(np.minimum(finite, top), bins=edges)[0] / finite.size, edges, fill=True, color=BLUE)
    left.axvline(tolerance, color=RED, linestyle="--", label=f"tolerance {tolerance:g}" if details.get("tolerance_sigma") else "one sd")
    left.set(xlabel="|difference of means| ÷ oracle's sd", ylabel="share of events × components (%)", xlim=(0, top))
    left.legend()
    components = evenly(z.shape[1], 12)
    names = names_of(details, z.shape[1], "component")
    middle = np.nanquantile(positive[:, components], [0.05, 0.5, 0.95], axis=0)
    position = np.arange(len(components))
    right.axvspan(1 / bound, bound, color=BAND, label=f"{'allowed: ' if details.get('spread_ratio_bound') else ''}1/{bound:g} … {bound:g}")
    right.axvline(1.0, color=GREY, linewidth=0.8)
    right.hlines(position, middle[0], middle[2], color=ORANGE, linewidth=2.5)
    right.plot(middle[1], position, "o", color="black", markersize=4, label="median, 5–95 % of events")
    right.set(xscale="log", xlabel="spread ÷ oracle's spread", yticks=position, yticklabels=[names[i] for i in components])
    right.set_ylim(len(components) - 0.5, -0.5)
    ends = [min(1 / bound, float(np.nanmin(middle))) / 1.15, max(bound, float(np.nanmax(middle))) * 1.15]
    right.set(xlim=ends, xticks=[t for t in (0.01, 0.1, 0.25, 0.5, 1, 2, 4, 10, 100) if ends[0] <= t <= ends[1]])
    plain_ticks(right.xaxis)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    beyond = 100 * float(np.mean(finite > tolerance))
    caption = f"Against the oracle on {z.shape[0]} events: the median distance of the means is {np.median(finite):.2f} of the oracle's "
    caption += f"standard deviations, {beyond:.1f} % lie beyond {tolerance:g}; the median spread ratio is {np.nanmedian(positive):.2f}."
    caption += f" Distances above {top:.2g} are counted in the last bar." if finite.max() > top else ""
    caption += f" {len(components)} of {z.shape[1]} components are drawn." if len(components) < z.shape[1] else ""
    lost = z.size - finite.size + int(np.isnan(positive).sum())
    caption += f" Values missing or not positive: {lost}." if lost else ""
    return Plot(f"{gate['name']}: means and spreads", caption, caption, figure)


def ensemble_ranks(gate: dict[str, Any]) -> Plot:
    """Rank histogram of the truth in an ensemble, relative to the uniform one (no band: neighbours are not independent)."""
    details, place = gate["details"], f"gate {gate['name']!r}: details"
    counts = array(details, "rank_histogram", 1, place)
    if not counts.sum() >= 50:
        raise Missing(f"{place}.rank_histogram has only {counts.sum():g} values, expected 50 or more")
    edges = np.linspace(0, counts.size, min(counts.size, 50, int(counts.sum()) // 10) + 1).round().astype(int)
    relative = np.add.reduceat(counts, edges[:-1]) / np.diff(edges) / counts.mean()
    figure, (axis,) = canvas(1, 1, 2.6)
    axis.stairs(relative, edges, fill=True, color=BLUE)
    axis.axhline(1.0, color=GREY, linewidth=0.8)
    axis.set(xlabel=f"rank of the truth among {counts.size - 1} members", ylabel="frequency ÷ expected", xlim=(0, counts.size))
    caption = f"Ranks of {int(counts.sum())} true values among the members; flat is right, ∪ means too little spread, ∩ too much. "
    caption += "No band is drawn, because neighbouring values are not independent."
    return Plot(f"{gate['name']}: rank histogram", caption, caption, figure)
