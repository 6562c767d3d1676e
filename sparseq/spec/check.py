"""How the specs check their fields."""

from __future__ import annotations


def check(condition: bool, owner: str, argument: str, expected: str, got: object) -> None:
    """ValueError unless the condition holds, naming owner and argument."""
    if not condition:
        raise ValueError(f"{owner}: {argument} must be {expected}, got {got!r}")


def whole(value: object, low: int, high: int | None = None) -> bool:
    """Whether value is an int (no bool) in [low, high]."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return value >= low and (high is None or value <= high)
