import copy
import math

import pytest
import torch
from torch import nn

from sparseq import Quant, ops, testing
from sparseq.quant import FakeQuantize, freeze_observers, range_of_values, range_to_grid


def weight_quantizer(shape=(), **scheme):
    return FakeQuantize(Quant(**scheme), shape, follow=True)


def input_quantizer(**scheme):
    return FakeQuantize(Quant(**scheme), (), follow=False)


@pytest.mark.parametrize("training", [True, False])
def test_a_weights_grid_follows_it(training):
    quantizer = weight_quantizer((3,), axis=0).train(training)
    for factor in (1.0, 10.0, 0.1):
        weight = factor * torch.randn(3, 5)
        y = quantizer(weight)
        scale = weight.abs().amax(1) / 127
        testing.assert_equal(quantizer.scale, scale)
        testing.assert_equal(y, ops.fake_quantize(weight, scale, None, -127, 127, 0))


def test_groups_follow_too():
    weight = torch.randn(4, 6)
    quantizer = weight_quantizer((4, 2), group_size=3, bits=4, symmetric=False)
    y = quantizer(weight)
    low, high = weight.reshape(4, 2, 3).aminmax(dim=-1)
    scale, zero_point = range_to_grid(low, high, quantizer.spec)
    testing.assert_equal(quantizer.scale, scale)
    testing.assert_equal(y, ops.fake_quantize(weight, scale, zero_point, -8, 7, 0, 3))


def test_an_input_is_watched_in_training_only():
    quantizer = input_quantizer(symmetric=False)
    quantizer.train()(torch.tensor([-1.0, 1.55]))
    assert float(quantizer.scale) == pytest.approx(0.01) and int(quantizer.zero_point) == -28
    quantizer.eval()(torch.tensor([-100.0, 100.0]))
    assert float(quantizer.scale) == pytest.approx(0.01)
    quantizer.train()(torch.tensor([-1.0, 4.1]))
    assert float(quantizer.scale) == pytest.approx(0.02)


def test_moving_average_in_training():
    quantizer = input_quantizer(observer="moving_average").train()
    quantizer(torch.tensor([1.27]))
    quantizer(torch.tensor([2.54]))
    assert float(quantizer.scale) == pytest.approx((1.27 + 0.1 * 1.27) / 127)


def test_without_a_range_it_says_what_to_do():
    with pytest.raises(RuntimeError, match="calibrate"):
        input_quantizer().eval()(torch.randn(3))


def test_a_batch_is_quantised_on_the_grid_of_those_before_it():
    """Observed in the same pass; the very first on its own."""
    quantizer = input_quantizer().train()
    assert float(quantizer(torch.tensor([1.27]))) == pytest.approx(1.27)
    assert float(quantizer(torch.tensor([2.54]))) == pytest.approx(1.27)
    assert float(quantizer(torch.tensor([5.08]))) == pytest.approx(2.54)
    assert float(quantizer.eval()(torch.tensor([9.0]))) == pytest.approx(5.08)


def test_passes_before_the_backward_pass_do_not_disturb_each_other():
    """A shared layer, or accumulated losses: each backward uses the grid of its own forward."""
    quantizer = input_quantizer(observer="moving_average", bits=4).train()
    quantizer(torch.tensor([0.7]))
    first, second = (torch.tensor([v], requires_grad=True) for v in (0.5, 0.9))
    y = quantizer(first) + quantizer(second)
    y.backward()
    assert first.grad.item() == 1.0 and second.grad.item() == 0.0


def test_a_batch_that_overflowed_moves_nothing():
    quantizer = input_quantizer(observer="moving_average").train()
    quantizer(torch.tensor([1.27]))
    quantizer(torch.tensor([float("nan"), 5.0]))
    assert float(quantizer.scale) == pytest.approx(0.01)


@pytest.mark.parametrize("kind", ["percentile", "histogram", "entropy"])
def test_observers_of_distributions_look_in_calibration_only(kind):
    quantizer = input_quantizer(observer=kind).train()
    with pytest.raises(RuntimeError, match=r"run calibrate\(model, batches\)$"):
        quantizer(torch.randn(5))
    quantizer.start_observing()
    quantizer(torch.randn(5000))
    quantizer.stop_observing()
    scale = quantizer.scale.clone()
    quantizer(100 * torch.randn(5000))
    testing.assert_equal(quantizer.scale, scale)


@pytest.mark.parametrize("kind", ["percentile", "histogram", "entropy"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_weights_fitted_share_follows_it(kind, symmetric):
    """Fitted once, then scaled with the weight's own range, until calibrated anew."""
    weight = torch.randn(3, 500)
    quantizer = weight_quantizer((3,), axis=0, bits=4, observer=kind, symmetric=symmetric)
    quantizer(weight)
    fitted = range_to_grid(*range_of_values(weight, quantizer.spec, (3,)), quantizer.spec)
    torch.testing.assert_close(quantizer.scale, fitted[0], rtol=1e-6, atol=0)
    first = quantizer.scale.clone()
    quantizer(3 * weight)
    torch.testing.assert_close(quantizer.scale, 3 * first)
    other = weight**3
    quantizer(other)
    assert not torch.allclose(quantizer.scale, first)
    quantizer.start_observing()
    quantizer.stop_observing()
    quantizer(other)
    fitted = range_to_grid(*range_of_values(other, quantizer.spec, (3,)), quantizer.spec)
    torch.testing.assert_close(quantizer.scale, fitted[0], rtol=1e-6, atol=0)


def test_pact_clips_and_learns_from_what_it_clips():
    """Choi et al. 2018, eq. 1-4: dy/dalpha is 1 from alpha on and 0 below."""
    quantizer = input_quantizer(learned="pact", signed=False, bits=4).train()
    quantizer(torch.tensor([1.5]))
    x = torch.tensor([-0.5, 0.33, 1.2, 2.0, 3.0], requires_grad=True)
    y = quantizer(x)
    assert y.tolist() == pytest.approx([0.0, 0.3, 1.2, 1.5, 1.5])
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0, 0]
    alpha_step = quantizer.scale.grad.item() * 15  # a step of the scale moves alpha 15 times as far
    assert alpha_step == pytest.approx(2.0)  # two were clipped


def test_pact_of_a_signed_scheme_clips_both_ends():
    quantizer = weight_quantizer((2,), learned="pact", axis=0, bits=4)
    weight = torch.tensor([[0.7, -0.7], [1.4, 0.1]])
    quantizer(weight)
    wider = (2 * weight).requires_grad_()
    y = quantizer(wider)
    torch.testing.assert_close(y, torch.tensor([[0.7, -0.7], [1.4, 0.2]]))
    (y * torch.tensor([[1.0, 1.0], [5.0, 1.0]])).sum().backward()
    assert (quantizer.scale.grad * 7).tolist() == pytest.approx([0.0, 5.0])


def test_pact_learns_to_clip_an_outlier():
    x = torch.cat([torch.rand(2000), torch.tensor([40.0])])
    quantizer = input_quantizer(learned="pact", signed=False, bits=3).train()
    quantizer(x)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.5, weight_decay=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        (quantizer(x) - x)[:-1].square().mean().backward()
        optimizer.step()
    assert quantizer.scale.item() * 7 < 20


def test_frozen_grids_stay():
    quantizer = input_quantizer().train()
    quantizer(torch.tensor([1.27]))
    quantizer.freeze()
    y = quantizer(torch.tensor([5.0]))
    assert float(quantizer.scale) == pytest.approx(0.01) and float(y) == pytest.approx(1.27)


def test_freeze_observers_freezes_inputs_and_not_weights():
    model = nn.ModuleList([input_quantizer(), weight_quantizer()])
    freeze_observers(model)
    assert [m.frozen for m in model] == [True, False]


def test_disabled_it_passes_x_through():
    quantizer = weight_quantizer()
    quantizer.enabled = False
    x = torch.randn(5)
    assert quantizer(x) is x


def test_quantized_are_the_integers_of_forward():
    for scheme in ({}, {"symmetric": False}, {"bits": 4, "signed": False, "symmetric": False}):
        weight = torch.randn(3, 7)
        quantizer = weight_quantizer((3,), axis=0, **scheme)
        y = quantizer(weight)
        q, scale, zero_point = quantizer.quantized(weight)
        testing.assert_equal(ops.dequantize(q, scale, zero_point, axis=0), y)


def test_straight_through():
    quantizer = input_quantizer(bits=4)
    quantizer.train()(torch.tensor([0.7]))
    quantizer.eval()
    x = torch.tensor([0.3, -0.65, 5.0, -5.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("symmetric", [True, False])
def test_learned_grid_starts_from_what_is_seen_first(symmetric):
    quantizer = input_quantizer(learned=True, symmetric=symmetric).train()
    x = torch.tensor([-1.0, 1.55])
    quantizer(x)
    wanted = range_to_grid(torch.tensor(-1.0), torch.tensor(1.55), quantizer.spec)
    testing.assert_equal(quantizer.grid()[0].detach(), wanted[0])
    assert isinstance(quantizer.scale, nn.Parameter)
    if not symmetric:
        assert isinstance(quantizer.zero_point, nn.Parameter)
        assert quantizer.zero_point.item() == int(wanted[1])
    quantizer(10 * x)
    testing.assert_equal(quantizer.grid()[0].detach(), wanted[0])
    assert {n for n, _ in quantizer.named_parameters()} == {"scale"} | (
        set() if symmetric else {"zero_point"}
    )


def test_learned_gradient_is_scaled_as_in_the_paper():
    """1 / sqrt(elements of one scale * quant_max)."""
    quantizer = weight_quantizer((3,), axis=0, learned=True, bits=4)
    weight = torch.randn(3, 50)
    quantizer(weight).sum().backward()
    scale = quantizer.scale.detach()
    steps = weight / scale[:, None]
    inside = steps.round().abs() <= 7
    terms = torch.where(inside, steps.round() - steps, steps.sign() * 7)
    wanted = terms.double().sum(1) / math.sqrt(50 * 7)
    torch.testing.assert_close(quantizer.scale.grad.double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_learned_scale_stays_usable_below_zero():
    quantizer = weight_quantizer(learned=True)
    x = torch.randn(20)
    quantizer(x)
    with torch.no_grad():
        quantizer.scale.mul_(-1)
    y = quantizer(x)
    assert bool(y.isfinite().all()) and bool((y * x >= 0).all())
    with torch.no_grad():
        quantizer.scale.zero_()
    assert bool(quantizer(x).isfinite().all())


@pytest.mark.parametrize("symmetric", [True, False])
def test_training_a_learned_grid_reduces_the_loss(symmetric):
    x = torch.randn(2000) + (0 if symmetric else 1.5)
    quantizer = weight_quantizer(learned=True, bits=3, symmetric=symmetric)

    def loss():
        return (quantizer(x) - x).square().mean()

    first = loss().item()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.7 * first


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("follow", [True, False])
def test_state_dict_round_trip(learned, follow):
    spec = Quant(symmetric=False, learned=learned)
    quantizer = FakeQuantize(spec, (), follow=follow).train()
    quantizer(torch.tensor([-1.0, 2.0]))
    quantizer.freeze()
    again = FakeQuantize(spec, (), follow=follow)
    again.load_state_dict(copy.deepcopy(quantizer.state_dict()))
    assert again.frozen and again.calibrated
    x = torch.randn(50)
    testing.assert_equal(again.eval()(x), quantizer.eval()(x))


@pytest.mark.parametrize("spec", [Quant(axis=0), Quant(symmetric=False), Quant(learned=True)])
@pytest.mark.parametrize("follow", [True, False])
def test_compiled_equals_eager(spec, follow):
    torch._dynamo.reset()
    shape = (4,) if spec.axis == 0 else ()
    eager = FakeQuantize(spec, shape, follow=follow).train()
    other = copy.deepcopy(eager)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(4, 6)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = eager(a), compiled(b)
        testing.assert_equal(z, y)
        y.sum().backward()
        z.sum().backward()
        testing.assert_equal(b.grad, a.grad)
    testing.assert_equal(other.scale.detach(), eager.scale.detach())
    if spec.learned:
        torch.testing.assert_close(other.scale.grad, eager.scale.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    quantizer = input_quantizer().train()
    y = quantizer(torch.randn(10).to(dtype))
    assert y.dtype == dtype and quantizer.scale.dtype == torch.float32


def test_it_prints_its_scheme():
    assert "bits=4" in repr(weight_quantizer(bits=4))
