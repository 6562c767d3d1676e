"""Which points no other point beats."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["dominates", "front"]


def dominates(one: Sequence[float], two: Sequence[float]) -> bool:
    """Whether ``one`` is nowhere larger than ``two`` and somewhere smaller: less is better."""
    return all(a <= b for a, b in zip(one, two, strict=True)) and tuple(one) != tuple(two)


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Return the positions of the points that no other dominates, in their order.

    Args:
        points: coordinates of which less is better; negate those of which more is.
    """
    return [
        i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)
    ]
