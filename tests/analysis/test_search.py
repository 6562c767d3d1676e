"""Sensitivities, the knapsack, and plans under budgets."""

import copy
import itertools
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparseq
from sparseq import NM, Budget, Layer, Plan, Quant, bench
from sparseq.analysis import CANDIDATES
from sparseq.analysis.costs import file_megabytes
from sparseq.analysis.knapsack import frontier

SOME = {"int8": CANDIDATES["int8"], "int4": CANDIDATES["int4"], "float32": CANDIDATES["float32"]}
options = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=3),
    min_size=1,
    max_size=4,
)


@given(options)
def test_the_knapsack_is_brute_force(layers):
    costs = [[cost for cost, _ in layer] for layer in layers]
    losses = [[loss for _, loss in layer] for layer in layers]
    points = frontier(costs, losses)
    everything = list(itertools.product(*layers))
    sums = [(sum(c for c, _ in plan), sum(n for _, n in plan)) for plan in everything]
    for budget in sorted({cost for cost, _ in sums}):
        best = min(loss for cost, loss in sums if cost <= budget)
        assert [p for p in points if p.cost <= budget][-1].loss == best
    for p in points:
        assert p.cost == sum(c[o] for c, o in zip(costs, p.options, strict=True))
        assert p.loss == sum(n[o] for n, o in zip(losses, p.options, strict=True))
    assert all(a.cost < b.cost and a.loss > b.loss for a, b in itertools.pairwise(points))


def test_ties_go_to_the_earlier_option():
    assert [p.options for p in frontier([[1, 1, 1]] * 2, [[2, 2, 3]] * 2)] == [(0, 0)]


def test_many_layers_are_thinned_and_stay_near_the_optimum():
    random = np.random.default_rng(0)
    costs = random.uniform(1, 2, (12, 3)).tolist()
    losses = random.uniform(0, 1, (12, 3)).tolist()
    exact, thin = frontier(costs, losses, 10**9), frontier(costs, losses, 200)
    assert len(thin) <= 200 * 3 and thin[0].cost == exact[0].cost
    for point in exact:
        near = [p for p in thin if p.cost <= point.cost + 0.1]
        assert near[-1].loss <= point.loss + 0.1


def test_sensitivity_is_one_layer_quantised_alone(digits):
    model, batches = digits
    steps = []
    candidates = {**SOME, "2:4": Layer(sparsity=NM(2, 4))}
    table = sparseq.sensitivity(
        model, batches, candidates, progress=lambda done, total: steps.append((done, total))
    )
    assert table.loss == "cross-entropy"
    assert steps[-1] == (len(table.rows) * len(batches),) * 2 and len(steps) == steps[-1][0]
    labels = torch.cat([y for _, y in batches])
    for name, label in (("blocks.1.conv1", "int4"), ("fc", "int8"), ("blocks.2.conv2", "2:4")):
        alone = sparseq.prepare(copy.deepcopy(model), Plan({name: candidates[label]}))
        if label != "2:4":
            sparseq.calibrate(alone, batches)
        with torch.no_grad():
            logits = torch.cat([alone(x) for x, _ in batches])
        loss = float(nn.functional.cross_entropy(logits, labels))
        assert table.float_loss + table.added(name, label) == pytest.approx(loss, rel=1e-5)
    assert table.added("stem", "2:4") == 0  # one input channel: stays dense
    for row in table.rows:
        if row.candidate == "float32":
            assert row.added == 0 and row.sqnr == float("inf")
    text = str(table)
    assert "blocks.2.shortcut.0" in text and "exact" in text
    json.dumps(table.to_dict(), allow_nan=False)
    with pytest.raises(KeyError, match="no row of layer 'fc' under 'int2'"):
        table.added("fc", "int2")


def test_what_a_layer_cannot_become_has_no_row():
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 8)).eval()
    candidates = {"group": Layer(Quant(bits=4, group_size=8)), "int8": CANDIDATES["int8"]}
    table = sparseq.sensitivity(model, [torch.randn(4, 12)], candidates)
    keys = [(row.name, row.candidate) for row in table.rows]
    assert keys == [("0", "int8"), ("1", "group"), ("1", "int8")]
    with pytest.raises(ValueError, match="candidate 'group' must serve a layer: prepare: : group"):
        sparseq.sensitivity(model[0], [torch.randn(4, 12)], {"group": candidates["group"]})


def added(model, batches, plan):
    """The mean squared error of a plan, as a user would measure it; and its file's size."""
    ready = sparseq.prepare(copy.deepcopy(model), plan)
    sparseq.calibrate(ready, batches)
    fast = sparseq.convert(ready)
    with torch.no_grad():
        pairs = [(model(x), fast(x)) for x, _ in batches]
        error = torch.cat([(y - z).square().mean(1) for y, z in pairs]).mean()
    return float(error), file_megabytes(fast), bench.accuracy(fast, batches)


def test_a_size_is_met_and_beats_uniform_plans_of_that_size(digits):
    model, batches = digits
    uniform = {label: added(model, batches, Plan({"*": SOME[label]})) for label in ("int8", "int4")}
    # between the two: the uniform plan that fits is INT4
    limit = (uniform["int8"][1] + uniform["int4"][1]) / 2
    found = sparseq.search(model, batches, SOME, budget=Budget(megabytes=limit))
    error, size, accuracy = added(model, batches, found.plan)
    assert size == found.measured_cost <= limit
    assert found.predicted_cost == pytest.approx(size, rel=0.05)
    assert found.metric == pytest.approx(accuracy)
    assert found.measured_added == pytest.approx(error, rel=1e-4)
    assert error < 0.7 * uniform["int4"][0]
    assert set(found.choices.values()) > {"int4"}
    # as large as INT8 all over: at least as good
    same = sparseq.search(model, batches, SOME, budget=Budget(megabytes=uniform["int8"][1]))
    assert same.measured_cost <= uniform["int8"][1]
    assert same.predicted_added <= sum(
        max(0, same.table.added(name, "int8")) for name in same.choices
    )
    again = sparseq.search(model, batches, SOME, budget=Budget(megabytes=limit))
    assert again == found  # deterministic
    assert Plan.from_json(found.plan.to_json()) == found.plan
    assert f"measured {size:.4g}" in str(found)


def test_three_layers_by_three_candidates_against_brute_force():
    torch.manual_seed(5)
    parts = [nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 64)]
    model, x = nn.Sequential(*parts).eval(), torch.randn(64, 64)
    table = sparseq.sensitivity(model, [x], SOME)
    plans = {}
    for labels in itertools.product(SOME, repeat=3):
        chosen = dict(zip(("0", "2", "4"), labels, strict=True))
        plan = Plan({name: SOME[label] for name, label in chosen.items()})
        ready = sparseq.prepare(copy.deepcopy(model), plan)
        if set(labels) != {"float32"}:
            sparseq.calibrate(ready, [x])
        error = sum(table.added(name, label) for name, label in chosen.items())
        plans[labels] = file_megabytes(sparseq.convert(ready)), error
    sizes = sorted(size for size, _ in plans.values())
    for limit in np.linspace(sizes[0], sizes[-1], 5) + 1e-6:
        found = sparseq.search(model, [x], SOME, budget=Budget(megabytes=float(limit)))
        best = min((error, size) for size, error in plans.values() if size <= limit)
        assert found.predicted_added == pytest.approx(best[0], rel=1e-6)
        assert found.measured_cost <= limit
        assert plans[tuple(found.choices.values())][1] == pytest.approx(best[0], rel=1e-6)


def test_a_drop_is_met(digits):
    model, batches = digits
    found = sparseq.search(model, batches, SOME, budget=Budget(drop=0.4))
    assert found.float_metric == bench.accuracy(model, batches)
    _, size, accuracy = added(model, batches, found.plan)
    assert found.drop == pytest.approx(found.float_metric - accuracy) and found.drop <= 0.4
    _, int8, _ = added(model, batches, Plan({"*": SOME["int8"]}))
    assert size < int8
    assert len(found.choices) == len(found.plan.rules) == 10


def test_a_metric_of_the_users_and_backing_off(digits):
    model, batches = digits
    asked = []

    def evaluate(network):
        """Falls with every layer in four bits: the additive model knows nothing of it."""
        asked.append(network)
        layers = [m for m in network.modules() if isinstance(m, sparseq.nn.SparseQuantLayer)]
        return 10.0 - sum(layer.weight_spec.bits == 4 for layer in layers)

    found = sparseq.search(model, batches[:1], SOME, budget=Budget(drop=2.0), evaluate=evaluate)
    assert list(found.choices.values()).count("int4") <= 2
    assert found.metric >= 8 and found.float_metric == 10
    assert len(asked) == found.evaluated + 1 > 2


def test_without_labels_the_metric_is_agreement(digits):
    model, batches = digits
    found = sparseq.search(model, [x for x, _ in batches], SOME, budget=Budget(drop=0.0))
    assert found.float_metric == found.metric == 100


def test_milliseconds_are_measured_on_the_layers_inputs(digits):
    model, batches = digits
    example = batches[0][0][:4]
    budget = Budget(milliseconds=1e6)  # no time is asserted: everything fits
    found = sparseq.search(model, batches[:1], SOME, budget=budget, example=example)
    assert set(found.choices.values()) == {"float32"} and found.predicted_added == 0
    assert found.measured_cost > 0 < found.predicted_cost
    found = sparseq.search(
        model,
        batches[:1],
        SOME,
        budget=Budget(drop=100.0, minimise="milliseconds"),
        example=example,
    )
    assert found.measured_cost > 0


def test_layers_with_odd_names_and_models_that_are_one_layer():
    model, x = nn.Linear(8, 8).eval(), torch.randn(16, 8)
    found = sparseq.search(model, [x], SOME, budget=Budget(megabytes=1.0))
    assert found.choices == {"": "float32"}
    odd = nn.Sequential()
    odd.add_module("a[0]*", nn.Linear(8, 8))
    plan = sparseq.search(odd.eval(), [x], SOME, budget=Budget(megabytes=1.0)).plan
    assert plan.match(["a[0]*", "a0b"]) == {"a[0]*": SOME["float32"]}


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (
            Budget(megabytes=1e-6),
            r"search: budget must be at least 0\.0\d+ megabytes, which the cheapest plan takes",
        ),
        (
            Budget(drop=0.0),
            r"search: budget must allow a drop of at least \d.*, which the most exact plan",
        ),
    ],
)
def test_budgets_that_nothing_meets(digits, budget, text):
    model, batches = digits
    coarse = {"w2": Layer(Quant(bits=2)), "w3": Layer(Quant(bits=3))}
    with pytest.raises(ValueError, match=text):
        sparseq.search(model, batches, coarse, budget=budget)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (
            lambda: Budget(),
            "exactly one of drop, megabytes and milliseconds must be given, got none",
        ),
        (lambda: Budget(drop=1, megabytes=2), "exactly one .* got {'drop': 1, 'megabytes': 2}"),
        (lambda: Budget(drop=-1), "drop must be a number at least 0, got -1"),
        (lambda: Budget(megabytes=0), "megabytes must be a number above 0, got 0"),
        (lambda: Budget(milliseconds="2"), "milliseconds must be a number above 0, got '2'"),
        (lambda: Budget(drop=float("nan")), "drop must be .* got nan"),
        (lambda: Budget(drop=1, minimise="watts"), "minimise must be one of .* got 'watts'"),
    ],
)
def test_bad_budgets(build, text):
    with pytest.raises(ValueError, match=f"Budget: {text}"):
        build()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"budget": 1.0}, TypeError, "search: budget must be a Budget, got float"),
        (
            {"budget": Budget(milliseconds=1)},
            ValueError,
            "search: example must be given where milliseconds count, got None",
        ),
        (
            {"budget": Budget(milliseconds=1), "example": 5},
            TypeError,
            "search: example must be a tensor, got int",
        ),
        ({"candidates": []}, ValueError, "search: candidates must be Layers, by label or in a"),
        ({"candidates": {"a": None}}, ValueError, "search: candidates must be Layers"),
    ],
)
def test_bad_arguments(arguments, error, text):
    arguments = {"budget": Budget(drop=1), **arguments}
    with pytest.raises(error, match=re.escape(text)):
        sparseq.search(nn.Linear(4, 4), [torch.randn(2, 4)], **arguments)
