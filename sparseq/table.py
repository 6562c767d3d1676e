"""Tables as text, and numbers in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns side by side: the first two to the left, the others to the right."""
    table = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def decibel(value: float | None) -> str:
    """Such as 31.4, "exact" without noise, "-" where there is nothing."""
    if value is None:
        return "-"
    return "exact" if value == math.inf else f"{value:.1f}"


def plain(value: Any) -> Any:
    """For JSON: what is not finite becomes text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
