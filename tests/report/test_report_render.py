"""The pages: self-contained, escaped, byte for byte the same, and never silent about what is missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

import vardax_flax.report.figures as figures
from tests.slow import mostly_slow
from vardax_flax.report import check, render, write_report
from vardax_flax.report.gates import diagnosis

TITLES = [
    "sbc: rank histograms",
    "sbc: ECDF difference",
    "coverage: empirical against nominal",
    "posterior_agreement: means and spreads",
    "ensemble: rank histogram",
    "Training: loss",
    "Window 3: Lorenz-63",
    "Two moons",
]


class _Page(HTMLParser):
    """Tags and their attributes, and that every tag that is opened is closed."""

    VOID = {"meta", "br", "link", "img", "hr", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _html(results: dict[str, Any], directory: Path) -> str:
    return write_report(results, directory).read_text(encoding="utf-8")


def test_a_full_report_draws_every_figure_in_order(written: dict[str, bytes]) -> None:
    html = written["report.html"].decode()
    page = _Page(html)
    assert re.findall(r"<figcaption><strong>\d+\. (.*?)\.</strong>", html) == TITLES
    assert "Figures left out" not in html
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert len(labels) == len(TITLES) and all(labels)
    assert all(attrs.get("role") == "img" for tag, attrs in page.tags if tag == "svg")
    assert len(written["report.html"]) < 2**19 and len(written["report.md"]) < 2**14
    sections = ("✗ Failed", "What failed, and what to do", "<h2>Gates", "<h2>Figures", "<h2>Error against", "<h2>Run")
    order = [html.index(text) for text in sections]
    assert order == sorted(order) and order[-1] < html.index("<h2>Versions") < html.index("<h2>Timings") < html.index("<h2>Notes")


def test_the_page_is_self_contained(written: dict[str, bytes]) -> None:
    html = written["report.html"].decode()
    namespaces = re.sub(r'xmlns(:\w+)?="http://www\.w3\.org/[^"]*"', "", html)
    assert "http" not in namespaces.replace("http-equiv", "")
    page = _Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    links = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("href", "src", "xlink:href")]
    identifiers = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert links and all(value and value[0] == "#" and value[1:] in identifiers for value in links)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in html


def test_rebuilding_gives_the_same_bytes(written: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(written["report.json"])
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True}):  # the user's settings do not reach the report
        render(tmp_path / "report.json")
        assert matplotlib.rcParams["font.size"] == 20  # nor the report's the user
    assert {name: (tmp_path / name).read_bytes() for name in written} == written
    assert not re.search(r"\b(NaN|Infinity)\b", written["report.json"].decode())


def test_rebuilding_needs_no_jax(written: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(written["report.json"])
    package = Path(figures.__file__).parents[1]
    # the room alone: whatever the top-level package imports for convenience is not its business
    code = f"""
import sys, types
sys.modules.update(dict.fromkeys(("jax", "flax", "optax"), None))
parent = types.ModuleType("vardax_flax"); parent.__path__ = [{str(package)!r}]
sys.modules["vardax_flax"] = parent
from vardax_flax.report import render
render({str(tmp_path / "report.json")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert {name: (tmp_path / name).read_bytes() for name in written} == written


def test_nothing_a_user_writes_becomes_markup(results: dict[str, Any], tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>\"' onload=x $\\frac{"
    results["title"] = attack
    results["run"]["config"][attack] = attack
    results["run"]["command"] = attack
    results["tables"][0]["columns"][0] = results["tables"][0]["rows"][0][0] = attack
    results["gates"][0]["summary"] = attack
    for target in (results["gates"][0]["details"], results["gates"][2]["details"], *results["windows"]):
        target["names"] = [attack, *target["names"][1:]]
        target["title"] = attack
    html = _html(results, tmp_path)
    page = _Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert html.count("&lt;script&gt;") >= 10
    assert "<script" not in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("gate", "key", "value", "reason"),
    [
        (0, "ranks", None, "sbc: rank histograms: gate 'sbc': details has no `ranks`."),
        (0, "n_samples", None, "sbc: ECDF difference: gate 'sbc': details has no `n_samples`."),
        (0, "band", None, "sbc: ECDF difference: gate 'sbc': details has no `band`."),
        (0, "z", [0.1, 0.2], "sbc: ECDF difference: gate 'sbc': details.band.lower has shape (99,), expected (2,)."),
        (0, "ranks", [[1, 2], [3]], "sbc: rank histograms: gate 'sbc': details.ranks is no rectangular array of numbers."),
        (0, "ranks", [[100.0]], "sbc: rank histograms: gate 'sbc': details.ranks are not within 0 … 99."),
        (1, "sets", None, "coverage: empirical against nominal: gate 'coverage': details has no `sets`."),
        (2, "spread_ratio", None, "gate 'posterior_agreement': details has no `spread_ratio`."),
        (2, "z", [[None]], "gate 'posterior_agreement': details.spread_ratio has 3 components, `z` has 1."),
        (5, "rank_histogram", [3, 4], "details.rank_histogram has only 7 values, expected 50 or more."),
        (5, "rank_histogram", None, "ensemble: rank histogram: gate 'ensemble': details has no `rank_histogram`."),
    ],
)
def test_a_figure_without_data_is_left_out_aloud(results: dict[str, Any], gate: int, key: str, value: Any, reason: str) -> None:
    chosen = results["gates"][gate]
    chosen["details"][key] = value
    _, left_out = figures.draw_all(dict(check(results | {"gates": [chosen], "windows": []})))
    assert any(reason in line for line in left_out)


def test_left_out_figures_are_said_in_both_pages(results: dict[str, Any], tmp_path: Path) -> None:
    del results["training"]
    del results["gates"][1]["details"]
    results["windows"][0]["posterior_low"] = results["windows"][0]["posterior_low"][:5]
    html = _html(results, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert html.count("<svg") == len(TITLES) - 3
    assert "Loss curve: the results have no `training` record." in html and "training" in text.split("Figures left out")[1]
    assert "coverage: empirical against nominal: gate &#39;coverage&#39;: details has no `sets`." in html
    assert "posterior_low has shape (5, 3), expected (101, 3)" in html


def test_a_failed_gate_is_explained(results: dict[str, Any], tmp_path: Path) -> None:
    results["windows"] = []
    html = _html(results, tmp_path)
    failures = html.split("What failed, and what to do")[1].split("</section>")[0]
    assert "x[1]: draws too narrow, log p(y | x): draws too low" in failures
    assert "look at the rank histograms" in failures
    results["gates"][0]["details"]["do"] = "buy a telescope"
    results["gates"] = results["gates"][:1] + [results["gates"][3]]
    html = _html(results, tmp_path)
    assert "Do:</span> buy a telescope" in html
    assert "<strong>psis</strong>: the prior has no density" in html
    assert "**✗ FAILED**" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_report_that_passes_says_so(results: dict[str, Any], tmp_path: Path) -> None:
    results.update(gates=results["gates"][1:], windows=[])
    html = _html(results, tmp_path)
    assert "✓ Passed" in html and "What failed" not in html and 'class="verdict passed"' in html
    assert "**✓ PASSED**" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_smallest_report_is_a_page(tmp_path: Path) -> None:
    html = _html({"title": "t", "run": {"preset": "p", "config": {}, "command": "c"}, "gates": []}, tmp_path)
    _Page(html)
    assert "No gate was run." in html and html.count("Not recorded.") == 2


@mostly_slow("shape", [(3, 7, 10), (60, 3, 40)])
def test_large_and_small_results_stay_readable(results: dict[str, Any], shape: tuple[int, int, int], tmp_path: Path) -> None:
    m, n_runs, dim = shape
    rng = np.random.default_rng(1)
    sbc = results["gates"][0]["details"]
    results["gates"][0]["details"] = {"ranks": rng.integers(0, 8, (n_runs, m)), "n_samples": 7, "z": sbc["z"], "band": sbc["band"]}
    results["gates"][2]["details"] = {"z": np.zeros((n_runs, dim)), "spread_ratio": np.full((n_runs, dim), 300.0)}
    window = results["windows"][0]
    for key in ("truth", "posterior_mean", "posterior_low", "posterior_high"):
        window[key] = rng.normal(size=(2000, dim))
    window.update(time=np.arange(2000.0), names=[f"site {i}" for i in range(dim)], obs=None, prior_low=None, prior_high=None)
    results["training"] = {"steps": 1, "loss": [[0, 1e9]]}
    html = _html(results, tmp_path)
    assert "Figures left out" not in html and len(html.encode()) < 2**20
    assert f"6 of {dim} variables are drawn." in html and "Not given: prior, observations." in html
    assert ("48 of them are not drawn" in html) == (m == 60)


def test_further_windows_are_counted(results: dict[str, Any]) -> None:
    window = {"title": "w", "kind": "scatter", "names": ["a", "b"], "draws": [[0.0, 1.0]]}
    drawings, left_out = figures.draw_all(dict(check(results | {"gates": [], "training": None, "windows": [window] * 15})))
    assert len(drawings) == 12
    assert "3 further windows: at most 12 are drawn, all are in report.json." in left_out


def test_captions_state_what_the_numbers_say(results: dict[str, Any], tmp_path: Path) -> None:
    window, z = results["windows"][0], results["gates"][2]["details"]["z"]
    inside = np.mean((window["truth"] >= window["posterior_low"]) & (window["truth"] <= window["posterior_high"]))
    results["gates"][2]["details"]["z"] = np.where(np.arange(256)[:, None] < 64, 3.0, np.zeros_like(z))
    text = _html(results, tmp_path)
    assert f"band at {100 * inside:.0f} % of the times" in text
    assert "25.0 % lie beyond 1;" in text
    sets = results["gates"][1]["details"]["sets"]
    gaps = {name: float(max(item["empirical"] - item["nominal"], key=abs)) for name, item in sets.items()}
    worst = max(gaps, key=lambda name: abs(gaps[name]))
    assert f"The largest departure is {100 * gaps[worst]:+.1f} percentage points ({worst})." in text
    best = results["training"]["validation"][:, 1].min()
    assert f"Best held-out value {best:.4g}" in text


def test_the_shape_of_ranks_is_said(results: dict[str, Any]) -> None:
    gate = results["gates"][0]
    assert diagnosis(gate) == "x[1]: draws too narrow, log p(y | x): draws too low"
    del gate["details"]["shapes"]
    assert diagnosis(gate) == "x[1], log p(y | x)"


def test_report_json_is_the_source(written: dict[str, bytes], tmp_path: Path) -> None:
    stored = json.loads(written["report.json"]) | {"title": "edited", "windows": []}
    stored["verdict"] = {"passed": True, "text": "forged"}
    (tmp_path / "report.json").write_text(json.dumps(stored), encoding="utf-8")
    html = render(tmp_path / "report.json").read_text(encoding="utf-8")
    assert "<h1>edited</h1>" in html and "Two moons" not in html.split("<h2>Figures")[1].split("<h2>")[0]
    assert "✗ Failed" in html and "forged" not in html
