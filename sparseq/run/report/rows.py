"""The variants as rows of a table, on the terminal and in a report."""

from __future__ import annotations

from typing import Any, Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from sparseq.run.report.findings import Findings
from sparseq.run.results import Results, Variant

__all__ = ["COLUMNS", "cells", "note", "table", "title"]

COLUMNS = (
    "variant", "accuracy %", "drop", "ms/image", "speed-up", "MB", "zeros %", "params",
    "threads", "p95 ms", "p99 ms", "times smaller", "million MACs",
)  # fmt: skip
"""Of a report; the first nine are those of the terminal too."""

_ON_THE_TERMINAL = 9


def title(results: Results) -> str:
    """Return the heading: the model, where the recipe names it, on the data."""
    model: Any = results.recipe.get("model")
    if isinstance(model, dict):
        model = model.get("name")
    return f"{model or results.recipe.get('name') or 'Exercise'} on {results.data}"


def cells(variant: Variant, baseline: Variant) -> tuple[str, ...]:
    """Return a variant's row, as `COLUMNS` names it."""
    spread = f"±{variant.spread:.2f}" if len(variant.runs) > 1 else ""
    return (
        variant.name,
        f"{variant.accuracy:.2f}{spread}",
        f"{variant.drop:+.2f}",
        f"{variant.ms_per_image:.3f}",
        f"{variant.speedup:.2f}x",
        f"{variant.size_mb:.3f}",
        f"{variant.sparsity:.1f}",
        f"{variant.parameters:,}",
        str(variant.threads),
        f"{variant.p95_ms:.3f}",
        f"{variant.p99_ms:.3f}",
        f"{baseline.size_mb / variant.size_mb:.1f}x",
        "-" if variant.macs is None else f"{variant.macs / 1e6:,.1f}",
    )


def note(variant: Variant, results: Results, findings: Findings) -> str:
    """Return what a reader of the table should know of a variant, in a few words."""
    said = []
    if variant is findings.best:
        said.append("deploy this")
    if variant is findings.runner_up:
        said.append("runner-up")
    if not variant.drop < results.limit:
        said.append("loses too much")
    if variant.name in findings.dominated:
        said.append("dominated")
    return ", ".join(said)


def table(results: Results) -> Table:
    """Return the result as a table for the terminal, the best variant in bold.

    A drop in red is beyond the limit.
    """
    out = Table(
        title=escape(title(results)),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in COLUMNS[:_ON_THE_TERMINAL]:
        justify: Literal["left", "right"] = "left" if name == "variant" else "right"
        # Broken headings, so that the table fits into 80 columns.
        for mark in " -/":
            name = name.replace(mark, f"{mark}\n".lstrip(" "))
        out.add_column(name, justify=justify, no_wrap=True)
    for variant in results.variants:
        row = [escape(cell) for cell in cells(variant, results.variants[0])[:_ON_THE_TERMINAL]]
        if not variant.drop < results.limit:
            row[2] = f"[red]{row[2]}"
        out.add_row(*row, style="bold green" if variant.name == results.best.name else "")
    return out
