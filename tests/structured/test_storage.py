"""What save and load keep of channels that went."""

import pytest
import torch
from torch import nn

import sparseq
from sparseq import Channels, Layer, Plan, Quant, prune_channels
from sparseq.run.models import ResNet

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    body = ResNet(3, 10, width=16, depth=1, stages=2)
    return nn.Sequential(body, nn.ReLU(), nn.Linear(10, 4)).eval()


@pytest.mark.parametrize("pruned", ["", "0"])
@pytest.mark.parametrize("saved", ["", "0"])
@pytest.mark.parametrize("converted", [False, True])
def test_of_a_part_or_of_what_it_is_a_part_of(tmp_path, pruned, saved, converted):
    """The model that lost channels, a larger one around it, and a part of it can be saved."""
    model = network()
    prune_channels(model.get_submodule(pruned), X, Channels(0.5))
    prune_channels(model, X, Channels(0.25, round_to=1))
    if converted:
        sparseq.prepare(model, Plan({"*": Layer(Quant(axis=0))}))
        model = sparseq.convert(model)
    part = model.get_submodule(saved)
    for path in (tmp_path / "first.safetensors", tmp_path / "second.safetensors"):
        sparseq.save(part, path)  # a loaded model can be saved, too
        again = sparseq.load(path, network().get_submodule(saved)).eval()
        assert torch.equal(again(X), part(X))
        part = again


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(8, 6)
        self.third.weight = self.second.weight
        self.same = self.first

    def forward(self, x):
        return self.second(self.same(x)) + self.third(self.first(x).relu())


def test_one_parameter_of_two_layers_is_still_one(tmp_path):
    model, x = Tied(), torch.randn(2, 6)
    prune_channels(model, x, Channels(0.5, round_to=1))
    sparseq.save(model, tmp_path / "m.safetensors")
    again = Tied()
    again.second.weight.requires_grad_(False)
    again = sparseq.load(tmp_path / "m.safetensors", again)
    assert again.second.weight is again.third.weight and again.same is again.first
    assert again.second.weight.shape == (6, 4) and not again.second.weight.requires_grad
    assert torch.equal(again(x), model(x))


def test_the_memory_format_is_that_of_the_given_model(tmp_path):
    model = network()
    prune_channels(model, X, Channels(0.5))
    sparseq.save(model, tmp_path / "m.safetensors")
    for memory_format in (torch.channels_last, torch.contiguous_format):
        again = network().to(memory_format=memory_format)
        again = sparseq.load(tmp_path / "m.safetensors", again)
        weight = again[0].blocks[0].conv1.weight
        assert weight.shape == (8, 8, 3, 3)
        assert weight.is_contiguous(memory_format=memory_format)
