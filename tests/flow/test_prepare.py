import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from sparseq import NM, Layer, Plan, Quant, Unstructured, calibrate, ops, prepare, testing
from sparseq.flow.prepare import input_quantizers, layers_of, weight_transforms
from sparseq.quant import FakeQuantize
from sparseq.sparse import Mask, masks_of, nm_mask

BOTH = Layer(weight=Quant(axis=0), input=Quant(symmetric=False))


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


IMAGES = (4, 3, 6, 6)


def test_it_changes_in_place_and_keeps_parameters():
    model = network()
    parameters = {id(p) for p in model.parameters()}
    assert prepare(model, Plan({"*": BOTH})) is model
    assert {id(p) for p in model.parameters()} == parameters
    assert isinstance(model[0], nn.Conv2d)


def test_a_layer_computes_on_transformed_weight_and_input():
    plan = Plan({"5": Layer(weight=Quant(axis=0), input=Quant(symmetric=False), sparsity=NM(2, 4))})
    model = prepare(network(), plan)
    calibrate(model, [torch.randn(IMAGES)])
    model.eval()
    layer, x = model[5], torch.randn(7, 64)
    original = layer.parametrizations.weight.original
    masked = torch.where(nm_mask(original), original, 0.0)
    scale = masked.abs().amax(1) / 127
    weight = ops.fake_quantize(masked, scale, None, -127, 127, 0)
    grid = layer.input_quantizer.grid()
    wanted = nn.functional.linear(ops.fake_quantize(x, *grid, -128, 127), weight, layer.bias)
    testing.assert_equal(layer(x), wanted)
    assert [type(t) for t in weight_transforms(layer)] == [Mask, FakeQuantize]


def test_the_mask_comes_first_whatever_the_order_of_calls():
    model = network()
    prepare(model, Plan({"*": BOTH}))
    prepare(model, Plan({"5": Layer(sparsity=Unstructured(0.5))}))
    assert [type(t) for t in weight_transforms(model[5])] == [Mask, FakeQuantize]
    assert float((model[5].weight == 0).float().mean()) >= 0.5


def test_preparing_again_replaces_what_it_names_and_keeps_the_rest():
    model = prepare(network(), Plan({"*": Layer(weight=Quant(axis=0), sparsity=Unstructured(0.5))}))
    (mask, _) = masks_of(model)[0]
    weights = copy.deepcopy([original for _, original in masks_of(model)])
    prepare(model, Plan({"*": Layer(weight=Quant(bits=4, axis=0))}))
    assert masks_of(model)[0][0] is mask
    assert [t.spec.bits for t in weight_transforms(model[0]) if isinstance(t, FakeQuantize)] == [4]
    for (_, now), then in zip(masks_of(model), weights, strict=True):
        testing.assert_equal(now.detach(), then)
    hooks = len(model[0]._forward_pre_hooks)
    prepare(model, Plan({"*": Layer(input=Quant())}))
    prepare(model, Plan({"*": Layer(input=Quant(bits=7))}))
    assert len(model[0]._forward_pre_hooks) == hooks + 1
    assert model[0].input_quantizer.spec.bits == 7


def test_a_layer_that_cannot_take_nm_stays_dense():
    model = prepare(network(), Plan({"*": Layer(sparsity=NM(2, 4))}))
    assert not parametrize.is_parametrized(model[0])  # three input channels
    for index in (2, 5):
        groups = model[index].weight.movedim(1, -1).reshape(-1, 4)
        assert bool(((groups != 0).sum(1) == 2).all())


def test_global_sparsity_ranks_layers_together():
    model = network()
    with torch.no_grad():
        model[5].weight.mul_(1000)
    prepare(model, Plan({"*": Layer(sparsity=Unstructured(0.5))}))
    masks = [mask.mask for mask, _ in masks_of(model)]
    total = sum(m.numel() for m in masks)
    assert sum(int((~m).sum()) for m in masks) == round(0.5 * total)
    assert float(masks[2].float().mean()) > 0.9


def test_none_leaves_a_layer_alone():
    model = prepare(network(), Plan({"*": BOTH, "5": None}))
    assert not parametrize.is_parametrized(model[5]) and not hasattr(model[5], "input_quantizer")
    assert list(input_quantizers(model)) == ["0", "2"]


def test_gradients_reach_the_weights_and_training_works():
    model = prepare(network(), Plan({"*": BOTH})).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = torch.randn(32, *IMAGES[1:]), torch.randint(5, (32,))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert all(m.calibrated for m in input_quantizers(model).values())


def test_modes_follow_the_layer():
    model = network().eval()
    prepare(model, Plan({"*": BOTH}))
    transforms = [m for m in model.modules() if isinstance(m, FakeQuantize)]
    assert len(transforms) == 6 and not any(m.training for m in transforms)


def test_a_single_layer_is_a_model_too():
    layer = prepare(nn.Linear(8, 4), Plan({"*": BOTH}))
    calibrate(layer, [torch.randn(3, 8)])
    assert list(layers_of(layer)) == [""]
    assert layer(torch.randn(2, 8)).shape == (2, 4)


@pytest.mark.parametrize(
    ("model", "plan", "error", "text"),
    [
        (network, {"*": BOTH}, TypeError, "prepare: plan must be a sparseq.Plan, got dict"),
        (nn.ReLU, Plan({"*": BOTH}), ValueError, "prepare: model must hold nn.Linear, Conv1d"),
        (network, Plan({"head": BOTH}), ValueError, "pattern 'head' matches no layer.*0, 2, 5"),
        (
            network,
            Plan({"*": Layer(weight=Quant(axis=1))}),
            ValueError,
            "prepare: 0: weight must have axis 0 or None, got 1",
        ),
        (
            network,
            Plan({"*": Layer(weight=Quant(group_size=8))}),
            ValueError,
            "prepare: 0: group_size must divide the 27 inputs of an output channel, got 8",
        ),
    ],
)
def test_bad_plans(model, plan, error, text):
    with pytest.raises(error, match=text):
        prepare(model(), plan)


def test_parametrisations_of_the_user():
    """One of a single tensor stays and comes first; one of several is refused by name."""
    spectral = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))).eval()
    prepare(spectral, Plan({"*": BOTH}))
    prepare(spectral, Plan({"*": Layer(weight=Quant(bits=4, axis=0))}))
    kinds = [type(t).__name__ for t in weight_transforms(spectral[0])]
    assert kinds == ["_SpectralNorm", "FakeQuantize"]
    several = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)))
    with pytest.raises(ValueError, match="prepare: 0: weight must be one parameter"):
        prepare(several, Plan({"*": BOTH}))


def test_a_refused_plan_changes_nothing():
    model = network()
    with pytest.raises(ValueError, match="group_size must divide the 72"):
        prepare(model, Plan({"*": BOTH, "2": Layer(weight=Quant(group_size=7))}))
    assert not any(parametrize.is_parametrized(m) for m in model.modules())
    assert not any(hasattr(m, "input_quantizer") for m in model.modules())


# --- calibrate ---


def test_calibration_sees_the_float_activations_of_the_masked_model():
    model = prepare(network(), Plan({"*": BOTH}))
    batches = [torch.randn(IMAGES) for _ in range(3)]
    calibrate(model, batches)
    hidden = torch.cat(
        [
            nn.functional.relu(
                nn.functional.conv2d(
                    b, model[0].parametrizations.weight.original, model[0].bias, padding=1
                )
            )
            for b in batches
        ]
    )
    observed = model[2].input_quantizer.observer
    testing.assert_equal(observed.high, hidden.max().detach())
    assert float(model[2].input_quantizer.scale) == pytest.approx(
        float(hidden.max().detach()) / 255
    )
    first = model[0].input_quantizer.observer
    testing.assert_equal(first.low, torch.cat(batches).min())


@pytest.mark.parametrize("training", [True, False])
def test_calibration_restores_modes_and_statistics(training):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 4, 3))
    prepare(model.train(training), Plan({"*": BOTH}))
    model[2].eval()
    before = copy.deepcopy(model[1].state_dict())
    calibrate(model, [torch.randn(IMAGES)])
    for name, value in model[1].state_dict().items():
        testing.assert_equal(value, before[name])
    assert model.training == training and not model[2].training
    assert all(
        m.enabled and not m.observing for m in model.modules() if isinstance(m, FakeQuantize)
    )


def test_calibrating_again_starts_over():
    model = prepare(network(), Plan({"*": BOTH}))
    calibrate(model, [100 * torch.randn(IMAGES)])
    calibrate(model, [torch.ones(IMAGES)])
    assert float(model[0].input_quantizer.observer.high) == 1.0


def test_learned_grids_are_set_by_calibration():
    learned = Layer(weight=Quant(axis=0, learned=True), input=Quant(learned=True))
    model = prepare(network(), Plan({"*": learned}))
    calibrate(model, [torch.randn(IMAGES)])
    first = model[0].input_quantizer.scale.item()
    calibrate(model, [10 * torch.ones(IMAGES)])
    assert model[0].input_quantizer.scale.item() == pytest.approx(10 / 127) != first
    assert all(m.calibrated for m in model.modules() if isinstance(m, FakeQuantize))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, offset=0.0):
        return self.layer(input=x + offset)


@pytest.mark.parametrize(
    ("batch", "high"),
    [
        (torch.ones(4, 3), 1.0),
        ((torch.ones(4, 3), torch.zeros(4)), 1.0),
        ([torch.ones(4, 3), torch.zeros(4)], 1.0),
        ({"x": torch.ones(4, 3), "offset": 5.0}, 6.0),
    ],
)
def test_kinds_of_batches(batch, high):
    model = prepare(TwoInputs(), Plan({"*": BOTH}))
    calibrate(model, iter([batch]))
    assert float(model.layer.input_quantizer.observer.high) == high


@pytest.mark.parametrize(
    ("batches", "error", "text"),
    [
        ([], ValueError, "calibrate: batches must hold at least one batch, got none"),
        (["x"], TypeError, "calibrate: a batch must be a tensor, .* got str"),
        ([()], TypeError, "calibrate: a batch must be a tensor, .* got tuple"),
        ([torch.full(IMAGES, float("nan"))], ValueError, "must not hold NaN"),
        (
            [torch.full(IMAGES, float("inf"))],
            ValueError,
            "input of 0 must be finite|must not hold NaN",
        ),
    ],
)
def test_bad_batches(batches, error, text):
    model = prepare(network(), Plan({"*": BOTH}))
    with pytest.raises(error, match=text):
        calibrate(model, batches)
    assert model.training
    assert all(
        m.enabled and not m.observing for m in model.modules() if isinstance(m, FakeQuantize)
    )
