"""The files of a report: all of them written aside, then renamed."""

from __future__ import annotations

import json
import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sparseq.files import atomic_path
from sparseq.run.report.charts import draw_all, inline_svg, save_png
from sparseq.run.report.content import content
from sparseq.run.report.findings import find
from sparseq.run.results import Results

__all__ = ["read", "write"]


def write(results: Results, folder: str | os.PathLike[str]) -> list[Path]:
    """Write results.json, report.md, report.html and charts/*.png.

    report.html is one file that needs nothing else. No file is renamed into its place before all
    of them are written.

    Args:
        results: what to report.
        folder: where; it is made if need be.

    Returns:
        The paths written.

    Raises:
        OSError: the folder or a file cannot be written.
        ValueError: the results hold no variants, or the best is none of them.
        ModuleNotFoundError: matplotlib or jinja2 is not installed.
    """
    findings = find(results)
    folder = Path(folder)
    (folder / "charts").mkdir(parents=True, exist_ok=True)
    filled: dict[str, Any] = content(results, findings)
    paths = []
    with ExitStack() as stack:

        def aside(path: Path) -> Path:
            temporary = stack.enter_context(atomic_path(path))
            paths.append(path)
            return temporary

        sections: dict[str, list[dict[str, str]]] = {}
        for chart in draw_all(results, findings):
            file = folder / "charts" / f"{chart.name}.png"
            save_png(chart.figure, aside(file))
            sections.setdefault(chart.section, []).append(
                {
                    "alt": chart.alt,
                    "caption": chart.caption,
                    "file": f"charts/{file.name}",
                    "svg": inline_svg(chart.figure, chart.name, chart.alt),
                }
            )
        filled["charts"] = sections
        texts = {
            "results.json": json.dumps(results.to_dict(), indent=2) + "\n",
            "report.md": _rendered("report.md.j2", filled),
            "report.html": _rendered("report.html.j2", filled),
        }
        for name, text in texts.items():
            aside(folder / name).write_text(text, encoding="utf-8")
    return paths


def read(path: str | os.PathLike[str]) -> Results:
    """Return the results that `write` left in results.json.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return Results.from_dict(found)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{os.fspath(path)}: must be a results.json of an exercise: {said}"
        ) from error


def _rendered(template: str, filled: dict[str, Any]) -> str:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a report needs the package jinja2: pip install 'sparseq[run]'"
        ) from error
    page = template.endswith(".html.j2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sparseq.run.report"),
        autoescape=page,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = _markdown
    return environment.get_template(template).render(filled)


def _markdown(text: object) -> str:
    """Text that Markdown shows as it is, in a table too."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(str(text).split()))
