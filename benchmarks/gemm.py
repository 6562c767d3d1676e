"""INT8 and 2:4 INT8 layers beside every peer, in one run: `make bench ARGS=gemm`.

Layers take float32 and return float32; weights are bell-shaped. Each of ours is first checked
against `sparseq.reference`. Needs the peers: `pip install -e ".[peers]"`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from harness import Row, run
from peers import Work, all_peers
from torch import Tensor, nn

from sparseq import ops, reference
from sparseq.nn import SparseQuantConv2d, SparseQuantLayer, SparseQuantLinear
from sparseq.quant import range_to_grid
from sparseq.sparse import nm_mask
from sparseq.spec import Quant

# rows, inputs, outputs; or channels, height: the 3x3 layers of ResNet-18 at 224x224
LINEAR = {"1x4096->4096": (1, 4096, 4096), "16x4096->4096": (16, 4096, 4096)}
LINEAR |= {"128x1024->1024": (128, 1024, 1024), "512x768->3072": (512, 768, 3072)}
CONV = {f"{c}->{c} 3x3 at {h}": (c, h) for c, h in ((64, 56), (128, 28), (256, 14), (512, 7))}
INPUT = Quant(symmetric=False)


def _layer(name: str) -> tuple[nn.Linear | nn.Conv2d, Tensor]:
    torch.manual_seed(0)
    if name in LINEAR:
        rows, inputs, outputs = LINEAR[name]
        layer: nn.Linear | nn.Conv2d = nn.Linear(inputs, outputs)
        x = torch.randn(rows, inputs)
    else:
        channels, height = CONV[name]
        layer = nn.Conv2d(channels, channels, 3, padding=1)
        x = torch.randn(1, channels, height, height)
    nn.init.normal_(layer.weight, std=0.03)
    return layer.requires_grad_(False), x


@cache
def _peers(name: str, threads: int) -> dict[str, Callable[[], object]]:
    return all_peers(Work(*_layer(name), threads))


def _ours(name: str, sparse: bool) -> tuple[SparseQuantLayer, Tensor, Callable[[], bool]]:
    layer, x = _layer(name)
    if sparse:
        layer.weight.mul_(nm_mask(layer.weight))
    scale, zero = range_to_grid(*ops.minmax(x), INPUT)
    kind = SparseQuantLinear if name in LINEAR else SparseQuantConv2d
    module = kind.from_float(layer, input=INPUT, scale=scale, zero_point=zero)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)

    def check() -> bool:
        q = ops.quantize(x, scale, zero, INPUT.quant_min, INPUT.quant_max)
        same = (module.weight_values, module.weight_scale * scale, zero.reshape(1), None)
        define = reference.int8_linear if name in LINEAR else reference.int8_conv2d
        rest = module.arguments.values()
        return torch.equal(module(x), define(q, *same, module.bias, *rest))

    module.use("int8 2:4" if sparse else "int8")
    return module, x, check


def _row(name: str, sparse: bool, threads: int) -> Row:
    module, x, check = _ours(name, sparse)
    return Row(name, lambda: module(x), check, _peers(name, threads), threads=threads, rounds=11)


@pytest.mark.parametrize("threads", [2, 1], ids=["2 threads", "1 thread"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("name", [*LINEAR, *CONV])
def test_row(name: str, sparse: bool, threads: int, benchmark) -> None:  # type: ignore[no-untyped-def]
    with torch.no_grad():
        run(_row(name, sparse, threads), benchmark)
