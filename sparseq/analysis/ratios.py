"""A global sparsity as ratios by layer, from what each layer alone costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from sparseq.analysis.candidates import pattern
from sparseq.analysis.knapsack import frontier
from sparseq.analysis.sensitivity import Sensitivity
from sparseq.flow.prepare import layers_of, original_weight
from sparseq.spec import Layer, Plan, Unstructured

SHARES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def sparsity_levels(
    shares: Iterable[float] = SHARES, criterion: str = "magnitude"
) -> dict[str, Layer]:
    """Candidates for `sensitivity`: each layer at each of these shares of zeros.

    Args:
        shares: in (0, 1).
        criterion: of the weight alone.

    Raises:
        ValueError: no share, or one out of range.
    """
    found = {
        f"{share:.4g}": Layer(sparsity=Unstructured(share, "local", criterion)) for share in shares
    }
    if not found or any(layer.sparsity == Unstructured(0, "local") for layer in found.values()):
        raise ValueError("sparsity_levels: shares must be one or more in (0, 1)")
    return found


@dataclass
class _Choice:
    """A layer's levels by share, dense first, with the loss that each adds; and the one taken."""

    name: str
    count: int
    shares: list[float]
    losses: list[float]
    taken: int = 0
    share: float = 0.0

    def relief(self) -> float:
        """Loss saved by each weight that comes back, down to the next level."""
        low = self.shares[self.taken - 1]
        saved = self.losses[self.taken] - self.losses[self.taken - 1]
        return saved / (self.count * (self.shares[self.taken] - low))


def sparsity_plan(
    model: nn.Module, table: Sensitivity, levels: Mapping[str, Layer], target: float
) -> Plan:
    """Ratios by layer of least loss whose zeros are `target` of all weights in the table.

    What layers add to the loss is taken to add up; a dynamic program chooses a level for each.
    What it prunes beyond the target comes back where that saves most.

    Args:
        model: that the table is of.
        table: `sensitivity(model, batches, levels)`.
        levels: as of `sparsity_levels`.
        target: share of zeros over all layers of the table, in (0, 1).

    Returns:
        A Plan with Unstructured(ratio, "local") for each layer of the table; 0 for those that
        stay dense.

    Raises:
        ValueError: a target that no levels reach, levels that are not Unstructured, or a table
            of other levels or another model.
    """
    if not 0 < target < 1:
        raise ValueError(f"sparsity_plan: target must be in (0, 1), got {target!r}")
    ratios: dict[str, float] = {}
    for label, level in levels.items():
        if not isinstance(level.sparsity, Unstructured):
            raise ValueError(
                f"sparsity_plan: levels must be Unstructured, got {label!r}: {level.sparsity}"
            )
        ratios[label] = level.sparsity.sparsity
    layers = layers_of(model)
    rows: dict[str, list[tuple[float, float]]] = {}
    for row in table.rows:
        if row.candidate not in ratios or row.name not in layers:
            raise ValueError(
                f"sparsity_plan: table must be of these levels and this model, got "
                f"{row.name!r} at {row.candidate!r}"
            )
        rows.setdefault(row.name, []).append((ratios[row.candidate], row.added))
    choices = []
    for name, found in rows.items():
        shares, losses = zip((0.0, 0.0), *sorted(found), strict=True)
        count = original_weight(layers[name]).numel()
        choices.append(_Choice(name, count, list(shares), list(losses)))
    _allocate(choices, target)
    criterion = next(iter(levels.values())).sparsity.criterion  # type: ignore[union-attr]
    return Plan(
        {
            pattern(c.name): Layer(sparsity=Unstructured(c.share, "local", criterion))
            for c in choices
        }
    )


def _allocate(choices: list[_Choice], target: float) -> None:
    """Take a level of each, then give back what is beyond the target."""
    total = sum(c.count for c in choices)
    budget = (1 - target) * total
    plans = frontier(
        [[c.count * (1 - share) for share in c.shares] for c in choices],
        [c.losses for c in choices],
    )
    fitting = [plan for plan in plans if plan.cost <= budget * (1 + 1e-9)]
    if not fitting:
        most = 1 - plans[0].cost / total
        raise ValueError(
            f"sparsity_plan: target must be at most {most:.4g}, what the levels reach, "
            f"got {target:.4g}"
        )
    best = fitting[-1]
    for choice, option in zip(choices, best.options, strict=True):
        choice.taken, choice.share = option, choice.shares[option]
    slack = budget - best.cost
    open_ones = sorted((c for c in choices if c.taken), key=_Choice.relief, reverse=True)
    for choice in open_ones:
        back = min(slack, choice.count * (choice.share - choice.shares[choice.taken - 1]))
        choice.share -= max(back, 0.0) / choice.count
        slack -= max(back, 0.0)
