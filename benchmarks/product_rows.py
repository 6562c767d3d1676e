"""Rows of the products and of the 2:4 form, for ops.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import Row, same, same_raw
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from sparseq import ops, reference
from sparseq.program import Grid, Instruction, Program
from sparseq.sparse import nm_mask

SIZE = 4096
raw = torch.ops.sparseq


def _bell(*shape: int) -> torch.Tensor:
    """INT8 weights as trained ones are: bell-shaped, the greatest near 127."""
    return (torch.randn(shape) * 28).round().clamp(-127, 127).to(torch.int8)


def _positions(rows: int, columns: int) -> torch.Tensor:
    """Random indices of the canonical 2:4 form."""
    pairs = torch.tensor([a | b << 2 for a in range(4) for b in range(a + 1, 4)])
    nibbles = pairs[torch.randint(6, (rows, columns // 4))]
    return (nibbles[:, ::2] | nibbles[:, 1::2] << 4).to(torch.uint8)


def _torch_int4(q: torch.Tensor, scale: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """torch's own kernel, of bfloat16 and groups of 32: its zero is at 8, and it takes no bias."""
    weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu((q + 8).int(), 1)
    grid = torch.stack([scale, torch.zeros_like(scale)], -1).transpose(0, 1).contiguous().bfloat16()
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, 32, grid)


def _mask_by_topk(weight: torch.Tensor) -> torch.Tensor:
    groups = weight.unflatten(-1, (-1, 4)).abs()
    order = groups.topk(2, dim=-1).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order, True).flatten(-2)


class _Block:
    """A residual block of two convolutions: as one program, layer by layer, and in float32."""

    def __init__(self, x: torch.Tensor, weight: torch.Tensor, tiles: torch.Tensor) -> None:
        grid = Grid(2**-4, 100)
        scale = torch.full((len(weight),), 2**-12)
        conv = {"padding": [1, 1], "activation": "relu"}
        instructions = (
            Instruction("map", (0,), grid),
            Instruction("conv", (1,), grid, (0, 1, 2), conv),
            Instruction("conv", (2, 1), grid, (0, 1, 2), conv),
        )
        self.text = Program(("image",), instructions, ((3, "image"),)).to_json()
        self.constants, self.x = [weight, tiles, scale], x
        self.scale, self.zero = torch.tensor(grid.scale), torch.tensor([100], dtype=torch.int32)
        self.weight = (weight * scale[0]).to(memory_format=torch.channels_last)

    def network(self) -> torch.Tensor:
        return raw.network(self.text, self.constants, [self.x])[0]

    def layers(self) -> torch.Tensor:
        weight, tiles, scale = self.constants
        grid = {"y_scale": self.scale, "y_zero": self.zero, "y_min": 0, "y_max": 255}
        stored = {**grid, "dtype": torch.uint8, "activation": "relu"}
        window = ([1, 1], [1, 1], [1, 1], 1, tiles)
        x = raw.quantize(self.x, self.scale, self.zero[0], 0, 255, None, None)
        given = (weight, scale, self.zero, None, None, *window)
        y = raw.int8_conv2d(x, *given, **stored)
        residual = {"residual": x, "residual_scale": self.scale, "residual_zero": self.zero}
        y = raw.int8_conv2d(y, *given, **stored, **residual)
        return raw.dequantize(y, self.scale, self.zero[0], None, None, torch.float32)

    def floats(self) -> torch.Tensor:
        conv, relu = torch.nn.functional.conv2d, torch.nn.functional.relu
        y = relu(conv(self.x, self.weight, padding=1))
        return relu(conv(y, self.weight, padding=1) + self.x)

    def right(self) -> bool:
        (wanted,) = reference.network(self.text, self.constants, [self.x])
        return torch.equal(self.network(), wanted) and torch.equal(self.layers(), wanted)


class _Inputs:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(SIZE, SIZE)
        self.nibbles = ops.quantize(self.x, torch.tensor(0.02), None, -8, 7)
        self.packed = ops.pack_int4(self.nibbles)
        self.tokens = torch.randint(-128, 128, (128, 1024), dtype=torch.int8)
        self.weight = _bell(1024, 1024)
        self.image = torch.randint(-128, 128, (1, 64, 56, 56), dtype=torch.int8)
        self.image = self.image.to(memory_format=torch.channels_last)
        self.taps = _bell(64, 64, 3, 3)
        self.sparse, self.sparse_taps = (w * nm_mask(w.float()) for w in (self.weight, self.taps))
        self.packed_24 = ops.pack_24(self.sparse)
        self.cutlass = sparse_semi_structured_from_dense_cutlass(self.sparse)
        self.tiles, self.sparse_tiles = ops.int8_tiles(self.weight), ops.int8_tiles(self.sparse)
        self.taps_tiles = ops.int8_tiles(self.taps)
        self.sparse_taps_tiles = ops.int8_tiles(self.sparse_taps)
        self.tokens_float, self.weight_float = self.tokens.float(), self.weight.float()
        self.image_float = self.image.float()
        self.taps_float = self.taps.float().to(memory_format=torch.channels_last)
        self.block = _Block(self.image_float / 32, self.taps, self.taps_tiles)
        self.ones = torch.ones(1024)
        self.groups = torch.rand(SIZE, SIZE // 32) * 0.01 + 0.015
        self.kept = torch.randn(SIZE, SIZE // 2)
        self.positions = _positions(SIZE, SIZE)
        self.torch_int4 = _torch_int4(self.nibbles, self.groups)


def close(name: str, *arguments: object) -> bool:
    ours, theirs = (getattr(m, name)(*arguments) for m in (ops, reference))
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def rows() -> dict[str, list[Row]]:
    i = _Inputs()
    size = i.x.numel() * 4
    out = torch.empty_like(i.x)
    copy = {"copy to fresh memory": lambda: i.x.clone(), "copy in place": lambda: out.copy_(i.x)}

    def int4_row(count: int) -> Row:
        x = torch.randn(count, SIZE)
        half = x.bfloat16()
        part = (x[:, :384], i.packed[:, :192], i.groups[:, :12], None, None)
        return Row(
            f"int4_linear groups of 32 {count}x4096->4096",
            lambda: ops.int4_linear(x, i.packed, i.groups),
            lambda: close("int4_linear", *part),
            {
                "torch float32": lambda: linear(x, i.x),
                "torch int4 bfloat16": lambda: i.torch_int4(half),
            },
            moved=size // 8 + size // 32,
        )

    def sparse_row(count: int, dtype: torch.dtype = torch.float32) -> Row:
        x, kept, dense = torch.randn(count, SIZE), i.kept.to(dtype), i.x.to(dtype)
        part = (x[:, :384], kept[:9, :192], i.positions[:9, :48], None)
        name, given = str(dtype).removeprefix("torch."), x.to(dtype)
        return Row(
            f"linear_24 {name} {count}x4096->4096"
            if dtype.itemsize == 2
            else f"linear_24 {count}x4096->4096",
            lambda: ops.linear_24(given, kept, i.positions),
            lambda: close("linear_24", *part),
            {f"torch {name}": lambda: linear(given, dense)},
            moved=size * dtype.itemsize // 8 + size // 32,
        )

    conv = (i.ones[:64], None, None, None, [1, 1], [1, 1], [1, 1], 1)
    linear, conv2d = torch.nn.functional.linear, torch.nn.functional.conv2d
    return {
        "int8_linear": [
            Row(
                "int8_linear 128x1024->1024",
                lambda: ops.int8_linear(i.tokens, i.weight, i.ones, tiles=i.tiles),
                same("int8_linear", i.tokens, i.weight, i.ones, None, None, None),
                {"torch float32": lambda: linear(i.tokens_float, i.weight_float)},
            ),
            Row(
                "int8_linear 2:4 128x1024->1024",
                lambda: ops.int8_linear(i.tokens, i.sparse, i.ones, tiles=i.sparse_tiles),
                same("int8_linear", i.tokens, i.sparse, i.ones, None, None, None),
                {"torch float32": lambda: linear(i.tokens_float, i.weight_float)},
            ),
        ],
        "int4_linear": [int4_row(1), int4_row(16)],
        "linear_24": [sparse_row(1), sparse_row(16), sparse_row(1, torch.bfloat16)],
        # no tiles on a CPU, which reads the canonical form: what it costs to find that out
        "tiles_24": [
            Row(
                "tiles_24 4096x4096",
                lambda: ops.tiles_24(i.kept, i.positions, SIZE),
                lambda: ops.tiles_24(i.kept, i.positions, SIZE).numel() == 0,
            )
        ],
        "int8_tiles": [
            Row(
                "int8_tiles 1024x1024",
                lambda: ops.int8_tiles(i.weight),
                lambda: torch.equal(
                    ops.int8_linear(i.tokens, i.weight, i.ones, tiles=i.tiles),
                    reference.int8_linear(i.tokens, i.weight, i.ones, None, None, None),
                ),
            )
        ],
        "int8_conv2d": [
            Row(
                "int8_conv2d 64->64 3x3 at 56x56",
                lambda: raw.int8_conv2d(i.image, i.taps, *conv, i.taps_tiles),
                same_raw("int8_conv2d", i.image, i.taps, *conv),
                {"torch float32": lambda: conv2d(i.image_float, i.taps_float, padding=1)},
            ),
            Row(
                "int8_conv2d 2:4 64->64 3x3 at 56x56",
                lambda: raw.int8_conv2d(i.image, i.sparse_taps, *conv, i.sparse_taps_tiles),
                same_raw("int8_conv2d", i.image, i.sparse_taps, *conv),
                {"torch float32": lambda: conv2d(i.image_float, i.taps_float, padding=1)},
            ),
        ],
        "network": [
            Row(
                "network residual block 64 channels at 56x56",
                i.block.network,
                i.block.right,
                {"its ops one by one": i.block.layers, "torch float32": i.block.floats},
            )
        ],
        "mask_24": [
            Row(
                "mask_24 4096x4096",
                lambda: ops.mask_24(i.x),
                same("mask_24", i.x[:256, :384]),
                {"torch.topk and scatter": lambda: _mask_by_topk(i.x), **copy},
                moved=size + size // 4,
            )
        ],
        "pack_24": [
            Row(
                "pack_24 int8 1024x1024",
                lambda: ops.pack_24(i.sparse),
                same("pack_24", i.sparse),
                {"torch to CUTLASS": lambda: sparse_semi_structured_from_dense_cutlass(i.sparse)},
                moved=i.sparse.numel() * 13 // 8,
            )
        ],
        "unpack_24": [
            Row(
                "unpack_24 int8 1024x1024",
                lambda: ops.unpack_24(*i.packed_24, 1024),
                lambda: torch.equal(ops.unpack_24(*i.packed_24, 1024), i.sparse),
                {"torch from CUTLASS": lambda: sparse_semi_structured_to_dense_cutlass(*i.cutlass)},
                moved=i.sparse.numel() * 13 // 8,
            )
        ],
    }
