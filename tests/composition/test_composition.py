"""Prune, quantise and distil in any order, on random small networks: what each must leave whole."""

import numpy as np
import onnx
import pytest
import random_networks as random
import torch
from hypothesis import HealthCheck, event, given, settings
from onnx import numpy_helper
from random_networks import Student, assert_same_state, assert_zero, masks, recipes, snapshot

import sparseq
from sparseq import NM, Layer, Plan, Quant, Unstructured, export
from sparseq.flow.prepare import layers_of, original_weight, weight_transforms
from sparseq.nn import SparseQuantLayer
from sparseq.sparse import PruningSchedule

many = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
few = settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])


def share(kept):
    return sum(int((~m).sum()) for m in kept.values()) / max(
        1, sum(m.numel() for m in kept.values())
    )


@many
@given(recipes())
def test_masked_weights_stay_zero_on_the_whole_way(tmp_path, recipe):
    """After QAT steps, folding, convert, save and load, of what was prepared and what was made."""
    event(" ".join(recipe.order))
    student = Student(recipe).run()
    kept = masks(student.model)
    if isinstance(recipe.sparsity, Unstructured):
        assert set(kept) == set(recipe.pruned)
        assert share(kept) == pytest.approx(recipe.sparsity.sparsity, abs=0.05)
    assert_zero(student.model, kept)
    fast = sparseq.convert(student.model)
    assert any(isinstance(m, SparseQuantLayer) for m in fast.modules())
    assert_zero(fast, kept)
    for model in (student.model, fast):
        sparseq.save(model, tmp_path / "m.safetensors")
        again = sparseq.load(tmp_path / "m.safetensors", recipe.network())
        assert_zero(again, kept)
        assert_same_state(again, snapshot(model))
        assert torch.equal(again.eval()(recipe.images()), model(recipe.images()))
    assert masks(again) == {}
    assert_zero(sparseq.convert(sparseq.load(tmp_path / "m.safetensors", recipe.network())), kept)


@few
@given(recipes())
def test_masked_weights_are_zero_in_the_onnx_file(tmp_path, recipe):
    student = Student(recipe).run()
    kept = masks(student.model)
    fast = sparseq.convert(student.model)
    path = tmp_path / "m.onnx"
    assert export.onnx(fast, recipe.images(), path).passed
    stored = {t.name: t for t in onnx.load(path).graph.initializer}
    layers = layers_of(fast, converted=True)
    for name, mask in kept.items():
        if isinstance(layers[name], SparseQuantLayer):
            integers = numpy_helper.to_array(stored[f"{name}.weight_values"]).astype(np.int32)
            zero = layers[name].weight_zero_point
            if zero is not None:
                integers = integers - zero.numpy().reshape(-1, *[1] * (integers.ndim - 1))
            assert integers.shape == tuple(mask.shape)
            assert not integers[~mask.numpy()].any(), name
        else:
            values = numpy_helper.to_array(stored[f"{name}.weight"])
            assert not values[~mask.numpy()].any(), name


@many
@given(recipes())
def test_pruning_touches_no_other_layer(recipe):
    model, untouched = recipe.network(), recipe.network()
    others = layers_of(untouched)
    sparseq.prepare(model, recipe.sparsities)
    kept = masks(model)
    assert set(kept) <= set(recipe.pruned)
    if recipe.iterative:
        schedule = PruningSchedule(model, 3)
        while not schedule.done:
            schedule.step()
    for name, layer in layers_of(model).items():
        assert torch.equal(original_weight(layer), others[name].weight), name
        if name not in kept:
            assert not weight_transforms(layer), name
            assert torch.equal(layer.weight, others[name].weight), name
    dense = sparseq.convert(model)
    plain = sparseq.convert(untouched)
    for name, layer in layers_of(dense).items():
        if name not in kept:
            assert torch.equal(layer.weight, layers_of(plain)[name].weight), name


@many
@given(recipes(iterative=True))
def test_a_finished_schedule_changes_nothing(recipe):
    student = Student(recipe).run()
    model, schedule = student.model, student.schedule
    answer = model(recipe.images())  # weights' grids follow the last step's weights from here on
    state, kept = snapshot(model), masks(model)
    for _ in range(3):
        assert schedule.done
        schedule.step()
    assert_same_state(model, state)
    assert torch.equal(model(recipe.images()), answer)
    student.distil(2)  # each step calls the schedule's
    for name, mask in masks(model).items():
        assert torch.equal(mask, kept[name]), name
    assert_zero(model, kept)


@many
@given(recipes())
def test_preparing_in_either_order_is_preparing_once(recipe):
    def prepared(*plans):
        model = recipe.network()
        for plan in plans:
            sparseq.prepare(model, plan)
        return sparseq.calibrate(model, [recipe.images()])

    merged = {name: Layer(recipe.weight, recipe.input) for name in layers_of(recipe.network())}
    merged |= {} if recipe.left is None else {recipe.left: None}
    for name in recipe.pruned:
        grid = merged[name]
        merged[name] = Layer(grid and grid.weight, grid and grid.input, recipe.sparsity)
    once = prepared(Plan(merged))
    x = recipe.images(1)
    for plans in ((recipe.sparsities, recipe.grids), (recipe.grids, recipe.sparsities)):
        twice = prepared(*plans)
        assert_same_state(twice, snapshot(once))
        assert torch.equal(twice(x), once(x))
        one, other = sparseq.convert(twice), sparseq.convert(once)
        assert_same_state(one, snapshot(other))
        assert torch.equal(one(x), other(x))


@many
@given(recipes())
def test_preparing_again_with_the_same_plan_changes_nothing(recipe):
    model = recipe.network()
    for plan in (recipe.sparsities, recipe.grids):
        sparseq.prepare(model, plan)
    sparseq.calibrate(model, [recipe.images()])
    state = snapshot(model)
    for plan in (recipe.sparsities, recipe.grids):
        sparseq.prepare(model, plan)
    sparseq.calibrate(model, [recipe.images()])
    assert_same_state(model, state)


@many
@given(recipes())
def test_distilling_hangs_nothing_on_the_student(recipe):
    model, student = recipe.network(), Student(recipe)
    student.distil()
    assert student.model.state_dict().keys() == model.state_dict().keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.model.modules())
    assert not torch.equal(student.model.stem.weight, model.stem.weight)


@pytest.mark.parametrize("folded", [-1.0, 0.0, 3.0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_batch_norm_of_any_sign_leaves_zeros(folded, symmetric):
    """A negative factor mirrors integers, a zero one wipes them: of zero points, too."""
    model = random.network(("plain",), "batch", 8, 0)
    for norm in (model.norm, model.blocks[0].norm, model.hidden_norm):
        norm.weight.data.fill_(folded)
    layer = Layer(Quant(axis=0, symmetric=symmetric), Quant(symmetric=False), NM(2, 4))
    sparseq.calibrate(sparseq.prepare(model, Plan({"*": layer})), [random.images(0)])
    kept = masks(model)
    assert len(kept) == 4
    fast = sparseq.convert(model)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fast.modules())
    assert_zero(fast, kept)
