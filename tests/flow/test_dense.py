"""explain names what stays dense, before and after conversion, and out of a file."""

import pytest
import torch
from torch import nn

from sparseq import (
    NM,
    Block,
    Layer,
    Plan,
    Quant,
    Unstructured,
    calibrate,
    convert,
    explain,
    load,
    prepare,
    save,
)
from sparseq.sparse import masks_of, update_masks

INT8 = {"weight": Quant(axis=0), "input": Quant(symmetric=False)}


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 4)
    )


PLANS = {
    NM(2, 4): {"0": "2:4 needs a multiple of 4 inputs, got 3"},
    Block(4, 2): {
        "0": "blocks of 4 x 2 need multiples of these, got 8 outputs x 3 inputs",
    },
    Block(8, 1): {
        "1": "blocks of 8 x 1 need multiples of these, got 4 outputs x 4 inputs in each of 2",
        "3": "blocks of 8 x 1 need multiples of these, got 4 outputs x 32 inputs",
    },
    Unstructured(0.0): dict.fromkeys("013", "sparsity 0 in the plan"),
    Unstructured(0.001, "local"): dict.fromkeys("013", "0.10% of its"),
    Unstructured(0.5): {},
}  # fmt: skip


@pytest.mark.parametrize("spec", PLANS, ids=str)
def test_reasons_survive_conversion_and_the_file(spec, tmp_path):
    model = prepare(network(), Plan({"*": Layer(sparsity=spec, **INT8)}))
    calibrate(model, [torch.randn(4, 3, 6, 6)])
    fast = convert(model)
    save(fast, tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors", network())
    wanted = PLANS[spec]
    for which in (model, fast, loaded):
        shown = explain(which)
        assert list(shown.dense) == list(wanted)
        for name, reason in wanted.items():
            assert shown.dense[name].startswith(reason)
            row = next(row for row in shown.rows if row.name == name)
            assert f"dense: {reason}" in row.note
            assert f"dense: {reason}" in str(shown)


def test_what_the_plan_leaves_out_is_named_where_others_are_sparse():
    model = prepare(network(), Plan({"1": Layer(sparsity=NM(2, 4)), "3": Layer(**INT8)}))
    unplanned = "no sparsity in the plan"
    assert explain(model).dense == {"0": unplanned, "3": unplanned}
    assert explain(network()).dense == {}
    calibrate(model, [torch.randn(4, 3, 6, 6)])
    assert explain(convert(model)).dense == {"0": unplanned, "3": unplanned}
    only_int8 = prepare(network(), Plan({"*": Layer(**INT8)}))
    assert explain(only_int8).dense == {}


def test_what_a_global_ranking_leaves_whole():
    model = prepare(network(), Plan({"*": Layer(sparsity=Unstructured(0.2))}))
    with torch.no_grad():
        for mask, _ in masks_of(model):
            mask.mask.fill_(True)
        masks_of(model)[0][1].add_(100)
    update_masks(model)
    wanted = {"0": "ranked with the other layers, it kept all of its weights"}
    assert explain(model).dense == wanted
    assert explain(convert(model)).dense == wanted


def test_blocks_are_not_for_tables():
    model = prepare(nn.Sequential(nn.Embedding(8, 8)), Plan({"*": Layer(sparsity=Block(2, 2))}))
    assert explain(model).dense == {"0": "blocks are for products, and this is a table"}


@pytest.mark.parametrize("spec", [Block(2, 4, 0.5), Unstructured(0.5, "output")], ids=str)
def test_zeros_go_through_everything(spec, tmp_path):
    model = prepare(nn.Sequential(nn.Linear(16, 8)), Plan({"*": Layer(sparsity=spec, **INT8)}))
    calibrate(model, [torch.randn(4, 16)])
    mask = masks_of(model)[0][0].mask
    fast = convert(model)
    assert int((~mask).sum()) == 64 and not bool(fast[0].weight_values[~mask].any())
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", nn.Sequential(nn.Linear(16, 8)))
    assert masks_of(again)[0][0].spec == spec and torch.equal(masks_of(again)[0][0].mask, mask)


def test_layers_that_no_plan_serves_are_named(tmp_path):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.video, self.rest = nn.Conv3d(1, 4, 1), nn.LSTM(4, 4)
            self.last = nn.Linear(4, 2)

        def forward(self, x):
            return self.last(self.rest(self.video(x).mean((2, 3, 4)))[0])

    model = Mixed()
    assert [row.kind for row in explain(model).rows] == ["Linear", "Conv3d", "LSTM"]
    assert explain(model).dense == {}
    prepare(model, Plan({"*": Layer(sparsity=NM(2, 4), **INT8)}))
    calibrate(model, [torch.randn(2, 1, 2, 2, 2)])
    save(convert(model), tmp_path / "m.safetensors")
    for which in (model, convert(model), load(tmp_path / "m.safetensors", Mixed())):
        shown = explain(which)
        assert list(shown.dense) == ["video", "rest"]
        assert all(reason.startswith("a plan serves nn.Linear") for reason in shown.dense.values())
        assert shown.rows[2].note.startswith("float: a plan serves") and shown.rows[1].sparsity == 0
