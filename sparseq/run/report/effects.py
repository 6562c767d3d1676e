"""Main effects and interactions of a two-level factorial: what each technique does, on average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

__all__ = ["CONFIDENCE", "Effect", "difference_margin", "factorial", "pooled", "student"]

CONFIDENCE = 0.95
"""Of every interval in the report."""


@dataclass(frozen=True)
class Effect:
    """How much one factor, or several together, change a response.

    Attributes:
        factors: the letters, "Q" of a main effect, "QP" of an interaction.
        value: mean of the response where the contrast is +, minus the mean where it is -.
        error: standard error of ``value``, None where no cell was repeated.
        margin: half the width of its 95 % interval, None as above.
    """

    factors: str
    value: float
    error: float | None = None
    margin: float | None = None

    @property
    def name(self) -> str:
        """Such as "Q" or "Q×P"."""
        return "\N{MULTIPLICATION SIGN}".join(self.factors)


def factorial(
    cells: Mapping[str, Sequence[float]], factors: str, *, paired: bool = False
) -> tuple[Effect, ...]:
    r"""Return all effects of a full factorial with two levels, main effects first.

    With ``k`` factors and the cells' means ``m_c``, the effect of a set ``F`` of factors is
    ``sum_c s_c(F) m_c / 2^(k-1)``, where ``s_c(F)`` is the product over ``f`` in ``F`` of +1 if
    cell ``c`` has ``f``, else -1. An interaction of two is thus half of how much one's effect
    differs with and without the other. The variance of one response is pooled over the cells,
    ``s^2 = sum_c (n_c - 1) s_c^2 / sum_c (n_c - 1)``, and an effect's is
    ``s^2 sum_c (1 / n_c) / 4^(k-1)``, which is ``4 s^2 / N`` for cells of one size. Where runs
    share something across cells (a seed, the stages before), the pooled error takes them for
    independent, which they are not: with ``paired``, the effect of each repetition is computed
    too and the margin is the wider of the two.

    Args:
        cells: the responses of each combination, whose key has the letters of the factors that
            are on in the order of ``factors``: "" has none of them.
        factors: one letter each.
        paired: whether the i-th responses of all cells belong together; all have one count then.

    Returns:
        ``2^k - 1`` effects.

    Raises:
        ValueError: a cell is missing, empty, or there is one too many; ``paired`` with counts
            that differ.

    Reference:
        Box, Hunter and Hunter, "Statistics for Experimenters", 2nd edition, 2005, chapter 5.
    """
    sets = ["".join(chosen) for k in range(len(factors) + 1) for chosen in combinations(factors, k)]
    if set(cells) != set(sets):
        raise ValueError(f"cells: must be those of {', '.join(map(repr, sets))}, got {list(cells)}")
    if any(len(cells[key]) == 0 for key in sets):
        raise ValueError("cells: must hold at least one response each, got an empty one")
    counts = {len(cells[key]) for key in sets}
    if paired and len(counts) > 1:
        raise ValueError(f"cells: must have one count where they are paired, got {sorted(counts)}")
    half = 2 ** (len(factors) - 1)
    scale, degrees = pooled(cells.values())
    share = math.sqrt(sum(1 / len(cells[key]) for key in sets)) / half
    out = []
    for chosen in sets[1:]:
        signs = [math.prod(1 if f in key else -1 for f in chosen) for key in sets]
        means = [float(np.mean(cells[key])) for key in sets]
        value = sum(s * mean for s, mean in zip(signs, means, strict=True)) / half
        if scale is None:
            out.append(Effect(chosen, value))
            continue
        error = scale * share
        margin = student(degrees) * error
        if paired:
            each = np.array(signs) @ np.array([cells[key] for key in sets], dtype=float) / half
            margin = max(margin, student(len(each) - 1) * each.std(ddof=1) / math.sqrt(len(each)))
        out.append(Effect(chosen, value, error, float(margin)))
    return tuple(out)


def pooled(groups: Iterable[Sequence[float]]) -> tuple[float | None, int]:
    """Return the pooled standard deviation of repeated responses, and its degrees of freedom.

    Args:
        groups: the responses of each cell.

    Returns:
        None and 0 where no group has two.
    """
    squares, degrees = 0.0, 0
    for group in groups:
        values = np.asarray(group, dtype=float)
        squares += float(((values - values.mean()) ** 2).sum())
        degrees += len(values) - 1
    return (math.sqrt(squares / degrees), degrees) if degrees else (None, 0)


def difference_margin(
    one: Sequence[float], two: Sequence[float], scale: float | None, degrees: int
) -> float | None:
    """Return half the width of the 95 % interval of a difference of two means.

    ``t s sqrt(1/n_1 + 1/n_2)`` with the pooled ``s``; None where there is none.
    """
    if scale is None:
        return None
    return student(degrees) * scale * math.sqrt(1 / len(one) + 1 / len(two))


def student(degrees: int) -> float:
    """Return the two-sided 95 % quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))
