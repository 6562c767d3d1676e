"""Medians and ratios of times, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
EXACT = 1000  # up to so many times the ranks come from the binomial distribution itself
SETTLED, WINDOW = 0.97, 5


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the percentile by linear interpolation between the two nearest ranks."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = math.ceil(position)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return two order statistics that hold the true median with this confidence or more.

    `P(x_(k) <= median <= x_(n+1-k)) = 1 - 2 P(Binomial(n, 1/2) < k)`, whatever the distribution.
    Fewer than 6 values allow no 95 %: the least and the greatest then.

    Args:
        values: independent measurements, at least one.
        confidence: 0 to 1.

    Returns:
        Lower and upper end.

    Reference:
        David and Nagaraja, "Order Statistics", 3rd edition, 2003, section 7.1.
    """
    ordered, count = sorted(values), len(values)
    tail = (1 - confidence) / 2
    if count > EXACT:
        deviation = 1.96 if confidence == 0.95 else _normal_quantile(1 - tail)
        rank = math.floor(count / 2 - deviation * math.sqrt(count) / 2)
    else:
        rank, below, total = 0, 0, 1 << count
        while (below := below + math.comb(count, rank)) / total <= tail:
            rank += 1
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[count - rank]


def _normal_quantile(share: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(share)


def ratio_interval(
    numerator: Sequence[float], denominator: Sequence[float], confidence: float = 0.95
) -> tuple[float, float]:
    """Return an interval of `median(numerator) / median(denominator)` over paired rounds.

    Percentile bootstrap: rounds are drawn with replacement, both times of a round together, so that
    a busy moment of the machine counts in both or in neither. The draws are the same in every run.

    Args:
        numerator: one time a round.
        denominator: the other's, of the same rounds.
        confidence: 0 to 1.

    Returns:
        Lower and upper end.

    Reference:
        Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics, 1979.
    """
    above, below = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    if above.shape != below.shape or above.size == 0:
        raise ValueError(
            "ratio_interval: numerator and denominator must have one time a round each, got "
            f"{above.size} and {below.size}"
        )
    random = np.random.default_rng(0)
    ratios = np.empty(RESAMPLES)
    step = max(1, 1_000_000 // above.size)  # memory stays small for any number of rounds
    for start in range(0, RESAMPLES, step):
        drawn = random.integers(above.size, size=(min(step, RESAMPLES - start), above.size))
        ratios[start : start + step] = np.median(above[drawn], 1) / np.median(below[drawn], 1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return float(low), float(high)


def steady(times: Sequence[float]) -> bool:
    """Whether calls no longer get faster: the last few against the few before them."""
    if len(times) < 2 * WINDOW:
        return False
    before = percentile(times[-2 * WINDOW : -WINDOW], 50)
    return percentile(times[-WINDOW:], 50) >= SETTLED * before
