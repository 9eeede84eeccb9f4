"""From results to report.json, and from report.json alone to report.md and report.html; the same JSON gives the same bytes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from vardax_flax.report.figures import draw_all
from vardax_flax.report.gates import diagnosis
from vardax_flax.report.schema import ReportError, Results, check

_ADVICE = (
    (("sbc", "simulation_based"), "look at the rank histograms; train longer, on more simulations or with a richer head."),
    (("coverage",), "look at the coverage figure; train longer, on more simulations or with a richer head."),
    (("adjoint",), "train with a term on the Jacobian of the solution, or replace the approximate adjoint by an exact one."),
    (("agreement",), "check the oracle on the same events first, then train longer, or use a head with full covariance."),
    (("psis", "importance"), "do not use importance weights of this posterior; train further, or add heavier tails to it."),
    (("forward",), "train the emulator on more states, or use the physics itself."),
)


def write_report(results: Mapping[str, Any], out_dir: Path | str) -> Path:
    """Check `results`, write `report.json`, and render `report.md` and `report.html` beside it.

    Args:
        results: what `schema.Results` declares; arrays may be NumPy or JAX arrays, non-finite numbers become null.
        out_dir: directory to write into; made if it is not there.

    Returns:
        Path of `report.html`, one self-contained file.

    Raises:
        ReportError: results that do not follow the schema; nothing is written then.

    Example:
        >>> page = write_report(results, "runs/demo")
        >>> page.name
        'report.html'
    """
    text = json.dumps(check(results), ensure_ascii=False, allow_nan=False) + "\n"
    path = Path(out_dir) / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return render(path)


def render(report_json_path: Path | str) -> Path:
    """Rebuild `report.md` and `report.html` beside a `report.json`, byte for byte as `write_report` made them.

    Args:
        report_json_path: a file written by `write_report`.

    Returns:
        Path of `report.html`.

    Raises:
        ReportError: no file, no JSON, or another schema.

    Example:
        >>> page = render("runs/demo/report.json")
    """
    path = Path(report_json_path)
    results = check(_load(path))
    context = _context(results)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vardax_flax.report", "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=lambda name: name is not None and ".html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, md=_markdown)
    for name in ("report.md", "report.html"):
        page = environment.get_template(f"{name}.j2").render(context)
        (path.parent / name).write_text(page.rstrip("\n") + "\n", encoding="utf-8")
    return path.parent / "report.html"


def _load(path: Path) -> Any:
    def refuse(literal: str) -> Any:
        raise ReportError(f"expected JSON numbers in {path}, got {literal}; do write the report again")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except FileNotFoundError as error:
        raise ReportError(f"expected a report at {path}, got no file; do run the evaluation first") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ReportError(f"expected JSON in {path}, got {error}; do run the evaluation again") from error


def _context(results: Results) -> dict[str, Any]:
    """What the templates print: the results, and what is computed from them."""
    drawings, left_out = draw_all(dict(results))
    gates = [{"statistic": None, "bound": None, "p_value": None, **gate, "verdict": _verdict_of(dict(gate))} for gate in results["gates"]]
    return {
        "title": results["title"],
        "verdict": results["verdict"],
        "run": {"seed": None, "parameters": None, **results["run"]},
        "gates": gates,
        "failures": [_failure(dict(gate)) for gate in results["gates"] if gate["passed"] is False],
        "skipped": [gate for gate in results["gates"] if gate.get("skipped")],
        "figures": drawings,
        "left_out": left_out,
        "tables": [{"note": None, **table, "numeric": _numeric_columns(dict(table))} for table in results.get("tables", [])],
        "config": list(_flatten(results["run"]["config"])),
        "versions": sorted(results.get("versions", {}).items()),
        "timings": [{"note": None, **timing} for timing in results.get("timings", [])],
        "notes": results.get("notes", []),
        "schema_version": results["schema_version"],
    }


def _verdict_of(gate: dict[str, Any]) -> str:
    if gate.get("skipped"):
        return "skipped"
    if gate.get("details", {}).get("inconclusive"):
        return "inconclusive"
    return {True: "passed", False: "failed", None: "no verdict"}[gate["passed"]]


def _failure(gate: dict[str, Any]) -> dict[str, str]:
    """Why a gate failed and what to do: its own words where it has them, else the usual remedy."""
    details = gate.get("details", {})
    usual = next((text for words, text in _ADVICE if any(word in gate["name"].lower() for word in words)), "see the gate's summary.")
    why = str(gate["summary"])
    for text in (details.get("worst"), diagnosis({"details": {}, **gate})):
        why += f"; {text}" if text and str(text) not in why else ""
    return {"name": gate["name"], "why": why, "do": str(details.get("do") or usual)}


def _numeric_columns(table: dict[str, Any]) -> list[bool]:
    """Which columns hold numbers only (or nothing): they are aligned to the right."""
    columns = [[row[i] for row in table["rows"] if i < len(row) and row[i] is not None] for i in range(len(table["columns"]))]
    return [bool(cells) and all(isinstance(cell, (int, float)) and not isinstance(cell, bool) for cell in cells) for cells in columns]


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """`{"head": {"kind": "flow"}}` → `("head.kind", "flow")`."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def number(value: Any) -> str:
    """Four significant digits for a measured number, digits in groups for an integer, a dash for nothing.

    Example:
        >>> number(0.123456), number(12345), number(None)
        ('0.1235', '12,345', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{int(value):,}" if value.is_integer() and 1e4 <= abs(value) < 1e15 else f"{value:.4g}" if math.isfinite(value) else "–"
    return str(value)


def _markdown(text: Any) -> str:
    """Text that Markdown shows as it is, on one line; `<` becomes an entity so that no HTML gets through."""
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
