"""Results → report.json → report.md and report.html: reads results only, never a model.

The rebuild needs neither JAX nor a GPU: `render("runs/demo/report.json")`.
"""

from vardax_flax.report.render import render, write_report
from vardax_flax.report.schema import SCHEMA_VERSION, ReportError, Results, check

__all__ = ["SCHEMA_VERSION", "ReportError", "Results", "check", "render", "write_report"]
