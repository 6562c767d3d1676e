"""Tiles that a program brought: for another ISA, or at an address that no vector likes."""

import struct

import pytest
import torch

from sparseq import ops, testing
from sparseq.sparse import nm_mask


def fnv(data: bytes) -> int:
    """FNV-1a over words of 8 bytes, as csrc/gemm/tiles.cpp has it."""
    total = 0xCBF29CE484222325
    for (word,) in struct.iter_unpack("<Q", data):
        total = ((total ^ word) * 0x100000001B3) % 2**64
    return total


HEADER = 17 * 8  # bytes before the checksum


def on_isa(tiles: torch.Tensor, isa: int) -> torch.Tensor:
    """Tiles that say they are for another ISA."""
    raw = bytearray(tiles.numpy().tobytes())
    raw[8:12] = struct.pack("<i", isa)
    raw[HEADER : HEADER + 8] = struct.pack("<Q", fnv(bytes(raw[:HEADER])))
    return torch.frombuffer(raw, dtype=torch.uint8).clone()


def weight(kind: str) -> torch.Tensor:
    if kind == "depthwise":
        return torch.randint(-127, 128, (24, 1, 3, 3), dtype=torch.int8)
    w = torch.randint(-127, 128, (40, 64), dtype=torch.int8)
    return w * nm_mask(w.float()) if kind == "2:4" else w


def product(kind: str, w: torch.Tensor, tiles: torch.Tensor | None) -> torch.Tensor:
    torch.manual_seed(1)
    if kind == "depthwise":
        x = torch.randint(-128, 128, (2, 24, 6, 5), dtype=torch.int8)
        return ops.int8_conv2d(x, w, torch.full((24,), 0.01), groups=24, tiles=tiles)
    x = torch.randint(-128, 128, (9, 64), dtype=torch.int8)
    return ops.int8_linear(x, w, torch.full((40,), 0.01), tiles=tiles)


KINDS = ["dense", "2:4", "depthwise"]


@pytest.mark.parametrize("offset", [1, 16, 63])
@pytest.mark.parametrize("kind", KINDS)
def test_any_address(kind, offset, isa):
    w = weight(kind)
    tiles = ops.int8_tiles(w, 24 if kind == "depthwise" else 1)
    wanted = product(kind, w, tiles)
    moved = torch.empty(tiles.numel() + 64, dtype=torch.uint8)
    offset += -moved.data_ptr() % 64
    moved = torch.cat([moved, moved])[offset : offset + tiles.numel()]
    moved.copy_(tiles)
    assert moved.data_ptr() % 64
    for _ in range(2):  # packed anew, then kept
        testing.assert_equal(product(kind, w, moved), wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", [0, 2, 4])
def test_tiles_of_another_isa(kind, other, isa):
    w = weight(kind)
    tiles = ops.int8_tiles(w, 24 if kind == "depthwise" else 1)
    wanted = product(kind, w, None)
    for _ in range(2):
        testing.assert_equal(product(kind, w, on_isa(tiles, other)), wanted)


def test_what_was_packed_anew_is_kept_by_its_content(monkeypatch):
    """Two weights of one shape, one behind the other: each gets its own."""
    first, second = weight("dense"), weight("dense")
    second[0, 0] = -first[0, 0] or 1  # one byte apart
    second.view(-1)[1:] = first.view(-1)[1:]
    foreign = [on_isa(ops.int8_tiles(w), 4) for w in (first, second)]
    for w, tiles in zip((first, second, first), (*foreign, foreign[0]), strict=True):
        testing.assert_equal(product("dense", w, tiles), product("dense", w, None))
    last = first.clone()
    last[-1, -1] = first[-1, -1] ^ 1
    testing.assert_equal(
        product("dense", last, on_isa(ops.int8_tiles(last), 4)), product("dense", last, None)
    )


def test_the_header_is_still_checked():
    w = weight("dense")
    tiles = on_isa(ops.int8_tiles(w), 4)
    for at in (0, 8, 40, HEADER):
        damaged = tiles.clone()
        damaged[at] ^= 1
        with pytest.raises(ValueError, match="tiles must be made by int8_tiles for this weight"):
            product("dense", w, damaged)
    with pytest.raises(ValueError, match="tiles must be made by int8_tiles for this weight"):
        product("dense", w, tiles[:-1].clone())
