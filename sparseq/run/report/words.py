"""Numbers as words, the same ones everywhere in a report."""

from __future__ import annotations

import math
from collections.abc import Iterable

from sparseq.run.report.noise import Grade

__all__ = ["SAME", "TECHNIQUES", "faster", "listed", "points", "smaller"]

TECHNIQUES = {"Q": "quantisation", "P": "pruning", "S": "2:4 sparsity", "D": "distillation"}
"""The letters of a chain."""

SAME = 0.05
"""Times and sizes closer than this are called equal."""

_GRADES = {
    "noise": ", no more than noise",
    "unsure": ", which may still be chance",
    "clear": "",
}


def faster(ratio: float) -> str:
    """Say what a ratio of times, new to old, means."""
    if abs(math.log(ratio)) < math.log1p(SAME):
        return "equally fast"
    return f"{1 / ratio:.2g} times as fast" if ratio < 1 else f"{ratio:.2g} times as slow"


def smaller(ratio: float) -> str:
    """Say what a ratio of sizes, new to old, means."""
    if abs(math.log(ratio)) < math.log1p(SAME):
        return "of the same size"
    return f"{1 / ratio:.2g} times smaller" if ratio < 1 else f"{ratio:.2g} times larger"


def points(difference: float, grade: Grade, verb: tuple[str, str] = ("gains", "loses")) -> str:
    """Say what a difference of accuracies means, and how sure it is."""
    if round(difference, 2) == 0:
        return "has the same accuracy"
    return f"{verb[difference < 0]} {abs(difference):.2f} points{_GRADES[grade]}"


def listed(names: Iterable[str]) -> str:
    """Join with commas and a last "and"."""
    names = list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
