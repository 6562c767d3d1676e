"""What the exercise leaves behind: a table on the screen, report.md, results.json, a chart."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table

from sparseq.files import atomic_path
from sparseq.run import chart
from sparseq.run.deploy import Deployment
from sparseq.run.exercise import Row, Settings

__all__ = ["Results", "table", "write"]

_COLUMNS = (
    "variant",
    "accuracy %",
    "drop",
    "ms/image",
    "speed-up",
    "MB",
    "sparsity %",
    "params",
    "threads",
)


@dataclass(frozen=True)
class Results:
    """All that a report says.

    Attributes:
        data: name and sizes of the data set, one line.
        settings: what decided the result.
        rows: the measured variants, the baseline first.
        losses: mean loss of each epoch, by stage.
        best: the variant to deploy.
        limit: the largest acceptable drop in points.
        environment: where it was measured, from :func:`sparseq.bench.environment`.
        seconds: how long the exercise took.
    """

    data: str
    settings: Settings
    rows: Sequence[Row]
    losses: dict[str, list[float]]
    best: Deployment
    limit: float
    environment: dict[str, str]
    seconds: float


def table(results: Results) -> Table:
    """Return the result as a table for the terminal, the best variant in bold."""
    out = Table(
        title=f"{results.settings.model} on {results.data}",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in _COLUMNS:
        justify: Literal["left", "right"] = "left" if name == "variant" else "right"
        # The unit goes on a second line: the table fits into 80 columns.
        out.add_column(name.replace(" ", "\n"), justify=justify, no_wrap=True)
    for row in results.rows:
        cells = list(_cells(row))
        if not row.drop < results.limit:
            cells[2] = f"[red]{cells[2]}"
        out.add_row(*cells, style="bold green" if row.name == results.best.name else "")
    return out


def write(results: Results, folder: str | os.PathLike[str]) -> list[Path]:
    """Write report.md, results.json and tradeoff.png, each whole or not at all.

    Args:
        results: what to report.
        folder: where; it is made if need be.

    Returns:
        The paths written.

    Raises:
        OSError: the folder or a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("report.md", "results.json", "tradeoff.png")]
    with atomic_path(paths[2]) as temporary:
        chart.draw(
            results.rows,
            temporary,
            title=f"{results.settings.model} on {results.data}",
            limit=results.limit,
        )
    for path, text in zip(paths, (_markdown(results), _json(results)), strict=False):
        with atomic_path(path) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")
    return paths


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.accuracy:.2f}",
        f"{row.drop:+.2f}",
        f"{row.ms_per_image:.3f}",
        f"{row.speedup:.2f}x",
        f"{row.size_mb:.3f}",
        f"{row.sparsity:.1f}",
        f"{row.parameters:,}",
        str(row.threads),
    )


def _json(results: Results) -> str:
    content: dict[str, Any] = {
        "data": results.data,
        "settings": asdict(results.settings),
        "variants": [asdict(row) for row in results.rows],
        "best": asdict(results.best),
        "limit": results.limit,
        "losses": results.losses,
        "environment": results.environment,
        "seconds": results.seconds,
    }
    return json.dumps(content, indent=2) + "\n"


def _markdown(results: Results) -> str:
    best = results.best
    chosen = next(row for row in results.rows if row.name == best.name)
    settings = ", ".join(f"{name} {value}" for name, value in asdict(results.settings).items())
    lines = [
        f"# {results.settings.model} on {results.data}",
        "",
        f"**Deploy {best.name}**: the fastest variant that loses less than {results.limit:g} "
        f"points. {chosen.accuracy:.2f} % ({-chosen.drop:+.2f} points), "
        f"{chosen.ms_per_image:.3f} ms per image ({chosen.speedup:.2f}x the baseline's speed), "
        f"{chosen.size_mb:.3f} MB ({results.rows[0].size_mb / chosen.size_mb:.1f}x smaller).",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|---" + "|---:" * (len(_COLUMNS) - 1) + "|",
        *("| " + " | ".join(_cells(row)) + " |" for row in results.rows),
        "",
        "![accuracy against latency, and speed-ups](tradeoff.png)",
        "",
        "Q: INT8 weights and activations, trained with the rounding. P: "
        f"{100 * results.settings.sparsity:g} % of the weights removed by magnitude, step by "
        "step. D: a student network distilled from the baseline. Chains run in the order D, P, "
        "Q. Accuracy is that of the converted model, drop in points below the baseline. Time is "
        "the median of batches of one image, "
        "at one thread or all of them, whichever is faster for the variant (column threads), "
        "all variants taking turns, batch norms folded in every one of them, the baseline too. "
        "Zeros that P scatters make the file smaller; no kernel skips them.",
        "",
        "## The exported model",
        "",
        f"`{best.file}`, {best.size_mb:.3f} MB, {best.onnxruntime_ms:.3f} ms per image in ONNX "
        f"Runtime. {best.verified}",
        "",
        "```text",
        best.kernels.rstrip(),
        "```",
        "",
        "## How it was made",
        "",
        f"Settings: {settings}. It took {results.seconds:.0f} s.",
        "",
        "| environment | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in results.environment.items()),
        "",
    ]
    return "\n".join(lines)
