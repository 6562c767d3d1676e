"""A global target as ratios by layer."""

import itertools

import pytest
import torch
from torch import nn

from sparseq import NM, Layer, Sensitivity, Unstructured, explain, prepare, sensitivity
from sparseq.analysis import SensitivityRow, sparsity_levels, sparsity_plan
from sparseq.analysis.ratios import _allocate, _Choice
from sparseq.sparse import masks_of


class Network(nn.Module):
    """Of its two branches the second hardly counts."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 20), nn.Linear(12, 20), nn.Linear(20, 5)
        with torch.no_grad():
            self.second.weight.mul_(1e-4)

    def forward(self, x):
        return self.head((self.first(x) + self.second(x)).relu())


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8, 0.93])
def test_the_target_is_met_and_what_matters_keeps_more(target):
    model, levels = Network().eval(), sparsity_levels()
    table = sensitivity(model, list(torch.randn(3, 64, 12)), levels)
    plan = sparsity_plan(model, table, levels, target)
    ratios = {name: layer.sparsity.sparsity for name, layer in plan.rules.items()}
    assert ratios["second"] == max(ratios.values())
    prepare(model, plan)
    zeros = sum(int((~mask.mask).sum()) for mask, _ in masks_of(model))
    count = 240 + 240 + 100
    assert abs(zeros - target * count) <= 1.5
    kept = {name: why for name, why in explain(model).dense.items() if ratios[name] == 0}
    assert set(kept.values()) <= {"sparsity 0 in the plan"}


def test_levels_are_the_best_by_brute_force():
    generator = torch.Generator().manual_seed(1)
    shares = [0.0, 0.25, 0.5, 0.75]
    for _ in range(20):
        losses = torch.rand(3, 3, generator=generator).sort(dim=1).values.tolist()
        counts = torch.randint(10, 60, (3,), generator=generator).tolist()
        choices = [
            _Choice(str(i), n, shares, [0.0, *row])
            for i, (n, row) in enumerate(zip(counts, losses, strict=True))
        ]
        _allocate(choices, 0.4)
        best = min(
            sum(c.losses[o] for c, o in zip(choices, options, strict=True))
            for options in itertools.product(range(4), repeat=3)
            if sum(n * shares[o] for n, o in zip(counts, options, strict=True)) >= 0.4 * sum(counts)
        )
        assert abs(sum(c.losses[c.taken] for c in choices) - best) < 1e-12
        reached = sum(c.count * c.share for c in choices)
        assert reached >= 0.4 * sum(counts) - 1e-9
        assert all(c.share <= shares[c.taken] for c in choices)


def rows(*found):
    return Sensitivity(tuple(SensitivityRow(*row, 0.1, 20.0) for row in found), "loss", 1.0)


@pytest.mark.parametrize(
    ("table", "levels", "target", "text"),
    [
        (
            rows(("head", "0.5")),
            sparsity_levels([0.5]),
            0.6,
            "at most 0.5, what the levels",
        ),
        (
            rows(("head", "0.5")),
            sparsity_levels([0.5]),
            1.0,
            "target must be in .* got 1.0",
        ),
        (rows(("9", "0.5")), sparsity_levels([0.5]), 0.3, "this model, got '9' at '0.5'"),
        (rows(("head", "int8")), sparsity_levels([0.5]), 0.3, "got 'head' at 'int8'"),
        (
            rows(("head", "a")),
            {"a": Layer(sparsity=NM(2, 4))},
            0.3,
            "be Unstructured, got 'a'",
        ),
    ],
)
def test_what_does_not_fit(table, levels, target, text):
    with pytest.raises(ValueError, match=f"sparsity_plan: .*{text}"):
        sparsity_plan(Network(), table, levels, target)


def test_levels():
    levels = sparsity_levels([0.5, 0.95])
    assert levels["0.95"] == Layer(sparsity=Unstructured(0.95, "local"))
    for shares in ([], [0.0], [1.0]):
        with pytest.raises(ValueError, match="sparsity"):
            sparsity_levels(shares)
