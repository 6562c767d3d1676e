"""Every op against its peers, in one run: `make bench`.

Each row is checked against `sparseq.reference` first. Contenders take turns in random order;
medians are compared. Results go to benchmarks/results.
"""

from __future__ import annotations

import warnings

import numpy
import product_rows
import pytest
import torch
from harness import Row, run, same, same_raw

from sparseq import ops, reference

SIZE = 4096
raw = torch.ops.sparseq


class _Inputs:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(SIZE, SIZE)
        self.small = torch.randn(256, 384)
        self.grad = torch.randn_like(self.x)
        self.out = torch.empty_like(self.x)
        self.scale = torch.tensor(0.02)
        self.scales = torch.rand(SIZE) * 0.01 + 0.015
        self.zeros = torch.zeros(SIZE, dtype=torch.int32)
        self.limits = torch.full((SIZE,), 8.0)
        self.q = ops.quantize(self.x, self.scale, None, -128, 127)
        self.nibbles = ops.quantize(self.x, self.scale, None, -8, 7)
        self.packed = ops.pack_int4(self.nibbles)
        with warnings.catch_warnings():  # a peer still, though deprecated; it warns once
            warnings.simplefilter("ignore")
            self.torch_q = torch.quantize_per_tensor(self.x, 0.02, 0, torch.qint8)
        self.leaf = self.x.clone().requires_grad_()
        self.learned = torch.tensor([0.02], requires_grad=True)
        self.learned_channels = self.scales.clone().requires_grad_()
        self.learned_zero = torch.zeros(1, requires_grad=True)

    def reset(self) -> None:
        """What is freed belongs to no one's time."""
        for leaf in (self.leaf, self.learned, self.learned_channels, self.learned_zero):
            leaf.grad = None

    def backward(self, y: torch.Tensor) -> None:
        y.backward(self.grad)


def rows() -> dict[str, list[Row]]:
    i = _Inputs()
    size = i.x.numel() * 4
    tensor, channel = (i.scale, None, -128, 127), (i.scales, i.zeros, -128, 127, 0)
    small = (torch.tensor(0.02), None, -128, 127)
    copy = {"copy to fresh memory": lambda: i.x.clone(), "copy in place": lambda: i.out.copy_(i.x)}

    def learned_close() -> bool:
        arguments = (torch.randn_like(i.small), i.small, *small, None, None, 1.0)
        ours = raw.fake_quantize_learned_backward(*arguments)
        theirs = reference.fake_quantize_learned_backward(*arguments)
        return torch.equal(ours[0], theirs[0]) and torch.allclose(ours[1], theirs[1], rtol=1e-4)

    back = (i.grad, i.x, *tensor, None, None)
    return {
        "quantize": [
            Row(
                "quantize per tensor",
                lambda: ops.quantize(i.x, *tensor),
                same("quantize", i.small, *small),
                {
                    "torch.quantize_per_tensor": lambda: torch.quantize_per_tensor(
                        i.x, 0.02, 0, torch.qint8
                    )
                },
                moved=size + size // 4,
            )
        ],
        "dequantize": [
            Row(
                "dequantize per tensor",
                lambda: ops.dequantize(i.q, i.scale, None),
                same("dequantize", ops.quantize(i.small, *small), i.scale, None),
                {"torch dequantize": lambda: i.torch_q.dequantize()},
                moved=size + size // 4,
            )
        ],
        "fake_quantize": [
            Row(
                "fake_quantize per tensor",
                lambda: ops.fake_quantize(i.x, *tensor),
                same("fake_quantize", i.small, *small),
                {
                    "torch": lambda: torch.fake_quantize_per_tensor_affine(i.x, 0.02, 0, -128, 127),
                    **copy,
                },
                moved=2 * size,
            ),
            Row(
                "fake_quantize per channel",
                lambda: ops.fake_quantize(i.x, *channel),
                same("fake_quantize", i.x, *channel),
                {
                    "torch": lambda: torch.fake_quantize_per_channel_affine(
                        i.x, i.scales, i.zeros, 0, -128, 127
                    ),
                    **copy,
                },
                moved=2 * size,
            ),
            Row(
                "fake_quantize forward+backward per tensor",
                lambda: i.backward(ops.fake_quantize(i.leaf, *tensor)),
                same("fake_quantize", i.small, *small),
                {
                    "torch": lambda: i.backward(
                        torch.fake_quantize_per_tensor_affine(i.leaf, 0.02, 0, -128, 127)
                    ),
                    **copy,
                },
                i.reset,
                moved=5 * size,
            ),
            Row(
                "fake_quantize forward+backward per channel",
                lambda: i.backward(ops.fake_quantize(i.leaf, *channel)),
                same("fake_quantize", i.x, *channel),
                {
                    "torch": lambda: i.backward(
                        torch.fake_quantize_per_channel_affine(
                            i.leaf, i.scales, i.zeros, 0, -128, 127
                        )
                    ),
                    **copy,
                },
                i.reset,
                moved=5 * size,
            ),
            Row(
                "fake_quantize forward+backward learned scale",
                lambda: i.backward(ops.fake_quantize(i.leaf, i.learned, i.learned_zero, -128, 127)),
                learned_close,
                {
                    "torch": lambda: i.backward(
                        torch._fake_quantize_learnable_per_tensor_affine(
                            i.leaf, i.learned, i.learned_zero, -128, 127, 1.0
                        )
                    ),
                    **copy,
                },
                i.reset,
                moved=5 * size,
            ),
            Row(
                "fake_quantize forward+backward learned scales per channel",
                lambda: i.backward(
                    ops.fake_quantize(i.leaf, i.learned_channels, None, -128, 127, 0)
                ),
                learned_close,
                {
                    "torch": lambda: i.backward(
                        torch._fake_quantize_learnable_per_channel_affine(
                            i.leaf, i.learned_channels, torch.zeros(SIZE), 0, -128, 127, 1.0
                        )
                    ),
                    **copy,
                },
                i.reset,
                moved=5 * size,
            ),
        ],
        "fake_quantize_observed": [
            Row(
                "fake_quantize_observed per tensor",
                lambda: ops.fake_quantize_observed(i.x, *tensor),
                same("fake_quantize_observed", i.small, *small),
                {
                    "fake_quantize and minmax": lambda: (
                        ops.fake_quantize(i.x, *tensor),
                        ops.minmax(i.x),
                    ),
                    "torch": lambda: (
                        torch.fake_quantize_per_tensor_affine(i.x, 0.02, 0, -128, 127),
                        torch.aminmax(i.x),
                    ),
                    **copy,
                },
                moved=2 * size,
            ),
            Row(
                "fake_quantize_observed per channel",
                lambda: ops.fake_quantize_observed(i.x, *channel),
                same("fake_quantize_observed", i.x, *channel),
                {
                    "fake_quantize and minmax": lambda: (
                        ops.fake_quantize(i.x, *channel),
                        ops.minmax(i.x, 0),
                    ),
                    **copy,
                },
                moved=2 * size,
            ),
        ],
        "fake_quantize_backward": [
            Row(
                "fake_quantize_backward",
                lambda: raw.fake_quantize_backward(*back),
                same_raw("fake_quantize_backward", i.small, i.small, *small, None, None),
                copy,
                moved=3 * size,
            )
        ],
        "fake_quantize_learned_backward": [
            Row(
                "fake_quantize_learned_backward",
                lambda: raw.fake_quantize_learned_backward(*back, 1.0),
                learned_close,
                copy,
                moved=3 * size,
            )
        ],
        "minmax": [
            Row(
                "minmax per tensor",
                lambda: ops.minmax(i.x),
                same("minmax", i.small),
                {"torch.aminmax": lambda: torch.aminmax(i.x)},
                moved=size,
            ),
            Row(
                "minmax per channel",
                lambda: ops.minmax(i.x, 0),
                same("minmax", i.small, 0),
                {"torch.aminmax(dim=1)": lambda: torch.aminmax(i.x, dim=1)},
                moved=size,
            ),
        ],
        # torch has no histogram a channel; numpy's and torch.histogram's bins are not always exact
        "histogram": [
            Row(
                "histogram of 2048 bins per tensor",
                lambda: ops.histogram(i.x, 8.0, 2048),
                same("histogram", i.small, torch.tensor(8.0), 2048),
                {
                    "torch.histc": lambda: torch.histc(i.x, 2048, -8, 8),
                    "torch.histogram": lambda: torch.histogram(i.x, 2048, range=(-8.0, 8.0)),
                    "torch.bincount": lambda: torch.bincount(
                        (i.x * 128).floor_().clamp_(-1024, 1023).add_(1024).long().flatten()
                    ),
                    "numpy.histogram": lambda: numpy.histogram(i.x.numpy(), 2048, (-8, 8)),
                    **copy,
                },
                moved=size,
                rounds=5,
            ),
            Row(
                "histogram of 2048 bins per channel",
                lambda: ops.histogram(i.x, i.limits, 2048, 0),
                same("histogram", i.small, i.limits[: len(i.small)], 2048, 0),
                {"torch.histc": lambda: [torch.histc(row, 2048, -8, 8) for row in i.x], **copy},
                moved=size + SIZE * 2048 * 8,
                rounds=5,
            ),
        ],
        "pack_int4": [
            Row(
                "pack_int4",
                lambda: ops.pack_int4(i.nibbles),
                same("pack_int4", i.nibbles),
                moved=size // 4 + size // 8,
            )
        ],
        "unpack_int4": [
            Row(
                "unpack_int4",
                lambda: ops.unpack_int4(i.packed, SIZE),
                lambda: torch.equal(ops.unpack_int4(i.packed, SIZE), i.nibbles),
                moved=size // 4 + size // 8,
            )
        ],
    }


ROWS = rows() | product_rows.rows()


@pytest.mark.parametrize(
    "row", [row for group in ROWS.values() for row in group], ids=lambda row: row.name
)
def test_row(row: Row, benchmark) -> None:  # type: ignore[no-untyped-def]
    run(row, benchmark)
