"""How every figure of the report looks, and how it becomes a deterministic piece of SVG: same numbers in, same bytes out.

Figures are `matplotlib.figure.Figure` objects drawn without pyplot, so that nothing global is left behind. Text stays text (small files,
readable by a screen reader), and names that users bring are never parsed as mathematics.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

# Okabe & Ito (2008): distinguishable with every common colour-vision deficiency
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C8C8C"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, "#000000")
BAND = "#C9D6E2"
DARK_RED = "#A63C00"  # the same hue, dark enough for text
WIDTH = 7.6

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vardax_flax",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "path.simplify": True,
    "path.simplify_threshold": 0.3,
    "lines.linewidth": 1.5,
}


class Missing(ValueError):
    """The data of a figure are not there: the figure is left out and the report says why."""


class Plot(NamedTuple):
    """A figure with what is said about it: a title, a caption for everybody and an alternative text for those who cannot see it."""

    title: str
    caption: str
    alt: str
    figure: Figure


class Drawing(NamedTuple):
    """A `Plot` whose figure has become an inline `<svg>` element."""

    title: str
    caption: str
    alt: str
    svg: str


@contextmanager
def house_style() -> Iterator[None]:
    """Draw inside the report's style, independently of the user's matplotlib settings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's browser has the glyph
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            yield


def canvas(rows: int, columns: int, height: float, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """A figure of fixed width with `rows × columns` axes, returned as a flat list."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **kwargs).ravel())


def to_drawing(plot: Plot) -> Drawing:
    """Inline SVG without prolog, metadata, link, document-wide style or clashing identifiers."""
    buffer = io.StringIO()
    plot.figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # matplotlib's only style sheet sets line joins for every element: as inline SVG it would leak into the page
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*</defs>", "", text)
    text = re.sub(r"<g id=\"[^\"]*\"", "<g", text)
    text = re.sub(r"<(?:path|use)\b[^>]*>", lambda tag: re.sub(r"-?\d+\.\d{3,}", _rounded, tag.group()), text)
    box = re.search(r"viewBox=\"[^\"]*\"", text)
    assert box is not None
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box.group()} role="img" '
    head += f'aria-label="{escape(plot.alt)}" stroke-linejoin="round">'
    text = head + text[text.index(">") + 1 :]
    text = re.sub(r"\n\s*", "\n", text)
    text = re.sub(r"<g clip-path=\"([^\"]*)\">\n((?:<use [^>]*/>\n)+)</g>", _share_style, text)
    return Drawing(plot.title, plot.caption, plot.alt, text.strip())


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number.group()):.2f}".rstrip("0").rstrip(".")


def _share_style(group: re.Match[str]) -> str:
    """Markers of one series repeat their style: say it once."""
    styles = set(re.findall(r" style=\"([^\"]*)\"", group.group(2)))
    if len(styles) != 1:
        return group.group()
    return f'<g clip-path="{group.group(1)}" style="{styles.pop()}">\n' + re.sub(r" style=\"[^\"]*\"", "", group.group(2)) + "</g>"


def array(source: Any, key: str, ndim: int, place: str) -> np.ndarray:
    """`source[key]` as a float array (null is NaN) of `ndim` axes, or `Missing` with the reason."""
    if source.get(key) is None:
        raise Missing(f"{place} has no `{key}`")
    try:
        values = np.array(source[key], dtype=float)
    except (TypeError, ValueError) as error:
        raise Missing(f"{place}.{key} is no rectangular array of numbers") from error
    if values.ndim != ndim or values.size == 0:
        raise Missing(f"{place}.{key} has shape {values.shape}, expected {ndim} non-empty axes")
    return values


def same_shape(expected: np.ndarray, place: str, **arrays: np.ndarray | None) -> None:
    """`Missing` if an array that is there has another shape than `expected`."""
    for name, values in arrays.items():
        if values is not None and values.shape != expected.shape:
            raise Missing(f"{place}.{name} has shape {values.shape}, expected {expected.shape}")


def names_of(source: Any, count: int, prefix: str) -> list[str]:
    """The names of `count` components, shortened to fit a panel; numbered if there are none."""
    names = source.get("names")
    if not isinstance(names, list) or len(names) != count:
        return [f"{prefix} {i}" for i in range(count)]
    return [name if len(name) <= 28 else name[:27] + "…" for name in map(str, names)]


def evenly(count: int, limit: int) -> list[int]:
    """At most `limit` indices evenly spread over `range(count)`."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int))]


def plain_ticks(axis: Any) -> None:
    """Tick labels as plain numbers also on logarithmic axes, whose default labels are mathematics."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def listing(items: list[str], limit: int = 4) -> str:
    """`a, b, c and 3 more`."""
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")
