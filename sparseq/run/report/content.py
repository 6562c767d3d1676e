"""What both texts of a report say, the page and the Markdown, as plain values for templates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sparseq.run.report.design import Design
from sparseq.run.report.findings import Findings
from sparseq.run.report.rows import COLUMNS, cells, note, title
from sparseq.run.report.words import TECHNIQUES
from sparseq.run.results import Results, Variant

__all__ = ["content"]

_MEANINGS = {
    "Q": "8-bit weights and activations, trained with the rounding (quantisation-aware training)",
    "P": "the smallest weights removed step by step, the others retrained",
    "S": "2 of every 4 neighbouring weights removed, a pattern that kernels skip",
    "D": "a smaller network that learnt from the baseline's answers",
}
_NOTE = 6  # the column of notes comes after so many others
_GRADES = {"noise": "noise", "unsure": "may be chance", "clear": "clear"}

METHOD = (
    "Accuracy is that of the converted model on the test set, drop its points below the baseline. "
    "ms/image is the median time of batches of one image at the number of threads in the table, "
    "p95 and p99 are times that 95 and 99 of 100 calls stay below; all variants take turns, batch "
    "norms are folded in every one of them, the baseline too. MB is the saved file. MACs count "
    "the zeros too. Zeros that pruning scatters make a file smaller; only those of 2:4 are skipped "
    "by a kernel."
)


def content(results: Results, findings: Findings) -> dict[str, Any]:
    """Return what the templates need, but for the charts."""
    best, baseline = findings.best, results.variants[0]
    letters = [each for each in "QPSD" if any(each in v.chain for v in results.variants)]
    several = len(best.runs) > 1
    return {
        "title": title(results),
        "best": results.best,
        "findings": findings,
        "tiles": [
            ("Accuracy", f"{best.accuracy:.2f} %", f"{-best.drop:+.2f} points"),
            ("Time an image", f"{best.ms_per_image:.3g} ms", f"{best.speedup:.2f}x as fast"),
            ("Size", f"{best.size_mb:.3g} MB",
             f"{baseline.size_mb / best.size_mb:.1f}x smaller"),
            ("ONNX Runtime", "confirmed" if results.best.passed else "differs",
             f"{results.best.onnxruntime_ms:.3g} ms an image"),
        ],
        "columns": [*COLUMNS[:_NOTE], "note", *COLUMNS[_NOTE:]],
        "note": _NOTE,
        "rows": [
            {
                "cells": _with_note(variant, results, findings),
                "best": variant is best,
                "over": not variant.drop < results.limit,
            }
            for variant in results.variants
        ],
        "several": several,
        "method": METHOD + (
            " Accuracies are means over the seeds, ± their standard deviation." if several else ""
        ),
        "terms": [
            (each, TECHNIQUES[each].capitalize(), _MEANINGS[each]) for each in letters
        ],
        "chains": [
            (variant.name, " then ".join(variant.chain))
            for variant in results.variants
            if len(variant.chain) > 1
        ],
        "designs": [_design(design) for design in findings.designs],
        "layers": _layers(best),
        "recipe": list(_flat(results.recipe)),
        "environment": list(results.environment.items()),
        "date": results.environment.get("date", ""),
        "duration": _duration(results.seconds),
    }  # fmt: skip


def _with_note(variant: Variant, results: Results, findings: Findings) -> list[str]:
    row = list(cells(variant, results.variants[0]))
    return [*row[:_NOTE], note(variant, results, findings), *row[_NOTE:]]


def _design(design: Design) -> dict[str, Any]:
    lines = zip(design.accuracy, design.grades, design.latency, design.size, strict=True)
    return {
        "factors": design.factors,
        "several": design.accuracy[0].margin is not None,
        "lines": [
            {
                "name": accuracy.name,
                "accuracy": f"{accuracy.value:+.2f}",
                "error": "" if accuracy.error is None else f"{accuracy.error:.2f}",
                "margin": "" if accuracy.margin is None else f"±{accuracy.margin:.2f}",
                "grade": _GRADES[grade],
                "latency": f"x{math.exp(latency.value):.2f}",
                "size": f"x{math.exp(size.value):.2f}",
            }
            for accuracy, grade, latency, size in lines
        ],
    }


def _layers(variant: Variant) -> list[tuple[str, ...]]:
    whole = sum(layer.macs or 0 for layer in variant.layers)
    return [
        (
            layer.name,
            layer.kind,
            layer.kernel,
            "float" if layer.bits is None else str(layer.bits),
            f"{100 * layer.sparsity:.1f}",
            "-" if layer.macs is None or not whole else f"{100 * layer.macs / whole:.1f}",
        )
        for layer in variant.layers
    ]


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as "outer.inner" and a value each."""
    for key, value in settings.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(map(str, value))
        else:
            yield name, str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
