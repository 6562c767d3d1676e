"""Budgets of `search`."""

from __future__ import annotations

from dataclasses import dataclass

COSTS = ("megabytes", "milliseconds")


@dataclass(frozen=True)
class Budget:
    """What a plan may cost: exactly one of drop, megabytes and milliseconds.

    Args:
        drop: how much of the metric may be lost, in its units (points of accuracy).
        megabytes: size of the saved file (10^6 bytes).
        milliseconds: of one call of the converted network on `search`'s example.
        minimise: under a drop, what shall be small: "megabytes" or "milliseconds".

    Raises:
        ValueError: none or several of the three, or a value outside of the above.
    """

    drop: float | None = None
    megabytes: float | None = None
    milliseconds: float | None = None
    minimise: str = "megabytes"

    def __post_init__(self) -> None:
        """Check the fields."""
        given = {
            name: value for name in ("drop", *COSTS) if (value := getattr(self, name)) is not None
        }
        if len(given) != 1:
            raise ValueError(
                "Budget: exactly one of drop, megabytes and milliseconds must be given, "
                f"got {given or 'none'}"
            )
        ((name, value),) = given.items()
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not (value >= 0 if name == "drop" else value > 0):
            least = "at least 0" if name == "drop" else "above 0"
            raise ValueError(f"Budget: {name} must be a number {least}, got {value!r}")
        if self.minimise not in COSTS:
            raise ValueError(f"Budget: minimise must be one of {COSTS}, got {self.minimise!r}")

    @property
    def cost(self) -> str:
        """What plans are ranked by: megabytes or milliseconds."""
        if self.drop is not None:
            return self.minimise
        return "megabytes" if self.megabytes is not None else "milliseconds"

    @property
    def limit(self) -> float | None:
        """Of the cost; None under a drop."""
        return self.megabytes if self.megabytes is not None else self.milliseconds
