"""What to do with which layer: frozen dataclasses, checked on construction, to JSON and back."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

RANGE_OBSERVERS = ("minmax", "moving_average")
OBSERVERS = (*RANGE_OBSERVERS, "percentile", "histogram", "entropy")
LEARNED = (False, True, "pact")


def _check(condition: bool, owner: str, argument: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{owner}: {argument} must be {expected}, got {got!r}")


def _whole(value: object, low: int, high: int | None = None) -> bool:
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return value >= low and (high is None or value <= high)


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
        _check(_whole(self.bits, 2, 8), "Quant", "bits", "a whole number from 2 to 8", self.bits)
        for name in ("signed", "symmetric", "dynamic"):
            value = getattr(self, name)
            _check(isinstance(value, bool), "Quant", name, "True or False", value)
        learned = self.learned
        known = isinstance(learned, bool) or learned == "pact"
        _check(known, "Quant", "learned", f"one of {LEARNED}", learned)
        if learned == "pact":
            _check(self.symmetric, "Quant", "symmetric", 'True with learned="pact"', self.symmetric)
        _check(
            self.axis is None or _whole(self.axis, -8, 8),
            "Quant",
            "axis",
            "an axis or None",
            self.axis,
        )
        group = self.group_size
        _check(
            group is None or _whole(group, 1), "Quant", "group_size", "at least 1 or None", group
        )
        _check(
            self.observer in OBSERVERS, "Quant", "observer", f"one of {OBSERVERS}", self.observer
        )
        share = self.percentile
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        _check(number and 50 < share <= 100, "Quant", "percentile", "in (50, 100]", share)
        if self.dynamic:
            _check(learned is False, "Quant", "learned", "False with dynamic=True", learned)
            observer = self.observer
            _check(
                observer == "minmax", "Quant", "observer", '"minmax" with dynamic=True', observer
            )
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


@dataclass(frozen=True)
class NM:
    """Fine-grained structured sparsity: of every m neighbours along the input, n are kept.

    Along input features of a linear layer, along input channels for each tap of a convolution.
    NM(2, 4) is what 2:4 hardware and kernels take. Layers whose input is not a multiple of m stay
    dense.

    Raises:
        ValueError: unless 1 <= n < m.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        """Check n and m."""
        _check(_whole(self.m, 2), "NM", "m", "a whole number of at least 2", self.m)
        _check(_whole(self.n, 1, self.m - 1), "NM", "n", f"from 1 to m - 1 = {self.m - 1}", self.n)

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1 - self.n / self.m


@dataclass(frozen=True)
class Unstructured:
    """Unstructured magnitude sparsity: the `sparsity` share of least magnitude becomes zero.

    Args:
        sparsity: share of zeros, in [0, 1).
        scope: "global" ranks all layers of this sparsity together, "local" each on its own.

    Raises:
        ValueError: a value outside of the above.
    """

    sparsity: float = 0.5
    scope: str = "global"

    def __post_init__(self) -> None:
        """Check sparsity and scope."""
        value = self.sparsity
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _check(number and 0 <= value < 1, "Unstructured", "sparsity", "in [0, 1)", value)
        scopes = ("global", "local")
        _check(self.scope in scopes, "Unstructured", "scope", f"one of {scopes}", self.scope)


Sparsity = NM | Unstructured


@dataclass(frozen=True)
class Layer:
    """What happens to one layer: its weight's and its input's quantisation, its weight's sparsity.

    A field that is None leaves that part of the layer as it is.

    Raises:
        ValueError: a field of another type, or an input scheme that is not per tensor.
    """

    weight: Quant | None = None
    input: Quant | None = None
    sparsity: Sparsity | None = None

    def __post_init__(self) -> None:
        """Check the types of the fields."""
        for name in ("weight", "input"):
            value = getattr(self, name)
            _check(
                value is None or isinstance(value, Quant), "Layer", name, "a Quant or None", value
            )
        _check(
            self.weight is None or not self.weight.dynamic,
            "Layer",
            "weight",
            "without dynamic=True (its grid follows it anyway)",
            self.weight,
        )
        _check(
            self.sparsity is None or isinstance(self.sparsity, (NM, Unstructured)),
            "Layer",
            "sparsity",
            "NM, Unstructured or None",
            self.sparsity,
        )
        _check(
            self.input is None or (self.input.axis is None and self.input.group_size is None),
            "Layer",
            "input",
            "per tensor (axis and group_size None)",
            self.input,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the inverse of `from_dict`."""
        result: dict[str, Any] = {}
        for name in ("weight", "input", "sparsity"):
            value = getattr(self, name)
            if value is not None:
                result[name] = {"type": type(value).__name__, **dataclasses.asdict(value)}
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layer:
        """Build a Layer from `to_dict`'s result; ValueError on anything unknown."""
        types = {"Quant": Quant, "NM": NM, "Unstructured": Unstructured}
        fields = {}
        _check(isinstance(values, Mapping), "Layer", "values", "an object", values)
        for name, value in values.items():
            _check(name in ("weight", "input", "sparsity"), "Layer", "field", "a known name", name)
            _check(
                isinstance(value, Mapping) and value.get("type") in list(types),
                "Layer",
                name,
                f"an object with type one of {sorted(types)}",
                value,
            )
            arguments = {key: item for key, item in value.items() if key != "type"}
            try:
                fields[name] = types[value["type"]](**arguments)
            except TypeError as error:
                raise ValueError(f"Layer: {name}: {error}") from None
        return cls(**fields)


@dataclass(frozen=True)
class Plan:
    """Which layers get what: fnmatch patterns of layer names, the last match wins.

    `Plan({"*": Layer(...), "fc": None})` serves every layer but fc. A Layer serves those layers
    that can take it; None leaves a layer alone.

    Raises:
        ValueError: no rule, or a rule that is not a pattern with a Layer or None.
    """

    rules: Mapping[str, Layer | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check and copy the rules."""
        _check(
            isinstance(self.rules, Mapping) and len(self.rules) > 0,
            "Plan",
            "rules",
            'a mapping with at least one pattern, such as {"*": Layer(...)}',
            self.rules,
        )
        for pattern, layer in self.rules.items():
            _check(isinstance(pattern, str), "Plan", "pattern", "a string", pattern)
            _check(
                layer is None or isinstance(layer, Layer), "Plan", pattern, "a Layer or None", layer
            )
        object.__setattr__(self, "rules", dict(self.rules))

    def match(self, names: Iterable[str]) -> dict[str, Layer]:
        """The Layer of each name that has one, in the order of names.

        Raises:
            ValueError: a pattern that matches none of the names.
        """
        names = list(names)
        chosen: dict[str, Layer | None] = {}
        for pattern, layer in self.rules.items():
            hits = fnmatch.filter(names, pattern)
            if not hits:
                raise ValueError(
                    f"Plan: pattern {pattern!r} matches no layer; the layers are {', '.join(names)}"
                )
            chosen.update(dict.fromkeys(hits, layer))
        return {name: layer for name in names if (layer := chosen.get(name)) is not None}

    def to_json(self) -> str:
        """The plan as JSON text, order kept."""
        rules = {p: layer and layer.to_dict() for p, layer in self.rules.items()}
        return json.dumps({"version": 1, "rules": rules})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of `to_json`; ValueError on malformed or unknown content."""
        try:
            values = json.loads(text)
            rules = values["rules"].items()
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"Plan: text must be JSON of to_json(), got {text[:80]!r}") from None
        _check(values.get("version") == 1, "Plan", "version", "1", values.get("version"))
        return cls({p: None if v is None else Layer.from_dict(v) for p, v in rules})
