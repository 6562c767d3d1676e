"""`load` into an architecture on the meta device, whose weights never take memory."""

import pytest
import torch
import torchvision
from test_storage import PLANS, assert_same_state, data, network, prepared
from torch import nn

from sparseq import Layer, Plan, Quant, calibrate, convert, load, prepare, save, testing
from sparseq.flow import meta
from sparseq.packed import PackedWeight


def on_meta(build):
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize("converted", [False, True], ids=["prepared", "converted"])
@pytest.mark.parametrize("name", PLANS)
def test_what_the_file_has_is_put_on_the_cpu(tmp_path, name, converted):
    model = convert(prepared(name)) if converted else prepared(name)
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", on_meta(network)).eval()
    assert_same_state(model, again)
    x = data()
    testing.assert_equal(again(x), model(x))


def test_a_lowered_network(tmp_path):
    x = torch.randn(1, 3, 32, 32)
    plan = Plan({"*": Layer(Quant(axis=0), input=Quant(symmetric=False))})
    model = prepare(torchvision.models.resnet18(num_classes=10).eval(), plan)
    fast = convert(calibrate(model, [x]), x)
    save(fast, tmp_path / "model.safetensors")
    empty = on_meta(lambda: torchvision.models.resnet18(num_classes=10))
    again = load(tmp_path / "model.safetensors", empty)
    assert type(again) is type(fast)
    testing.assert_equal(again(x), fast(x))


def test_floats_of_16_bits(tmp_path):
    def build():
        return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))

    model = convert(prepare(build().eval(), Plan({"0": Layer(dtype="bfloat16")})))
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", on_meta(build)).eval()
    assert again[0].weight.dtype == torch.bfloat16
    x = torch.randn(3, 8)
    testing.assert_equal(again(x), model(x))


def tied():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    return model


def test_tied_weights_stay_tied(tmp_path):
    model = tied()
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", on_meta(tied))
    assert again[2].weight is again[0].weight
    assert_same_state(model, again)


def test_formats_and_frozen_parameters_are_kept():
    model = on_meta(network).to(memory_format=torch.channels_last)
    model[3].weight.requires_grad_(False)
    meta.materialize(model)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert [model[0].weight.requires_grad, model[3].weight.requires_grad] == [True, False]
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("steps", torch.arange(4.0), persistent=False)

    def forward(self, x):
        return self.linear(x + self.steps)


def test_a_buffer_that_no_file_has_is_named(tmp_path):
    save(Positions(), tmp_path / "model.safetensors")
    empty = on_meta(Positions)
    with pytest.raises(ValueError, match="steps is on the meta device and not saved"):
        load(tmp_path / "model.safetensors", empty)
    assert all(p.is_meta for p in empty.parameters())  # left as it was
    load(tmp_path / "model.safetensors", Positions())


def test_the_draft_takes_no_memory_of_weights():
    model = Positions()
    draft = meta.shapes_of(model)
    assert draft.linear.weight.is_meta and not model.linear.weight.is_meta
    testing.assert_equal(draft.steps, model.steps)  # no file would bring it


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("axis", [0, None])
def test_a_packed_weight_like_another(symmetric, signed, group, axis):
    spec = Quant(symmetric=symmetric, signed=signed, group_size=group, axis=axis)
    weight = torch.randn(6, 8, 1, 3)
    made, like = PackedWeight.from_float(weight, spec), PackedWeight.like(weight, spec)
    for name in ("values", "scale", "zero_point"):
        wanted, found = getattr(made, name), getattr(like, name)
        assert (wanted is None) == (found is None)
        if found is not None:
            assert found.is_meta and (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    with pytest.raises(ValueError, match="axis must be that of outputs, 0, got 3"):
        PackedWeight.like(weight.mT, Quant(axis=3))
    if group is not None:
        with pytest.raises(ValueError, match="group_size must divide the 21 elements"):
            PackedWeight.like(torch.randn(6, 7, 1, 3), spec)
