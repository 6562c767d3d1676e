"""SR-STE: the mask follows the weight, what is masked gets gradient and decay."""

import copy

import pytest
import torch
from torch import nn

from sparseq import NM, Layer, Plan, Quant, calibrate, convert, load, prepare, save, testing
from sparseq.flow import explain
from sparseq.sparse import Mask, freeze_masks, masks_of, nm_mask, update_masks

DECAY = 0.01


def network(refined=DECAY, **layer):
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8))
    return prepare(model, Plan({"*": Layer(sparsity=NM(2, 4, refined=refined), **layer)}))


def test_forward_and_gradient_by_formula():
    weight = torch.randn(6, 8, requires_grad=True)
    mask = Mask(NM(2, 4, refined=DECAY), weight.detach())
    factor = torch.randn(6, 8)
    y = mask(weight)
    (y * factor).sum().backward()
    kept = nm_mask(weight.detach())
    testing.assert_equal(y.detach(), torch.where(kept, weight.detach(), 0.0))
    testing.assert_equal(weight.grad, factor + torch.where(kept, 0.0, DECAY * weight.detach()))


def test_the_mask_of_a_pass_is_that_of_its_own_backward():
    weight = torch.tensor([[4.0, 3.0, 2.0, 1.0]], requires_grad=True)
    mask = Mask(NM(2, 4, refined=DECAY), weight.detach())
    y = mask(weight)
    with torch.no_grad():
        mask(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))  # another weight in between
    y.sum().backward()
    wanted = 1 + DECAY * torch.tensor([[0.0, 0.0, 2.0, 1.0]])
    testing.assert_equal(weight.grad, wanted)


def test_masks_change_while_training_and_only_then():
    torch.manual_seed(1)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, y = torch.randn(64, 16), torch.randn(64, 8)
    first = [mask.mask.clone() for mask, _ in masks_of(model)]
    for _ in range(20):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    mask, weight = masks_of(model)[0]
    assert not torch.equal(mask.mask, first[0])  # what was masked came back
    weight.data.copy_(torch.randn_like(weight))
    before = mask.mask.clone()
    model.eval()(x)
    testing.assert_equal(mask.mask, before)
    freeze_masks(model)
    testing.assert_equal(mask.mask, nm_mask(weight))
    before = mask.mask.clone()
    model.train()
    weight.data.copy_(torch.randn_like(weight))
    model(x).sum().backward()
    testing.assert_equal(mask.mask, before)
    assert bool((weight.grad[~before] != 0).any())  # of before; from now on none
    weight.grad = None
    model(x).sum().backward()
    assert not bool(weight.grad[~before].any())
    freeze_masks(model)  # again: changes nothing
    testing.assert_equal(mask.mask, before)


@pytest.mark.parametrize("frozen", [True, False])
def test_it_converts_to_exact_two_of_four(frozen, tmp_path):
    model = network(weight=Quant(axis=0), input=Quant(symmetric=False))
    calibrate(model, [torch.randn(32, 16)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(32, 16)).square().mean().backward()
        optimizer.step()
    if frozen:
        freeze_masks(model)
    model.eval()
    fast = convert(model)
    for name in ("0", "2"):
        groups = (fast.get_submodule(name).weight_values != 0).unflatten(1, (-1, 4)).sum(-1)
        assert int(groups.max()) <= 2
    assert explain(fast).dense == {}
    x = torch.randn(8, 16)
    torch.testing.assert_close(fast(x), model(x), atol=0.05, rtol=0.05)
    save(model, tmp_path / "m.safetensors")
    plain = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8))
    again = load(tmp_path / "m.safetensors", plain)
    assert [m.settled for m, _ in masks_of(again)] == [frozen] * 2
    testing.assert_equal(again.eval()(x), model(x))


def test_only_refined_masks_have_more_state():
    assert not any("settled" in key for key in network(refined=0.0).state_dict())
    model = network()
    freeze_masks(model)
    again = network()
    again.load_state_dict(model.state_dict())
    assert all(mask.settled for mask, _ in masks_of(again))
    assert all(mask.settled for mask, _ in masks_of(copy.deepcopy(again)))


def test_a_transposed_convolution_in_its_own_order():
    layer = nn.ConvTranspose2d(8, 4, 3, groups=2)
    model = prepare(nn.Sequential(layer), Plan({"*": Layer(sparsity=NM(2, 4, refined=DECAY))}))
    model.train()(torch.randn(1, 8, 5, 5)).sum().backward()
    mask, weight = masks_of(model)[0]
    testing.assert_equal(mask.mask, nm_mask(mask.ordered(weight.detach())))
    update_masks(model)
    assert bool((mask.mask.unflatten(1, (-1, 4)).sum(2) == 2).all())
