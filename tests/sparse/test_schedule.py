import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparseq import NM, Layer, Plan, Quant, Unstructured, prepare, testing
from sparseq.sparse import PruningSchedule, masks_of, update_masks


def network():
    return nn.Sequential(
        nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 4)
    )


def pruned(sparsity=0.8, scope="global", **layer):
    plan = Plan({"*": Layer(sparsity=Unstructured(sparsity, scope), **layer)})
    return prepare(network(), plan)


def zeros(model):
    return sum(int((~mask.mask).sum()) for mask, _ in masks_of(model))


ELEMENTS = 8 * 10 + 10 * 10 + 10 * 4


@pytest.mark.parametrize(
    ("curve", "shares"),
    [
        ("linear", [0.25, 0.5, 0.75, 1.0]),
        ("cubic", [1 - 0.75**3, 1 - 0.5**3, 1 - 0.25**3, 1.0]),
        ("one_shot", [1.0, 1.0, 1.0, 1.0]),
    ],
)
@pytest.mark.parametrize("start", [0.0, 0.2])
def test_curves_by_formula(curve, shares, start):
    model = pruned(0.8)
    schedule = PruningSchedule(model, 4, curve, start)
    assert zeros(model) == round(start * ELEMENTS)
    for share in shares:
        assert not schedule.done
        schedule.step()
        assert zeros(model) == round((start + (0.8 - start) * share) * ELEMENTS)
        assert schedule.sparsity == zeros(model) / ELEMENTS
    assert schedule.done


@given(
    st.integers(0, 2**31),
    st.floats(0, 0.99),
    st.integers(1, 6),
    st.sampled_from(("cubic", "linear")),
)
def test_masks_only_grow_and_end_exactly(seed, sparsity, steps, curve):
    torch.manual_seed(seed)
    model = pruned(sparsity)
    schedule = PruningSchedule(model, steps, curve)
    before = [mask.mask.clone() for mask, _ in masks_of(model)]
    while not schedule.done:
        with torch.no_grad():
            for parameter in model.parameters():  # training in between
                parameter.add_(0.3 * torch.randn_like(parameter))
        schedule.step()
        now = [mask.mask.clone() for mask, _ in masks_of(model)]
        assert not any(bool((n & ~b).any()) for n, b in zip(now, before, strict=True))
        before = now
    assert zeros(model) == round(sparsity * ELEMENTS)


def test_a_finished_schedule_changes_nothing():
    model = pruned(0.5)
    schedule = PruningSchedule(model, 2)
    schedule.step()
    schedule.step()
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    schedule.step()
    assert schedule.taken == 2
    for name, value in model.state_dict().items():
        if name.endswith("mask"):
            testing.assert_equal(value, state[name])


def test_local_scope_prunes_each_layer_alike_and_global_does_not():
    local, together = pruned(0.5, "local"), pruned(0.5)
    assert [int((~m.mask).sum()) for m, _ in masks_of(local)] == [40, 50, 20]
    with torch.no_grad():
        for model in (local, together):
            masks_of(model)[0][1].mul_(100)
            for mask, _ in masks_of(model):
                mask.mask.fill_(True)
            update_masks(masks_of(model))
    assert [int((~m.mask).sum()) for m, _ in masks_of(local)] == [40, 50, 20]
    counts = [int((~m.mask).sum()) for m, _ in masks_of(together)]
    assert sum(counts) == 110 and counts[0] < 5


def test_two_sparsities_are_ranked_apart():
    plan = Plan({"*": Layer(sparsity=Unstructured(0.5)), "4": Layer(sparsity=Unstructured(0.9))})
    model = prepare(network(), plan)
    schedule = PruningSchedule(model, 1)
    schedule.step()
    first, second, last = (int((~m.mask).sum()) for m, _ in masks_of(model))
    assert first + second == 90 and last == 36


def test_start_above_a_target_stops_at_the_target():
    model = pruned(0.3)
    PruningSchedule(model, 2, start=0.6)
    assert zeros(model) == round(0.3 * ELEMENTS)


def test_nm_masks_are_left_alone():
    plan = Plan({"*": Layer(sparsity=NM(2, 4)), "2": Layer(sparsity=Unstructured(0.5))})
    model = prepare(network(), plan)
    before = [m.mask.clone() for m, _ in masks_of(model) if isinstance(m.spec, NM)]
    assert len(before) == 1  # 10 inputs cannot be cut in fours
    PruningSchedule(model, 1).step()
    testing.assert_equal(masks_of(model)[0][0].mask, before[0])


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    ],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize("quant", [None, Quant(axis=0)], ids=["float", "int8"])
def test_masked_weights_stay_zero_through_training(optimizer, quant):
    """Momentum and weight decay move the hidden values, never the effective weight."""
    model = pruned(0.6, weight=quant)
    schedule = PruningSchedule(model, 3)
    steps = optimizer(model.parameters())
    x, y = torch.randn(16, 8), torch.randn(16, 4)
    losses = []
    for _ in range(12):
        if not schedule.done:
            schedule.step()
        steps.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        losses.append(loss.item())
        for module in model:
            if isinstance(module, nn.Linear):
                mask = next(t for t in module.parametrizations.weight if hasattr(t, "mask")).mask
                assert bool((module.parametrizations.weight.original.grad[~mask] == 0).all())
        steps.step()
        for module in model:
            if isinstance(module, nn.Linear):
                mask = next(t for t in module.parametrizations.weight if hasattr(t, "mask")).mask
                assert bool((module.weight[~mask] == 0).all())
    assert zeros(model) == round(0.6 * ELEMENTS)
    assert min(losses[4:]) < losses[3]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"steps": 0}, "PruningSchedule: steps must be at least 1, got 0"),
        ({"steps": 2, "curve": "square"}, "curve must be one of .*cubic.*, got 'square'"),
        ({"steps": 2, "start": 1.0}, r"start must be in \[0, 1\), got 1.0"),
        ({"steps": 2, "start": -0.1}, r"start must be in \[0, 1\), got -0.1"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        PruningSchedule(pruned(), **arguments)


def test_a_model_without_such_masks():
    text = "PruningSchedule: model must be prepared with Unstructured sparsity"
    with pytest.raises(ValueError, match=text):
        PruningSchedule(network(), 3)
    with pytest.raises(ValueError, match=text):
        PruningSchedule(prepare(network(), Plan({"0": Layer(sparsity=NM(2, 4))})), 3)
