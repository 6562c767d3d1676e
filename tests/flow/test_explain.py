import pytest
import torch
from torch import nn

from sparseq import (
    NM,
    Layer,
    Plan,
    Quant,
    Unstructured,
    calibrate,
    convert,
    explain,
    prepare,
    testing,
)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 1),
        nn.Flatten(),
        nn.Linear(32, 4),
        nn.Linear(4, 2),
    )


PLAN = Plan(
    {
        "*": Layer(weight=Quant(axis=0), input=Quant(symmetric=False), sparsity=NM(2, 4)),
        "2": Layer(weight=Quant(bits=4, group_size=4), input=Quant(), sparsity=Unstructured(0.75)),
        "4": Layer(weight=Quant(axis=0)),
        "5": None,
    }
)


def rows(model):
    return {row.name: row for row in explain(model).rows}


def prepared():
    model = prepare(network(), PLAN)
    return calibrate(model, [torch.randn(4, 3, 6, 6)])


def test_a_float_model():
    got = rows(network())
    assert list(got) == ["0", "1", "2", "4", "5"]
    assert all(
        row.kernel == "float32" and row.note == "float: not in the plan" for row in got.values()
    )
    assert [row.kind for row in got.values()] == ["Conv2d"] * 3 + ["Linear"] * 2


def test_a_prepared_model():
    got = rows(prepared())
    assert got["0"].note.endswith("dense: 2:4 needs a multiple of 4 inputs, got 3")
    assert "weight s8" in got["0"].note and "input s8 asymmetric" in got["0"].note
    assert got["0"].sparsity < 0.1
    assert "mask NM(n=2, m=4)" in got["1"].note and got["1"].sparsity >= 0.5
    assert got["2"].sparsity >= 0.75 and "weight s4" in got["2"].note
    assert "input" not in got["4"].note
    assert got["5"].note == "float: not in the plan"
    assert got["1"].kind == "Conv2d"


def test_a_converted_model_says_which_kernel_runs_and_why_not():
    fast = convert(prepared())
    for name in testing.every_isa():
        got = rows(fast)
        assert got["0"].kernel == f"int8 ({name})"
        assert got["1"].kernel == f"int8 2:4 ({name})"
    assert got["1"].kind == "SparseQuantConv2d" and got["1"].sparsity >= 0.5
    assert got["2"].kernel == "float32 on dequantised weight"
    assert "group scales have no integer kernel" in got["2"].note and got["2"].sparsity >= 0.75
    assert "no input quantiser in the plan" in got["4"].note
    assert got["5"].note == "float: no weight quantiser in the plan"


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_layers_that_cannot_run_on_integers_say_why():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 2, padding="same")
    )
    both = Layer(weight=Quant(axis=0), input=Quant())
    prepare(model, Plan({"*": both}))
    calibrate(model, [torch.randn(2, 4, 6, 6)])
    got = rows(convert(model))
    assert "float: padding_mode must be 'zeros', got 'reflect'" in got["0"].note
    assert "float: padding must be equal on both sides, got 'same'" in got["1"].note


def test_zeros_of_asymmetric_weights_are_counted_at_their_zero_point():
    model = nn.Sequential(nn.Linear(64, 8))
    plan = Plan(
        {
            "*": Layer(
                weight=Quant(axis=0, symmetric=False), input=Quant(), sparsity=Unstructured(0.75)
            )
        }
    )
    calibrate(prepare(model, plan), [torch.randn(4, 64)])
    assert rows(convert(model))["0"].sparsity >= 0.75


def test_dynamic_inputs_are_named():
    from sparseq.nn import SparseQuantLinear

    (row,) = explain(nn.Sequential(SparseQuantLinear.from_float(nn.Linear(4, 4)))).rows
    assert "each row's own range" in row.note


def test_it_prints_a_table():
    text = str(explain(convert(prepared())))
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "kind", "kernel", "zeros", "note"]
    assert len(lines) == 6 and not any(line != line.rstrip() for line in lines)
    assert "75.0%" in text or "76" in text


def test_an_untraceable_model_says_so():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(self.layer(x)) if x.sum() > 0 else x

    model = prepare(Branches(), Plan({"*": Layer(weight=Quant(axis=0), input=Quant())}))
    calibrate(model, [torch.ones(4, 4)])
    notes = explain(convert(model)).notes
    assert len(notes) == 1 and "batch norms stay in float: torch.fx cannot trace" in notes[0]
    assert str(explain(convert(model))).endswith(notes[0])
