"""All switches together, the report, and what is refused."""

import copy
import json
import math

import pytest
import torch
import torchvision
from torch import nn

from sparseq import AdaRound, Layer, Plan, Quant, calibrate, convert, explain, prepare, ptq, testing
from sparseq.run.models import ResNet

BOTH = Layer(weight=Quant(axis=0), input=Quant(symmetric=False))
COARSE = Layer(weight=Quant(bits=4, axis=0), input=Quant(symmetric=False))
QUICK = AdaRound(iterations=100, rows=4096)
ALL = {"equalize": True, "smooth": 0.5, "adaround": QUICK, "bias_correction": True}


def settle(model):
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(std=0.1)
            m.running_var.uniform_(0.3, 3)
            m.weight.data.uniform_(0.2, 1)
            m.bias.data.normal_(std=0.2)
    return model.eval()


class Encoder(nn.Module):
    """Post-norm and pre-norm blocks of torch's own."""

    def __init__(self):
        super().__init__()
        self.post = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.pre = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        if x.sum() > 1e9:  # control flow of its own, which torch.fx does not trace
            return x
        return {"logits": self.head(self.pre(self.post(x)))}


MODELS = {
    "resnet": lambda: (settle(ResNet(3, 10, width=8, depth=1)), lambda: torch.randn(4, 3, 12, 12)),
    "mobilenet": lambda: (
        settle(torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=10)),
        lambda: torch.randn(2, 3, 32, 32),
    ),
    "encoder": lambda: (Encoder().eval(), lambda: torch.randn(4, 6, 16)),
}


def output(model, x):
    with torch.no_grad():
        y = model(x)
    return y["logits"] if isinstance(y, dict) else y


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_all_together(build):
    model, draw = build()
    batches = [draw()]
    wanted = output(model, batches[0])
    switches = {**ALL, "adaround": AdaRound(iterations=30, rows=4096)}
    report = ptq(model, Plan({"*": COARSE}), batches, **switches)
    names = ["nearest", "equalize", "smooth", "adaround", "bias correction"]
    assert [s.name for s in report.steps] == names
    assert report.sqnr > report.steps[0].sqnr
    for before, after in zip(report.steps, report.steps[1:], strict=False):
        assert after.gain == pytest.approx(after.sqnr - before.sqnr)
    got = output(model, batches[0])
    assert 10 * math.log10(wanted.square().sum() / (wanted - got).square().sum()) > 5
    step = (got.max() - got.min()) / 255
    testing.assert_within_lsb(output(convert(model), batches[0]), got, step, lsb=1.0)


@pytest.mark.parametrize("switch", list(ALL))
def test_each_switch_alone(switch):
    model, draw = MODELS["resnet"]()
    batches = [draw() for _ in range(2)]
    plain = copy.deepcopy(model)
    report = ptq(model, Plan({"*": COARSE}), batches, **{switch: ALL[switch]})
    assert [s.name for s in report.steps] == ["nearest", switch.replace("_", " ")]
    calibrate(prepare(plain, Plan({"*": COARSE})), batches)
    changed = not torch.equal(output(model, batches[0]), output(plain, batches[0]))
    assert changed == (switch != "smooth")  # there is nothing to smooth in it
    assert "int8" in str(explain(convert(model)))


def test_without_a_switch_it_is_prepare_and_calibrate():
    model, draw = MODELS["resnet"]()
    batches = [draw() for _ in range(2)]
    plain = copy.deepcopy(model)
    report = ptq(model, Plan({"*": BOTH}), iter(batches))
    calibrate(prepare(plain, Plan({"*": BOTH})), batches)
    testing.assert_equal(output(model, batches[0]), output(plain, batches[0]))
    assert len(report.steps) == 1 and report.steps[0].gain is None
    assert not report.skipped and report.rounding == {}


def test_sqnr_is_what_it_says():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
    reference, batches = copy.deepcopy(model), [torch.randn(7, 6) for _ in range(3)]
    report = ptq(model, Plan({"*": COARSE}), batches)
    x = torch.cat(batches)

    def decibel(y, yq):
        return (10 * torch.log10(y.square().sum() / (y - yq).square().sum())).item()

    assert report.sqnr == pytest.approx(decibel(reference(x), model(x)), abs=1e-3)
    (step,) = report.steps
    assert step.layers["0"] == pytest.approx(decibel(reference[0](x), model[0](x)), abs=1e-3)
    assert step.mean == pytest.approx((step.layers["0"] + step.layers["2"]) / 2)
    assert step.layers[step.worst] == min(step.layers.values())


def test_the_report_prints_and_becomes_json():
    model, draw = MODELS["resnet"]()
    report = ptq(model, Plan({"*": BOTH}), [draw()], **ALL)
    text = str(report)
    lines = text.splitlines()
    assert lines[0].split() == ["step", "SQNR", "dB", "gain", "layers:", "mean", "worst", "seconds"]
    assert lines[3].startswith("smooth") and "+0.00" in lines[3]
    assert "equalize left stem: read by add, blocks.0.conv1 (Conv2d)" in lines
    assert "equalize left fc: read by the model's result" in lines
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [s["name"] for s in plain["steps"]] == [s.name for s in report.steps]
    assert plain["rounding"]["stem"]["adaround"] <= plain["rounding"]["stem"]["nearest"]
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    exact = ptq(model, Plan({"0": Layer(sparsity=None)}), [torch.zeros(1, 2)])
    assert json.loads(json.dumps(exact.to_dict(), allow_nan=False))["steps"][0]["sqnr"] is None


def test_modes_and_the_random_generator_are_kept():
    model, draw = MODELS["resnet"]()
    model.train()
    model.bn.eval()
    batches, state = [draw()], torch.get_rng_state()
    ptq(model, Plan({"*": BOTH}), batches, **ALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and not model.bn.training
    assert model.stem.input_quantizer.training == model.stem.training


def test_dynamic_and_weight_only_plans():
    model, draw = MODELS["resnet"]()
    plan = Plan(
        {
            "*": Layer(weight=Quant(bits=4, axis=0)),
            "fc": Layer(weight=Quant(axis=0), input=Quant(dynamic=True)),
        }
    )
    report = ptq(model, plan, [draw()], adaround=QUICK, bias_correction=True)
    assert report.sqnr > report.steps[0].sqnr
    fast = convert(model)
    assert fast.fc.input_scale is None and fast.stem.input_spec is None


def test_progress_is_told():
    model, draw = MODELS["resnet"]()
    told = []
    batches = [draw() for _ in range(2)]
    ptq(model, Plan({"*": BOTH}), batches, progress=lambda *news: told.append(news), **ALL)
    assert ("calibrate", 2, 2) in told
    assert ("adaround", 10, 10) in told and ("bias correction", 10, 10) in told


class Counting(nn.Module):
    """Looks at magnitudes: scaling its inside shows in its output."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = torch.relu(self.a(x))
        return self.b(y) * float(self.a.weight.detach().abs().sum())


def test_a_change_of_the_function_is_undone_and_named():
    model = Counting().eval()
    weight = model.a.weight.detach().clone()
    model.b.weight.data *= 30
    report = ptq(model, Plan({"*": BOTH}), [torch.randn(3, 4)], equalize=True)
    assert "a" in report.skipped["equalize"] or "undone" in str(report)
    testing.assert_equal(model.a.parametrizations.weight.original.detach(), weight)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"plan": {"*": BOTH}}, TypeError, "ptq: plan must be a sparseq.Plan, got dict"),
        ({"equalize": 1}, TypeError, "ptq: equalize must be True or False, got int"),
        ({"bias_correction": "yes"}, TypeError, "bias_correction must be True or False, got str"),
        ({"adaround": 100}, TypeError, "adaround must be True, False or an AdaRound, got int"),
        ({"smooth": "0.5"}, TypeError, "smooth must be True, False or a number, got str"),
        ({"smooth": 1.5}, ValueError, r"smooth must be in \[0, 1\], got 1.5"),
        ({"batches": []}, ValueError, "ptq: batches must hold at least one batch, got none"),
        ({"batches": [3]}, TypeError, "ptq: a batch must be a tensor, .* got int"),
        ({"plan": Plan({"x": BOTH})}, ValueError, "pattern 'x' matches no layer"),
        ({"model": nn.Sequential(nn.ReLU())}, ValueError, "ptq: model must hold .* got none"),
        ({"model": nn.Linear(4, 4)}, ValueError, "got a single layer: wrap it"),
        (
            {"model": prepare(nn.Sequential(nn.Linear(4, 4)), Plan({"*": BOTH}))},
            ValueError,
            "ptq: model must be float .* prepared already",
        ),
        ({"progress": "bar"}, TypeError, "progress must be True, False or a function"),
    ],
)
def test_what_is_refused(change, error, text):
    arguments = {
        "model": nn.Sequential(nn.Linear(4, 4)),
        "plan": Plan({"*": BOTH}),
        "batches": [torch.randn(2, 4)],
        **change,
    }
    with pytest.raises(error, match=text):
        ptq(**arguments)
