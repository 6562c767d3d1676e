"""How many channels are removed for real."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from sparseq.spec.check import check, whole

CRITERIA = ("l1", "l2", "batch_norm", "random")


@dataclass(frozen=True)
class Channels:
    """Structured sparsity: whole channels (filters, features, attention heads) are removed.

    Args:
        sparsity: share of the channels to remove, in [0, 1).
        criterion: what a channel is worth: "l1" and "l2" norms of the weights that would go with
            it, each layer's in units of their mean; "batch_norm" the scales of its batch norms
            (network slimming), and its l2 norm where it has none; "random" as a baseline.
        round_to: so many channels, or a multiple, are left of each coupled set; more are kept
            rather than fewer.
        scope: "local" removes the share from each coupled set, "global" ranks all sets together.
        limit: at most this share of a coupled set is removed.

    Raises:
        ValueError: a value outside of the above.

    Reference:
        Li et al. 2017, Pruning Filters for Efficient ConvNets (L1); Liu et al. 2017, Learning
        Efficient Convolutional Networks through Network Slimming; Fang et al. 2023, DepGraph
        (coupled sets).
    """

    sparsity: float = 0.5
    criterion: str = "l2"
    round_to: int = 8
    scope: str = "local"
    limit: float = 0.9

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("sparsity", "limit"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            check(number and 0 <= value < 1, "Channels", name, "in [0, 1)", value)
        known = isinstance(self.criterion, str) and self.criterion in CRITERIA
        check(known, "Channels", "criterion", f"one of {CRITERIA}", self.criterion)
        check(whole(self.round_to, 1), "Channels", "round_to", "at least 1", self.round_to)
        scopes = ("local", "global")
        check(self.scope in scopes, "Channels", "scope", f"one of {scopes}", self.scope)

    def to_json(self) -> str:
        """The spec as JSON text."""
        return json.dumps({"version": 1, "type": "Channels", **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Channels:
        """The inverse of `to_json`; ValueError on malformed or unknown content."""
        try:
            values = dict(json.loads(text))
            fitting = values.pop("version") == 1 and values.pop("type") == "Channels"
        except (ValueError, TypeError, KeyError):
            fitting, values = False, {}
        check(fitting, "Channels", "text", "JSON of to_json()", text[:80])
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"Channels: {error}") from None
