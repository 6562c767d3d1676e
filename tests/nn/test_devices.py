"""Layers that move: without a GPU, to a device of fake tensors, which have shapes and no values."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparseq import Quant, ops, sparse, testing
from sparseq.nn import SparseQuantConv2d, SparseQuantLinear, layer, linear

GRID = {"scale": torch.tensor([0.05]), "zero_point": torch.tensor([3], dtype=torch.int32)}
INT4 = {"weight": Quant(bits=4, axis=0, symmetric=False, group_size=16), "input": None}


def two_of_four() -> nn.Linear:
    module = nn.Linear(32, 12)
    with torch.no_grad():
        module.weight.mul_(sparse.nm_mask(module.weight))
    return module


@pytest.fixture
def packings(monkeypatch):
    """Where weights are packed; a GPU's kernels are taken to be there, whatever the build."""
    monkeypatch.setattr(layer, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(linear, "DEVICES", ("cpu", "cuda"))
    seen = []

    def tiles(weight, groups=1, kind="auto"):
        seen.append((weight.device.type, kind))
        return weight.new_empty(64, dtype=torch.uint8)

    monkeypatch.setattr(ops, "int8_tiles", tiles)
    return seen


@pytest.mark.parametrize(
    ("found", "kernel", "kind"),
    [
        ("2:4", "int8 2:4", "2:4"),
        ("dense", "int8", "dense"),
        ("depthwise", "int8 depthwise", "dense"),
    ],
)
def test_tiles_are_made_anew_at_the_move_and_never_after(
    packings, monkeypatch, found, kernel, kind
):
    monkeypatch.setattr(ops, "tile_kind", lambda tiles: found)
    module = SparseQuantLinear.from_float(two_of_four(), **GRID)
    packings.clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        module.to("cuda")
        assert packings == [("cuda", "auto"), ("cuda", kind)]
        assert module.tiles.device.type == "cuda" and module.float_weight is None
        assert module.kernel == kernel and module.choice.reason == "not measured on cuda"
        for dtype in (torch.float32, torch.float16):
            y = module(torch.empty(5, 32, device="cuda", dtype=dtype))
            assert (y.device.type, y.shape, y.dtype) == ("cuda", (5, 12), dtype)
        module.cuda()
    assert len(packings) == 2


def test_packed_int4_runs_on_both(packings):
    module = SparseQuantLinear.from_float(nn.Linear(32, 12), **INT4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        module.to("cuda")
        assert module.kernel == "int4" and module.tiles.device.type == "cuda"
        for rows, dtype in ((3, torch.bfloat16), (200, torch.float16)):
            y = module(torch.empty(rows, 32, device="cuda", dtype=dtype))
            assert (y.device.type, y.shape, y.dtype) == ("cuda", (rows, 12), dtype)
    assert packings == []


def test_a_device_without_kernels_has_no_tiles(monkeypatch):
    monkeypatch.setattr(layer, "DEVICES", ("cpu",))
    monkeypatch.setattr(linear, "DEVICES", ("cpu",))
    modules = [
        SparseQuantLinear.from_float(two_of_four(), **GRID),
        SparseQuantConv2d.from_float(nn.Conv2d(4, 8, 3), **GRID),
        SparseQuantLinear.from_float(nn.Linear(32, 12), **INT4),
    ]
    for module in modules:
        assert module.tiles is not None
        with FakeTensorMode(allow_non_fake_inputs=True):
            module.to("cuda")
        assert module.tiles is None
    assert [module.kernel for module in modules] == ["int8", "int8", "float32"]


def test_there_and_back():
    """By way of meta, which has no values: the state comes back, and with it the tiles."""
    module, x = SparseQuantLinear.from_float(two_of_four(), **GRID), torch.randn(4, 32)
    wanted, state, kernel = module(x), module.state_dict(), module.kernel
    module.to("meta")
    assert module.tiles is None
    module.to_empty(device="cpu").load_state_dict(state)
    assert module.kernel == kernel
    testing.assert_equal(module(x), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [GRID, INT4, {}], ids=["static", "int4", "dynamic"])
def test_a_model_of_16_bits_keeps_its_grids(dtype, options):
    """`model.half()` is about activations: scales and biases stay as the kernels read them."""
    module, x = SparseQuantLinear.from_float(nn.Linear(32, 12), **options), torch.randn(4, 32)
    wanted = module(x.to(dtype))
    module.to(dtype)
    assert module.weight_scale.dtype == module.bias.dtype == torch.float32
    testing.assert_equal(module(x.to(dtype)), wanted)
    assert wanted.dtype == dtype
