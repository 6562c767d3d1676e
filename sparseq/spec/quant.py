"""How numbers become integers."""

from __future__ import annotations

from dataclasses import dataclass

from sparseq.spec.check import check, whole

RANGE_OBSERVERS = ("minmax", "moving_average")
OBSERVERS = (*RANGE_OBSERVERS, "percentile", "histogram", "entropy")
LEARNED = (False, True, "pact")


@dataclass(frozen=True)
class Quant:
    """An affine scheme: `q = clamp(rne(x / scale) + zero_point, quant_min, quant_max)`.

    Args:
        bits: 2 to 8.
        signed: integers in [-2^(bits-1), 2^(bits-1) - 1], else in [0, 2^bits - 1].
        symmetric: zero_point = 0; signed ranges are then narrow,
            [-(2^(bits-1) - 1), 2^(bits-1) - 1].
        axis: one scale per index of this axis (0: per output channel of a weight), or None for one.
        group_size: one scale per this many neighbours of each channel's elements, or None; sets
            axis to 0 where it is None.
        observer: what becomes of the values seen: "minmax" takes the extremes, "moving_average"
            follows each batch's (exponentially), "percentile" cuts the tails, "histogram" takes the
            range of least squared error, "entropy" that of least Kullback-Leibler divergence.
        learned: True makes the scale (and, if not symmetric, the zero point) parameters: LSQ and
            LSQ+; "pact" the clipping level `alpha = scale * quant_max` of a symmetric scheme, which
            has a gradient from what it clips only: PACT.
        percentile: with that observer, how much of the values the range shall cover, in percent:
            `(100 - percentile) / 2` are cut at each end, all of it above where nothing is negative.
        dynamic: of an input: its grid covers its own range, anew in every pass: each row's for a
            linear layer ("per token"), each batch's for the rest. It needs no data beforehand.

    Raises:
        ValueError: a value outside of the above.

    Reference:
        Jacob et al. 2018 (the scheme, min-max and moving average); Krishnamoorthi 2018; McKinstry
        et al. 2018 (percentile); Migacz 2017 (entropy); Esser et al. 2020 (LSQ); Bhalgat et al.
        2020 (LSQ+); Choi et al. 2018 (PACT).
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    axis: int | None = None
    group_size: int | None = None
    observer: str = "minmax"
    learned: bool | str = False
    percentile: float = 99.99
    dynamic: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        check(whole(self.bits, 2, 8), "Quant", "bits", "a whole number from 2 to 8", self.bits)
        for name in ("signed", "symmetric", "dynamic"):
            value = getattr(self, name)
            check(isinstance(value, bool), "Quant", name, "True or False", value)
        learned = self.learned
        known = isinstance(learned, bool) or learned == "pact"
        check(known, "Quant", "learned", f"one of {LEARNED}", learned)
        if learned == "pact":
            check(self.symmetric, "Quant", "symmetric", 'True with learned="pact"', self.symmetric)
        check(
            self.axis is None or whole(self.axis, -8, 8),
            "Quant",
            "axis",
            "an axis or None",
            self.axis,
        )
        group = self.group_size
        check(group is None or whole(group, 1), "Quant", "group_size", "at least 1 or None", group)
        check(self.observer in OBSERVERS, "Quant", "observer", f"one of {OBSERVERS}", self.observer)
        share = self.percentile
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        check(number and 50 < share <= 100, "Quant", "percentile", "in (50, 100]", share)
        if self.dynamic:
            check(learned is False, "Quant", "learned", "False with dynamic=True", learned)
            observer = self.observer
            check(observer == "minmax", "Quant", "observer", '"minmax" with dynamic=True', observer)
        if group is not None and self.axis is None:
            object.__setattr__(self, "axis", 0)

    @property
    def quant_min(self) -> int:
        """Least integer."""
        if not self.signed:
            return 0
        return -(2 ** (self.bits - 1)) + (1 if self.symmetric else 0)

    @property
    def quant_max(self) -> int:
        """Greatest integer."""
        return int(2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1)
