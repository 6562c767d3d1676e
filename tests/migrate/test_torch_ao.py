import copy
import io

import ao_cases as cases
import pytest
import torch
import torch.ao.quantization as tq
from torch import nn

import sparseq
from sparseq import convert, migrate, save, testing
from sparseq.flow.prepare import input_quantizers, layers_of, transform_of
from sparseq.quant import FakeQuantize
from sparseq.run import data


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def pair(digits):
    """Float model and torch.ao's of it, trained."""
    return cases.trained(digits)


@pytest.fixture(scope="module")
def theirs(pair):
    return pair[1]


def take_over(model, example, **options):
    return cases.quietly(migrate.from_torch_ao, model, example, **options)


def weight_quantizer(model, name):
    return transform_of(model.get_submodule(name), FakeQuantize)


def test_accuracy_is_the_same_and_outputs_are_close(theirs, digits):
    wanted, right = cases.outputs(theirs, digits)
    assert right > 0.9
    ours = take_over(theirs, digits.example)
    got, ours_right = cases.outputs(ours, digits)
    assert abs(ours_right - right) <= 0.008  # 4 of 500
    assert cases.relative(got, wanted) < 0.06
    fast = convert(ours)
    converted, fast_right = cases.outputs(fast, digits)
    assert abs(fast_right - right) <= 0.008
    assert cases.relative(converted, got) < 0.01


def test_without_a_residual_the_numbers_are_theirs(digits):
    """Where no weight of theirs is rounded to -128, only their last rounding is missing."""
    _, theirs = cases.trained(digits, residual=False)
    for module in theirs.modules():
        if hasattr(module, "weight_fake_quant"):
            limit = 127 * module.weight_fake_quant.scale / cases.factor(module).abs()
            limit = limit.reshape([-1] + [1] * (module.weight.dim() - 1))
            module.weight.data.copy_(module.weight.detach().clamp(-limit, limit))
    ours = take_over(theirs, digits.example, reduce_range=True)
    wanted, _ = cases.outputs(theirs, digits)
    got, _ = cases.outputs(ours, digits)
    with torch.no_grad():
        rounded = theirs.fc2.activation_post_process(got)
    step = float(theirs.fc2.activation_post_process.scale)
    steps = ((rounded - wanted) / step).abs()
    # a value on the edge of two steps may tip over and travel on
    assert float(steps.max()) < 3.5 and float((steps > 0.5).float().mean()) < 0.05


def test_the_eighth_bit_is_no_worse(theirs, digits):
    float_model = copy.deepcopy(theirs)
    float_model.apply(tq.disable_fake_quant)
    wanted, _ = cases.outputs(float_model, digits)
    seven, _ = cases.outputs(take_over(theirs, digits.example, reduce_range=True), digits)
    eight, _ = cases.outputs(take_over(theirs, digits.example), digits)
    assert cases.relative(eight, wanted) <= cases.relative(seven, wanted)


def test_input_grids_are_the_producers(theirs, digits):
    ours = take_over(theirs, digits.example, reduce_range=True)
    producers = {
        "conv1": theirs.quant,
        "conv2": theirs.conv1,
        "conv3": theirs.skip,  # through a FloatFunctional
        "fc1": theirs.conv3,  # through pooling and flatten
        "fc2": theirs.fc1,
    }
    found = input_quantizers(ours)
    assert list(found) == list(producers)
    for name, producer in producers.items():
        grid = producer.activation_post_process
        spec, scale, zero_point = found[name].spec, *found[name].grid()
        assert (spec.bits, spec.quant_min, spec.quant_max) == (7, 0, 127)
        testing.assert_equal(scale.reshape(1), grid.scale, message=name)
        testing.assert_equal(zero_point.reshape(1), grid.zero_point, message=name)
        assert found[name].frozen and found[name].calibrated
        wide = input_quantizers(take_over(theirs, digits.example))[name]
        assert (wide.spec.quant_min, wide.spec.quant_max) == (0, 255)
        # the same range within the rounding of zero's place
        torch.testing.assert_close(wide.scale * 255, scale * 127, rtol=0.01, atol=0)


def test_weights_come_back_unfused_on_the_same_grid(theirs, digits):
    ours = take_over(theirs, digits.example)
    for name in ("conv1", "conv2", "conv3", "fc1", "fc2"):
        source = theirs.get_submodule(name)
        testing.assert_equal(layers_of(ours)[name].parametrizations.weight.original, source.weight)
        factor = cases.factor(source)
        shape = [-1] + [1] * (source.weight.dim() - 1)
        with torch.no_grad():
            wanted = source.weight_fake_quant(source.weight * factor.reshape(shape))
        got = layers_of(ours)[name].weight.detach() * factor.reshape(shape)
        wanted, step = wanted.detach(), source.weight_fake_quant.scale.reshape(shape)
        # where theirs is -128, ours is -127; a product on the edge of two steps may tip over
        lowest = wanted <= -127.5 * step
        assert float(((got - wanted) / step).abs()[~lowest].max()) < 1.01
        assert float((((got - wanted) / step).abs()[~lowest] > 0.01).float().mean()) < 0.002


def test_the_original_architecture_comes_back(pair, digits):
    float_model, theirs = pair
    before = copy.deepcopy(theirs.state_dict())
    ours = take_over(theirs, digits.example)
    for name, value in theirs.state_dict().items():
        testing.assert_equal(value, before[name], message=name)
    kinds = {n: type(m) for n, m in float_model.named_modules() if n in dict(ours.named_modules())}
    changed = {"quant": nn.Identity, "dequant": nn.Identity}
    for name, kind in kinds.items():
        got = ours.get_submodule(name)
        if name != "skip":
            assert isinstance(got, changed.get(name, kind)), name
    names = {type(m).__module__ for m in ours.modules()} | {
        getattr(hook, "__module__", "")
        for m in ours.modules()
        for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    }
    assert not [name for name in names if name.startswith("torch.ao")]
    assert not any("qconfig" in m.__dict__ for m in ours.modules())
    testing.assert_equal(ours.bn1.running_mean, theirs.conv1.bn.running_mean)
    testing.assert_equal(ours.bn1.weight, theirs.conv1.bn.weight)
    # batch norms that were frozen stay so
    mean = ours.bn1.running_mean.clone()
    ours.train()(digits.normalise(digits.x_train[:32]))
    testing.assert_equal(ours.bn1.running_mean, mean)


def test_training_goes_on(digits):
    _, theirs = cases.trained(digits)
    theirs.apply(tq.enable_observer)
    theirs.apply(torch.ao.nn.intrinsic.qat.update_bn_stats)
    ours = take_over(theirs, digits.example, follow_weights=True)
    before = {n: q.scale.clone() for n, q in input_quantizers(ours).items()}
    weight = weight_quantizer(ours, "fc2").scale.clone()
    _, right = cases.outputs(ours, digits)
    cases.train(ours, digits, 1, 1e-3)
    assert any(not torch.equal(before[n], q.scale) for n, q in input_quantizers(ours).items())
    assert not torch.equal(weight_quantizer(ours, "fc2").scale, weight)
    assert cases.outputs(ours, digits)[1] > right - 0.03


def test_post_training_observers(pair, digits):
    float_model, _ = pair
    batches = [next(iter(digits.test_batches(64)))]
    theirs = cases.calibrated(float_model, batches)
    ours = take_over(theirs, digits.example)
    wanted, right = cases.outputs(cases.quietly(tq.convert, theirs), digits)
    got, ours_right = cases.outputs(ours, digits)
    assert abs(ours_right - right) <= 0.008 and cases.relative(got, wanted) < 0.06
    plain, _ = cases.outputs(float_model, digits)
    assert cases.relative(got, plain) <= cases.relative(wanted, plain)  # nothing was lost
    converted, _ = cases.outputs(convert(ours), digits)
    assert cases.relative(converted, got) < 0.01


@pytest.mark.parametrize("backend", ["qnnpack", "x86", "onednn"])
def test_other_configurations(digits, backend):
    _, theirs = cases.trained(digits, backend)
    wanted, right = cases.outputs(theirs, digits)
    ours = take_over(theirs, digits.example)
    got, ours_right = cases.outputs(ours, digits)
    assert abs(ours_right - right) <= 0.01 and cases.relative(got, wanted) < 0.06
    # one scale for a tensor times the batch norm's factors: one scale a channel
    assert weight_quantizer(ours, "conv1").scale.shape == (12,)


def test_saved_models(theirs, digits, tmp_path):
    wanted = take_over(theirs, digits.example)
    example = digits.example
    fresh = cases.prepare_qat(cases.Lesson())
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    testing.assert_equal(take_over(fresh.eval(), example)(example), wanted(example))
    file = io.BytesIO()
    theirs = copy.deepcopy(theirs)
    for module in theirs.modules():
        module.qconfig = None  # torch.ao's hold functions that cannot be pickled
    torch.save(theirs, file)
    file.seek(0)
    whole = take_over(torch.load(file, weights_only=False), example)
    testing.assert_equal(whole(example), wanted(example))
    # and ours goes through sparseq's own files
    path = tmp_path / "model.safetensors"
    save(wanted, path)
    again = cases.Lesson().eval()
    again.quant, again.dequant = nn.Identity(), nn.Identity()
    testing.assert_equal(sparseq.load(path, again)(example), wanted(example))


def test_a_fused_module_without_places_becomes_a_sequence():
    model = nn.Sequential(tq.QuantStub(), nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))
    fused = torch.ao.nn.intrinsic.ConvBn2d(*model[1])
    model = nn.Sequential(model[0], fused, tq.DeQuantStub())
    theirs = cases.prepare_qat(model, fused=[])
    x = torch.randn(2, 1, 6, 6)
    theirs(x)
    ours = take_over(theirs.eval(), x)
    assert [type(m).__name__ for m in ours[1]] == ["ParametrizedConv2d", "BatchNorm2d"]
    theirs.apply(tq.disable_observer)
    with torch.no_grad():
        assert cases.relative(ours(x), theirs(x)) < 0.05


def test_negative_and_zero_factors():
    theirs = cases.prepare_qat(
        nn.Sequential(tq.QuantStub(), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), fused=[["1", "2"]]
    )
    x = torch.randn(4, 2, 6, 6)
    with torch.no_grad():
        theirs[1].bn.weight.copy_(torch.tensor([-1.5, 0.5, -0.01]))
    theirs(x)
    theirs.eval().apply(tq.disable_observer)
    ours = take_over(theirs, x)
    step = theirs[1].activation_post_process.scale
    with torch.no_grad():
        assert float((ours(x) - theirs(x)).abs().max() / step) < 1.5
        assert float((convert(ours)(x) - ours(x)).abs().max() / step) < 0.1
        theirs[1].bn.weight[1] = 0
    assert bool(take_over(theirs, x)(x).isfinite().all())


def test_a_wrapper_goes(digits):
    model = tq.QuantWrapper(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    theirs = cases.prepare_qat(model, fused=[])
    theirs(digits.example)
    ours = take_over(theirs.eval(), digits.example)
    assert type(ours) is nn.Sequential
    theirs.apply(tq.disable_observer)
    with torch.no_grad():
        assert cases.relative(ours(digits.example), theirs(digits.example)) < 0.05


# --- what cannot be taken over ---


def observed(*layers):
    model = cases.prepare_qat(nn.Sequential(*layers), fused=[])
    return model


def test_all_problems_in_one_error():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.second(torch.sigmoid(self.first(x)))

    theirs = cases.prepare_qat(Odd(), fused=[])
    theirs(torch.randn(3, 4))
    with pytest.raises(
        ValueError,
        match=r"^from_torch_ao: the input of first is the model's input, which no single observer "
        r"watches; the input of second is a sigmoid, which no",
    ):
        take_over(theirs, torch.randn(3, 4))


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: nn.Linear(4, 4), ValueError, "must hold layers that torch.ao prepared, got none"),
        (lambda: "model.pt", TypeError, "model must be one of torch.ao's eager prepare .* got str"),
        (
            lambda: torch.fx.symbolic_trace(nn.Linear(4, 4)),
            TypeError,
            "eager prepare or prepare_qat, got a torch.fx GraphModule",
        ),
        (
            lambda: observed(tq.QuantStub(), nn.Linear(4, 4)),
            ValueError,
            "has seen no values: train or calibrate first",
        ),
        (
            lambda: cases.quietly(tq.convert, observed(tq.QuantStub(), nn.Linear(4, 4)).eval()),
            ValueError,
            "is a converted Quantize: take over the model before convert",
        ),
    ],
)
def test_what_cannot_be_taken_over_is_named(build, error, text):
    model = cases.quietly(build)
    with pytest.raises(error, match=f"^from_torch_ao: .*{text}"):
        take_over(model, torch.randn(3, 4))
