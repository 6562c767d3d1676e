"""Which layer gets what."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sparseq.spec.check import check
from sparseq.spec.layer import Layer


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
        check(
            isinstance(self.rules, Mapping) and len(self.rules) > 0,
            "Plan",
            "rules",
            'a mapping with at least one pattern, such as {"*": Layer(...)}',
            self.rules,
        )
        for pattern, layer in self.rules.items():
            check(isinstance(pattern, str), "Plan", "pattern", "a string", pattern)
            check(
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
        check(values.get("version") == 1, "Plan", "version", "1", values.get("version"))
        return cls({p: None if v is None else Layer.from_dict(v) for p, v in rules})
