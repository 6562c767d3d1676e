"""Channels that go or change places, then prune, quantise and distil in any order."""

import copy
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from random_networks import (
    Student,
    assert_same_state,
    assert_zero,
    channels,
    masks,
    recipes,
    snapshot,
)
from torch import nn

import sparseq
from sparseq import NM, Channels, Layer, Plan, Quant, Unstructured, export
from sparseq.flow.prepare import layers_of
from sparseq.nn import SparseQuantLayer

some = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
few = settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
groups = st.sampled_from([NM(2, 4), NM(1, 4), NM(1, 2)])


def weights(model):
    """The integers, or the floats, of each layer by name."""
    layers = layers_of(model, converted=True).items()
    return {n: m.weight_values if isinstance(m, SparseQuantLayer) else m.weight for n, m in layers}


def shapes(model):
    return {name: tuple(weight.shape) for name, weight in weights(model).items()}


def assert_close(found, wanted, share):
    off = (found - wanted).detach().abs().max()
    assert float(off) <= share * float(wanted.detach().abs().max()) + 1e-6


def assert_it_is_kept(tmp_path, model, kept, recipe):
    """Saved, and loaded into the architecture as it was at first, it is the same model."""
    sparseq.save(model, tmp_path / "m.safetensors")
    again = sparseq.load(tmp_path / "m.safetensors", recipe.network()).eval()
    assert shapes(again) == shapes(model)
    assert_zero(again, kept)
    assert_same_state(again, snapshot(model))
    assert torch.equal(again(recipe.images()), model(recipe.images()))
    return again


@some
@given(recipes(), channels, st.booleans())
def test_channels_go_before_everything_else(tmp_path, recipe, spec, trained):
    """Then all that holds of an ordinary model holds of the smaller one."""
    event(" ".join(recipe.order))
    student = Student(recipe)
    if trained:
        student.distil()
    whole = sum(p.numel() for p in student.model.parameters())
    report = student.remove(spec)
    sizes = shapes(student.model)
    assert report.parameters == (whole, sum(p.numel() for p in student.model.parameters()))
    assert bool(report.pruned) == (report.parameters[1] < whole)
    student.run()
    kept = masks(student.model)
    assert shapes(student.model) == sizes
    if isinstance(recipe.sparsity, Unstructured):
        assert set(kept) == set(recipe.pruned)
    assert_zero(student.model, kept)
    fast = sparseq.convert(student.model)
    assert shapes(fast) == sizes
    assert_zero(fast, kept)
    assert_it_is_kept(tmp_path, fast, kept, recipe)
    again = assert_it_is_kept(tmp_path, student.model, kept, recipe)
    assert_same_state(sparseq.convert(again), snapshot(fast))


@few
@given(recipes(), channels, st.booleans())
def test_what_is_left_is_exported(tmp_path, recipe, spec, permuted):
    student = Student(recipe)
    student.remove(spec)
    if permuted:
        sparseq.permute_channels(student.model, recipe.images()[:1], PAIRS, escapes=0)
    kept = masks(student.run().model)
    fast = sparseq.convert(student.model)
    path = tmp_path / "m.onnx"
    assert export.onnx(fast, recipe.images(), path).passed
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    layers = layers_of(fast, converted=True)
    for name, mask in kept.items():
        if isinstance(layers[name], SparseQuantLayer):
            integers = stored[f"{name}.weight_values"].astype(np.int32)
            zero = layers[name].weight_zero_point
            if zero is not None:
                integers = integers - zero.numpy().reshape(-1, *[1] * (integers.ndim - 1))
        else:
            integers = stored[f"{name}.weight"]
        assert integers.shape == tuple(mask.shape) == shapes(student.model)[name]
        assert not integers[~mask.numpy()].any(), name


@some
@given(recipes(), st.lists(channels, min_size=2, max_size=3), st.integers(0, 2))
def test_channels_go_in_rounds_with_training_between(tmp_path, recipe, rounds, stop):
    """Saved and loaded on the way, the model goes on as it would have gone."""
    student, other = Student(recipe), Student(recipe)
    for i, spec in enumerate(rounds):
        before = sum(p.numel() for p in student.model.parameters())
        report = student.remove(spec)
        assert report.parameters[0] == before
        assert all(1 <= group.after <= group.before for group in report.groups)
        assert str(other.remove(spec)) == str(report)
        for each in (student, other):
            parameters = [p.detach().clone() for p in each.model.parameters()]
            each.distil()  # the optimizer is built in it
            moved = zip(parameters, each.model.parameters(), strict=True)
            assert not any(torch.equal(old, new) for old, new in moved if new.dim() > 1)
        if i == stop:
            other.model = assert_it_is_kept(tmp_path, other.model, {}, recipe)
        assert_same_state(other.model, snapshot(student.model))
    assert_it_is_kept(tmp_path, student.run().model, masks(student.model), recipe)


def structure(model):
    """All that a refused call might have touched beside the state."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [
        (
            name,
            type(m),
            m.training,
            m.extra_repr(),
            [len(getattr(m, h)) for h in hooks],
            set(vars(m)),
        )
        for name, m in model.named_modules()
    ], [id(p) for p in model.parameters()]


@some
@given(recipes(), channels, st.sampled_from(["prune", "quantise", "convert"]), st.booleans())
def test_after_prepare_both_are_refused(recipe, spec, step, train):
    """With one error, and nothing touched."""
    student = Student(recipe)
    for each in ["prune", "quantise"] if step == "convert" else [step]:
        getattr(student, each)()
    model = sparseq.convert(student.model) if step == "convert" else student.model
    model.train(train)
    state, before = snapshot(model), structure(model)
    x = recipe.images()[:1]
    for name, call in {
        "prune_channels": lambda: sparseq.prune_channels(model, x, spec),
        "permute_channels": lambda: sparseq.permute_channels(model, x, PAIRS),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name}: model must be a float one, got \w") as e:
            call()
        assert "before prepare" in str(e.value)
        assert structure(model) == before
        assert_same_state(model, state)


PAIRS = Plan({"*": Layer(sparsity=NM(2, 4))})


def permuted_network(recipe, spec):
    """The recipe's network, and the same with its channels in a better order for N:M."""
    model = recipe.network()
    permuted = copy.deepcopy(model)
    plan = Plan({"*": Layer(sparsity=spec)})
    report = sparseq.permute_channels(permuted, recipe.images()[:1], plan, escapes=0)
    before, after = (sum(getattr(row, k) for row in report.layers) for k in ("before", "after"))
    assert after >= before * (1 - 1e-6)
    return model, permuted, report


@st.composite
def wide_recipes(draw, **arguments):
    return replace(draw(recipes(**arguments)), width=draw(st.sampled_from([8, 16])))


@some
@given(wide_recipes(), groups)
def test_a_permuted_network_computes_what_it_did(recipe, spec):
    model, permuted, _ = permuted_network(recipe, spec)
    x = recipe.images(1)
    assert_close(permuted(x), model(x), 1e-5)
    assert_close(permuted.double()(x.double()), model.double()(x.double()), 1e-12)
    for one, other in zip(model.parameters(), permuted.parameters(), strict=True):
        assert torch.equal(one.flatten().sort().values, other.flatten().sort().values)


@some
@given(wide_recipes(), groups, st.booleans(), st.sampled_from([None, 0.3, 0.7]))
def test_and_does_so_on_the_whole_way(tmp_path, recipe, spec, weight_only, sparsity):
    """What does not go by the order of channels makes the same of both networks.

    Masks of single weights and grids do not: so the prepared, converted, loaded and exported model
    is the same function too, to rounding (of grids of inputs, if there are such).
    """
    assume(sparsity is None or recipe.norm == "batch")
    layer = Layer(
        replace(recipe.weight, learned=False),
        None if weight_only else replace(recipe.input, learned=False),
        None if sparsity is None else Unstructured(sparsity, "local"),
    )
    x, share = recipe.images(1), 1e-4 if weight_only else 0.05
    models = permuted_network(recipe, spec)[:2]
    for model in models:
        sparseq.prepare(model, Plan({"*": layer}))
        sparseq.calibrate(model, [recipe.images()])
    assert_close(models[1](x), models[0](x), share)
    fast = [sparseq.convert(model) for model in models]
    assert_close(fast[1](x), fast[0](x), share)
    mine, other = weights(fast[1]), weights(fast[0])
    for name, integers in mine.items():
        assert torch.equal(integers.flatten().sort().values, other[name].flatten().sort().values)
    assert_it_is_kept(tmp_path, fast[1], masks(models[1]), recipe)


@some
@given(wide_recipes(), groups)
def test_masks_follow_the_new_order(tmp_path, recipe, spec):
    """N:M of a permuted network keeps what the report says, to the end of any order of steps."""
    recipe = replace(recipe, sparsity=spec, iterative=False)
    _, permuted, report = permuted_network(recipe, spec)
    masked = sparseq.prepare(copy.deepcopy(permuted), Plan({"*": Layer(sparsity=spec)}))
    for row in report.layers:
        if row.name in masks(masked):
            magnitude = float(masked.get_submodule(row.name).weight.detach().double().abs().sum())
            assert magnitude == pytest.approx(row.after, rel=1e-5), row.name
    student = Student(recipe)
    student.model = permuted
    kept = masks(student.run().model)
    assert_zero(permuted, kept)
    fast = sparseq.convert(permuted)
    assert_zero(fast, kept)
    assert_it_is_kept(tmp_path, fast, kept, recipe)


def transformer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    return nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 4)).eval()


def test_attentions_lose_heads_and_then_take_part(tmp_path):
    """In two rounds, in another order, with masks and on integers: at each step it can be saved."""
    model, x = transformer(), torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "m.safetensors"
    plan = Plan({"*": Layer(Quant(axis=0), Quant(symmetric=False), NM(1, 2))})

    def assert_it_is_saved(model):
        sparseq.save(model, path)
        assert torch.equal(sparseq.load(path, transformer()).eval()(x), model(x))

    for heads in (2, 1):
        sparseq.prune_channels(model, x, Channels(0.5, round_to=1))
        assert model[1].layers[0].self_attn.num_heads == heads
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        model.train()(x).square().sum().backward()
        optimizer.step()
        assert_it_is_saved(model.eval())
    before = model(x)
    report = sparseq.permute_channels(model, x, plan)
    assert any(row.after > row.before for row in report.layers)
    assert_close(model(x), before, 1e-5)
    sparseq.calibrate(sparseq.prepare(model, plan), [x])
    kept = masks(model)
    assert len(kept) == len(layers_of(model))
    assert_it_is_saved(model)
    fast = sparseq.convert(model)
    assert_zero(fast, kept)
    assert_it_is_saved(fast)
    assert export.onnx(fast, x, tmp_path / "m.onnx").passed
