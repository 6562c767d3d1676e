"""Where accuracy goes: the ruined layer is found, parts are told apart, both forms agree."""

import copy
import json
import math

import pytest
import torch
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Quant, Unstructured, bench
from sparseq.analysis.diagnose import fall
from sparseq.analysis.diagnosis import DiagnosisRow

INT8 = Layer(Quant(axis=0), Quant(symmetric=False))
RUINED = "blocks.1.conv2"


def quantised(model, batches, plan, convert=False):
    ready = sparseq.prepare(copy.deepcopy(model), Plan(plan))
    if any(layer is not None and layer.input is not None for layer in plan.values()):
        sparseq.calibrate(ready, batches)
    return sparseq.convert(ready) if convert else ready


def row_of(diagnosis, name):
    return next(row for row in diagnosis.rows if row.name == name)


def part_of(diagnosis, name):
    return next(part for part in diagnosis.parts if part.part == name)


@pytest.mark.parametrize("convert", [False, True])
def test_a_ruined_layer_is_found_both_ways(digits, convert):
    model, batches = digits
    plan = {"*": INT8, RUINED: Layer(Quant(bits=2), Quant(symmetric=False))}
    diagnosis = sparseq.diagnose(model, quantised(model, batches, plan, convert), batches)
    assert diagnosis.fall == RUINED
    row = row_of(diagnosis, RUINED)
    assert row.bits == 2 and row.scheme == "W2A8"
    assert row.added == max(r.added for r in diagnosis.rows) > 0  # quantised alone
    assert row.gain == max(r.gain for r in diagnosis.rows) > 0  # in float alone
    assert row.share > 0.5
    assert row.weight < 10 < 35 < row.input
    assert sum(r.share for r in diagnosis.rows) == pytest.approx(1)
    assert sum(p.share for p in diagnosis.parts) == pytest.approx(1)
    assert part_of(diagnosis, "weight").share > 0.5
    text = str(diagnosis)
    assert f"quality falls first at {RUINED}" in text and "cross-entropy: float" in text


def test_prepared_and_converted_say_the_same(digits):
    model, batches = digits
    plan = {"*": INT8, "blocks.2.conv1": Layer(INT8.weight, INT8.input, NM(2, 4))}
    before, after = (
        sparseq.diagnose(model, quantised(model, batches, plan, convert), batches)
        for convert in (False, True)
    )
    for a, b in zip(before.rows, after.rows, strict=True):
        assert (a.name, a.scheme) == (b.name, b.scheme)
        for field in ("sqnr", "alone", "weight", "input"):
            assert getattr(a, field) == pytest.approx(getattr(b, field), abs=0.5)
        assert (a.mask is None) == (b.mask is None)
    masked = [row.name for row in before.rows if row.mask is not None]
    assert masked == ["blocks.2.conv1"]
    assert row_of(after, masked[0]).mask == pytest.approx(row_of(before, masked[0]).mask, abs=0.5)


def test_losses_are_those_of_the_networks(digits):
    model, batches = digits
    fast = quantised(model, batches, {"*": INT8}, convert=True)
    diagnosis = sparseq.diagnose(model, fast, batches)
    for network, got in ((model, diagnosis.float_loss), (fast, diagnosis.quantised_loss)):
        with torch.no_grad():
            logits = torch.cat([network(x) for x, _ in batches])
        labels = torch.cat([y for _, y in batches])
        assert got == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)


def test_a_swap_is_the_network_with_one_layer_quantised(digits):
    model, batches = digits
    name = "blocks.1.conv1"
    diagnosis = sparseq.diagnose(model, quantised(model, batches, {"*": INT8}), batches)
    # ranges are those of the float network, so a plan for the one layer gives the same layer
    alone = quantised(model, batches, {name: INT8})
    with torch.no_grad():
        logits = torch.cat([alone(x) for x, _ in batches])
        loss = nn.functional.cross_entropy(logits, torch.cat([y for _, y in batches]))
    assert diagnosis.float_loss + row_of(diagnosis, name).added == pytest.approx(float(loss))


def test_sqnr_by_hand():
    layer = nn.Linear(8, 4).eval()
    x = torch.randn(64, 8)
    ready = sparseq.prepare(copy.deepcopy(layer), Plan({"*": Layer(Quant(bits=3))}))
    diagnosis = sparseq.diagnose(layer, ready, [x[:32], x[32:]])
    with torch.no_grad():
        y, z = layer(x).double(), ready(x).double()
    wanted = 10 * math.log10(float(y.square().sum() / (y - z).square().sum()))
    (row,) = diagnosis.rows
    assert row.sqnr == row.alone == row.weight == pytest.approx(wanted)
    assert diagnosis.output_sqnr == pytest.approx(wanted)
    assert row.input is None and row.mask is None
    assert diagnosis.loss == "mean squared error to the float output"
    assert row.added == row.gain == diagnosis.quantised_loss
    assert row.added == pytest.approx(float((y - z).square().mean()))


def test_the_fold_costs_nothing_that_can_be_measured(digits):
    model, batches = digits
    unlabelled = [x for x, _ in batches]
    for convert in (False, True):
        ready = quantised(model, batches, {"*": INT8}, convert)
        diagnosis = sparseq.diagnose(model, ready, unlabelled)
        fold, weight = part_of(diagnosis, "fold"), part_of(diagnosis, "weight")
        assert fold.layers == 9  # all but fc have a batch norm
        assert fold.sqnr > 100 > 60 > weight.sqnr
        assert 0 <= fold.added < 1e-6 * weight.added


def test_masks_alone(digits):
    model, batches = digits
    ready = quantised(model, batches, {"blocks.*.conv?": Layer(sparsity=Unstructured(0.7))})
    diagnosis = sparseq.diagnose(model, ready, [x for x, _ in batches])
    assert [part.part for part in diagnosis.parts] == ["mask", "fold"]
    mask = part_of(diagnosis, "mask")
    assert mask.share > 0.99 and mask.added == pytest.approx(diagnosis.quantised_loss)
    assert all(row.mask == row.alone and row.weight is None for row in diagnosis.rows)


def test_float16_layers_count_too(digits):
    model, batches = digits
    for convert in (False, True):
        ready = quantised(model, batches, {"fc": Layer(dtype="float16")}, convert)
        (row,) = sparseq.diagnose(model, ready, batches).rows
        assert row.scheme == "float16" and row.bits == 16
        assert 55 < row.alone < row.weight < 95 and 55 < row.input < 95


def test_a_transformer_with_dicts_of_arguments():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
            self.encoder = nn.TransformerEncoder(layer, 2)
            self.head = nn.Linear(16, 5)

        def forward(self, x, mask=None):
            return {"logits": self.head(self.encoder(x, src_key_padding_mask=mask)[:, 0])}

    model = Tokens().eval()
    batches = [{"x": torch.randn(3, 6, 16), "mask": torch.zeros(3, 6, dtype=bool)} for _ in "ab"]
    for batch in batches:
        batch["mask"][0, 4:] = True
    ruined = "encoder.layers.1.linear1"
    plan = {"*": INT8, ruined: Layer(Quant(bits=2), Quant(bits=2))}
    for convert in (False, True):
        ready = quantised(model, batches, plan, convert)
        diagnosis = sparseq.diagnose(model, ready, batches)
        assert diagnosis.fall == ruined
        names = [row.name for row in diagnosis.rows]
        assert "encoder.layers.0.self_attn.out_proj" in names and len(names) == 13
        assert names.index("encoder.layers.0.linear2") < names.index(ruined)
        assert row_of(diagnosis, ruined).added == max(row.added for row in diagnosis.rows)


class Kinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.along = nn.Conv1d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 6)

    def forward(self, tokens):
        x = self.along(self.table(tokens).transpose(1, 2)).unsqueeze(3)
        return self.head(self.norm(self.up(x)).mean((2, 3)))


@pytest.mark.parametrize("dynamic", [False, True])
def test_every_kind_of_layer(dynamic):
    torch.manual_seed(3)
    model = Kinds().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.weight.uniform_(0.5, 2)
    batches = [torch.randint(0, 20, (4, 6)) for _ in range(2)]
    wanted = Layer(Quant(axis=0), Quant(symmetric=False, dynamic=dynamic), NM(2, 4))
    plan = {"*": wanted, "table": Layer(Quant(axis=0))}
    before, after = (
        sparseq.diagnose(model, quantised(model, batches, plan, convert), batches)
        for convert in (False, True)
    )
    assert [row.name for row in before.rows] == ["table", "along", "up", "head"]
    for a, b in zip(before.rows, after.rows, strict=True):
        for field in ("sqnr", "alone", "weight", "input", "mask"):
            first, second = getattr(a, field), getattr(b, field)
            assert (first is None) == (second is None), (a.name, field)
            assert first is None or first == pytest.approx(second, abs=1.5), (a.name, field)
        assert a.added == pytest.approx(b.added, rel=0.05)
    # the parts of the table are what they are in the layer: 8 bits against half of the weights gone
    assert all(row.weight > 30 > row.mask > 0 for row in before.rows[1:])
    for name in ("float16", "bfloat16"):
        for convert in (False, True):
            ready = quantised(model, batches, {"*": Layer(dtype=name)}, convert)
            assert ready(batches[0]).dtype == torch.float32
            found = sparseq.diagnose(model, ready, batches)
            assert all(30 < row.alone < 100 for row in found.rows)
    table = sparseq.sensitivity(model, batches, {"a": wanted, "half": Layer(dtype="float16")})
    rows = {(row.name, row.candidate): row for row in table.rows}
    assert rows["up", "a"].sqnr < 25 < rows["up", "half"].sqnr
    budget = sparseq.Budget(megabytes=0.1)
    found = sparseq.search(model, batches, {"a": wanted, "float32": Layer()}, budget=budget)
    assert set(found.choices.values()) == {"float32"} and found.measured_added < 1e-12
    assert found.predicted_cost == pytest.approx(found.measured_cost, rel=0.05)


def test_a_layer_that_is_called_twice_and_one_that_never_is():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.idle = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.b(self.a(torch.relu_(self.b(self.a(x)))))

    model, x = Twice().eval(), torch.randn(16, 8)
    ready = sparseq.prepare(copy.deepcopy(model), Plan({"*": Layer(Quant(bits=4, axis=0))}))
    diagnosis = sparseq.diagnose(model, ready, [x])
    assert [row.name for row in diagnosis.rows] == ["a", "b"]
    assert diagnosis.notes == ("idle: never called",)
    only_b = copy.deepcopy(model)
    only_b.b = ready.b
    with torch.no_grad():
        wanted = (only_b(x) - model(x)).square().mean()
    assert row_of(diagnosis, "b").added == pytest.approx(float(wanted), rel=1e-4)


def test_nothing_is_changed(digits):
    model, batches = digits
    ready = quantised(model, batches, {"*": INT8}).train()
    states = [copy.deepcopy(m.state_dict()) for m in (model, ready)]
    sparseq.diagnose(model, ready, batches[:1])
    for network, state in zip((model, ready), states, strict=True):
        for key, value in network.state_dict().items():
            same = torch.equal(value, state[key]) if torch.is_tensor(value) else value == state[key]
            assert same, key
    assert ready.training and not hasattr(model.stem, "sparseq_layer")


def test_a_criterion_of_the_users():
    model, x = nn.Linear(8, 1).eval(), torch.randn(32, 8)
    ready = sparseq.prepare(copy.deepcopy(model), Plan({"*": Layer(Quant(bits=2))}))
    target = torch.randn(32, 1)

    def absolute(output, labels):
        return (output - labels).abs().mean()

    diagnosis = sparseq.diagnose(model, ready, [(x, target)], criterion=absolute)
    assert diagnosis.loss == "absolute"
    with torch.no_grad():
        assert diagnosis.quantised_loss == pytest.approx(float(absolute(ready(x), target)))


def test_dict_and_plot(digits, tmp_path):
    model, batches = digits
    plan = {"*": INT8, "fc": Layer(dtype="float32"), RUINED: Layer(Quant(bits=2))}
    diagnosis = sparseq.diagnose(model, quantised(model, batches, plan), batches)
    values = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert [row["name"] for row in values["rows"]] == [row.name for row in diagnosis.rows]
    assert values["rows"][-1]["alone"] == "inf" and values["fall"] == RUINED
    pytest.importorskip("matplotlib")
    diagnosis.plot(tmp_path / "d.png")
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileNotFoundError):
        diagnosis.plot(tmp_path / "none" / "d.png")
    assert [path.name for path in tmp_path.iterdir()] == ["d.png"]


def rows(*pairs):
    fields = (None, None, None, 0.0, 0.0, 0.0)
    return [DiagnosisRow(str(i), "W8", 8, *pair, *fields) for i, pair in enumerate(pairs)]


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [
        ([(40, 40), (36, 40), (33, 40), (28, 40)], None),  # errors add up
        ([(40, 40), (36, 40), (20, 20), (19, 40)], "2"),
        ([(10, 10), (9, 40), (9, 40)], "0"),
        ([(math.inf, math.inf), (40, 40), (30, 40)], "1"),
        ([(40, 40), (math.nan, math.nan)], "1"),
        ([], None),
    ],
)
def test_where_quality_falls(pairs, wanted):
    assert fall(rows(*pairs)) == wanted


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m, q, x: sparseq.diagnose(q, q, [x]), ValueError, "float_model must be float"),
        (lambda m, q, x: sparseq.diagnose(m, m, [x]), ValueError, "quantised must be prepared or"),
        (lambda m, q, x: sparseq.diagnose(5, q, [x]), TypeError, "float_model must be an nn.Mod"),
        (lambda m, q, x: sparseq.diagnose(m, q, []), ValueError, "at least one batch, got none"),
        (lambda m, q, x: sparseq.diagnose(m, q, [5]), TypeError, "a batch must be .* got int"),
        (
            lambda m, q, x: sparseq.diagnose(m, q, [x, (x, torch.zeros(4).long())]),
            ValueError,
            "all have labels or none",
        ),
        (
            lambda m, q, x: sparseq.diagnose(m, q, [x], criterion=nn.MSELoss()),
            ValueError,
            "for a criterion, got no labels",
        ),
        (
            lambda m, q, x: sparseq.diagnose(m, q, [(x, x)]),
            ValueError,
            "criterion must be given where labels are not integers, got labels of float32",
        ),
        (
            lambda m, q, x: sparseq.diagnose(nn.Sequential(nn.Sequential(m)), q, [x]),
            ValueError,
            "no layer in common",
        ),
    ],
)
def test_errors(call, error, text):
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(4, 4)
    ready = sparseq.prepare(copy.deepcopy(model), Plan({"*": Layer(Quant())}))
    with pytest.raises(error, match=f"diagnose: .*{text}"):
        call(model, ready, x)


def test_the_network_is_worth_diagnosing(digits):
    model, batches = digits
    assert bench.accuracy(model, batches) > 90
