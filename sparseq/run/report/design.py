"""The variants as a factorial: each technique on or off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from sparseq.run.report.effects import Effect, factorial
from sparseq.run.report.noise import Grade, Noise
from sparseq.run.results import Variant

__all__ = ["Design", "by_set", "designs"]


@dataclass(frozen=True)
class Design:
    """Effects of the techniques in ``factors``, over all their combinations.

    Attributes:
        factors: the letters.
        variants: of the combinations.
        accuracy: effects in points.
        grades: how sure each of these is.
        latency: effects on the natural logarithm of the milliseconds: ``exp`` of one is a factor.
        size: likewise of the megabytes.
    """

    factors: str
    variants: tuple[Variant, ...]
    accuracy: tuple[Effect, ...]
    grades: tuple[Grade, ...]
    latency: tuple[Effect, ...]
    size: tuple[Effect, ...]

    def ratio(
        self, effects: Sequence[Effect], factor: str, other: str = "", sign: int = 0
    ) -> float:
        """Return the factor by which a technique multiplies the time or the size, on average.

        Args:
            effects: ``latency`` or ``size``.
            factor: the technique.
            other: another one, with (``sign`` 1) or without (-1) which it is meant.
            sign: 0 averages over both.
        """
        value = {frozenset(effect.factors): effect.value for effect in effects}
        together = sign * value[frozenset(factor + other)] if other else 0.0
        return math.exp(value[frozenset(factor)] + together)


def by_set(variants: Sequence[Variant]) -> dict[frozenset[str], Variant]:
    """Return the variants by their techniques in whatever order; the first of several orders."""
    out: dict[frozenset[str], Variant] = {}
    for variant in variants:
        out.setdefault(frozenset(variant.chain), variant)
    return out


def designs(variants: Sequence[Variant], noise: Noise) -> list[Design]:
    """Return the largest complete factorial of Q, P and D, and that with S in P's place."""
    found = [_largest(variants, "QPD", "", noise), _largest(variants, "QSD", "S", noise)]
    return [design for design in found if design is not None]


def _largest(variants: Sequence[Variant], letters: str, needed: str, noise: Noise) -> Design | None:
    known = by_set(variants)
    for count in range(len(letters), 0, -1):
        for factors in map("".join, combinations(letters, count)):
            sets = [
                "".join(chosen) for k in range(count + 1) for chosen in combinations(factors, k)
            ]
            if needed in factors and all(frozenset(each) in known for each in sets):
                return _design({each: known[frozenset(each)] for each in sets}, factors, noise)
    return None


def _design(cells: dict[str, Variant], factors: str, noise: Noise) -> Design:
    runs = {
        key: {run.seed: run.accuracy for run in cell.runs} or {0: cell.accuracy}
        for key, cell in cells.items()
    }
    seeds = sorted(runs[""])
    paired = all(sorted(of) == seeds for of in runs.values())
    accuracies = {key: [of[seed] for seed in sorted(of)] for key, of in runs.items()}
    accuracy = factorial(accuracies, factors, paired=paired)
    means = [cell.accuracy for cell in cells.values()]
    return Design(
        factors=factors,
        variants=tuple(cells.values()),
        accuracy=accuracy,
        grades=tuple(noise.grade(e.value, *means, margin=e.margin) for e in accuracy),
        latency=factorial({k: [math.log(v.ms_per_image)] for k, v in cells.items()}, factors),
        size=factorial({k: [math.log(v.size_mb)] for k, v in cells.items()}, factors),
    )
