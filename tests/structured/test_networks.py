"""Real networks: pruned they equal the masked ones, they train, quantise, save and load."""

import copy
import re

import pytest
import torch
from channel_cases import CASES, example
from torch import nn
from torch.nn import functional

import sparseq
from sparseq import Channels, Layer, Plan, Quant, prune_channels
from sparseq.structured.report import ChannelReport

pytest.importorskip("torchvision")
pytest.importorskip("timm")


def zeroed(model, smaller):
    """The model with zeros wherever the smaller one lacks something: found from the values alone.

    Every tensor of the smaller model is a sub-tensor of the model's; which rows and columns it took
    is found by looking for them, not by asking the graph.
    """
    masked = copy.deepcopy(model)
    state, small = masked.state_dict(), smaller.state_dict()
    assert state.keys() == small.keys()
    for name, value in state.items():
        kept = small[name]
        if kept.shape == value.shape:
            assert torch.equal(kept, value)
            continue
        assert kept.numel() < value.numel()
        inside = torch.isin(value, kept)
        # random values do not repeat, so that what was taken is a whole sub-tensor
        assert int(inside.sum()) == kept.numel(), name
        assert torch.equal(value[inside], kept.flatten()), name
        value.mul_(inside)
    return masked


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_smaller_network_equals_the_masked_one(name):
    model = CASES[name][0]().double()
    for value in model.state_dict().values():  # no value twice
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, dtype=value.dtype), alpha=1e-6)
    smaller, x = copy.deepcopy(model), example(name).double()
    report = prune_channels(smaller, x, Channels(0.4, round_to=2))
    assert isinstance(report, ChannelReport) and len(report.pruned) >= 2
    assert report.macs[1] < 0.9 * report.macs[0]
    assert report.parameters[1] == sum(p.numel() for p in smaller.parameters())
    sparseq.structured.cut.take_all_attentions(model)
    sparseq.structured.cut.take_all_attentions(smaller)  # those that lost none, for the names
    masked = zeroed(model, smaller)
    wanted, found = masked(x), smaller(x)
    assert wanted.abs().max() > 0
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
    assert not torch.allclose(found, model(x), rtol=1e-3)
    other = example(name, 3).double()  # another batch
    assert torch.allclose(smaller(other), masked(other), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_the_smaller_network_trains(name):
    model = CASES[name][0]()
    prune_channels(model, example(name), Channels(0.3, round_to=1))
    x = torch.randn(4, 3, 64, 64) if name not in ("vit", "timm vit") else example(name, 4)
    out = model.train()(x)
    functional.cross_entropy(out, torch.arange(4)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.shape == parameter.shape, key
        assert parameter.requires_grad and parameter.is_leaf
    for module in model.modules():  # sizes tell the truth
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape)
        if isinstance(module, nn.Conv2d):
            shape = (module.out_channels, module.in_channels // module.groups)
            assert shape == tuple(module.weight.shape[:2])
            assert re.search(rf"\({module.in_channels}, {module.out_channels},", repr(module))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit", "resnext50_32x4d"])
def test_the_smaller_network_quantises_and_comes_back_from_a_file(name, tmp_path):
    model = CASES[name][0]()
    x = example(name, 2)
    prune_channels(model, x, Channels(0.4))
    sparseq.save(model, tmp_path / "float")
    back = sparseq.load(tmp_path / "float", CASES[name][0]())
    assert torch.equal(back(x), model(x))
    plan = Plan({"*": Layer(weight=Quant(axis=0), input=Quant(symmetric=False))})
    sparseq.calibrate(sparseq.prepare(model, plan), [x])
    fast = sparseq.convert(model)
    expected = model(x)
    assert (fast(x) - expected).abs().max() <= 0.05 * expected.abs().max()
    for kind, net in (("prepared", model), ("converted", fast)):
        sparseq.save(net, tmp_path / kind)
        again = sparseq.load(tmp_path / kind, CASES[name][0]())
        assert torch.equal(again.eval()(x), net(x))


def test_a_file_of_a_pruned_model_may_not_grow_a_model(tmp_path):
    import json

    from safetensors.torch import save_file

    from sparseq.flow import storage

    model = CASES["resnet18"][0]()
    prune_channels(model, example("resnet18"), Channels(0.4))
    sparseq.save(model, tmp_path / "sound")
    metadata, parts = storage.read_file(tmp_path / "sound")
    fresh = CASES["resnet18"][0]()
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    for module, entry in {
        "fc": {"counts": {}, "shapes": {"weight": [10, 4096]}},
        "layer1": {"counts": {"num_heads": 1}, "shapes": {}},
        "bn1": {"counts": {"__class__": 1}, "shapes": {}},
        "nowhere": {"counts": {}, "shapes": {}},
        "conv1": {"counts": {}, "shapes": {"weight": [0, 3, 7, 7]}},
        "bn2": {"counts": {}},
    }.items():
        header = json.loads(metadata[storage.KEY])
        header["resized"][module] = entry
        text = json.dumps(header)
        altered = {storage.KEY: text, f"{storage.KEY}_sha256": storage._digest(text, parts)}
        save_file(parts, tmp_path / "altered", metadata=altered)
        with pytest.raises(ValueError, match="does not fit this model"):
            sparseq.load(tmp_path / "altered", fresh)
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())
