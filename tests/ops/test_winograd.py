"""3 x 3 convolutions of stride 1: done by Winograd's filtering where it is faster, as exactly."""

import pytest
import torch

from sparseq import ops, reference

VALUES = {
    "random": (torch.arange(-128, 128), torch.arange(256)),
    "lowest weights": (torch.tensor([-128]), torch.tensor([255])),
    "highest weights": (torch.tensor([127]), torch.tensor([0, 255])),
    "largest transformed": (torch.tensor([-128, 127]), torch.tensor([0, 255])),
}


def picked(values, shape, generator, dtype):
    chosen = values[torch.randint(0, len(values), shape, generator=generator)].to(dtype)
    return chosen.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8], ids=str)
@pytest.mark.parametrize(
    ("n", "c", "o", "h", "w", "padding"),
    [
        (1, 16, 16, 8, 8, (1, 1)),
        (2, 32, 24, 7, 9, (1, 1)),  # half tiles at both borders, a tail of outputs
        (3, 16, 40, 13, 5, (0, 0)),  # strips of several images in a block
        (1, 48, 8, 9, 30, (2, 2)),
        (1, 16, 17, 4, 40, (1, 0)),
        (1, 64, 32, 56, 56, (1, 1)),  # several blocks
        (1, 256, 256, 14, 14, (1, 1)),
        (1, 112, 16, 12, 12, (1, 1)),  # of 4 x 4 outputs: the largest sums, and too large ones
        (1, 128, 16, 12, 12, (1, 1)),
        (2, 32, 32, 15, 13, (1, 1)),  # its half tiles
        (1, 1024, 16, 10, 8, (1, 1)),  # the most inputs
        (1, 16, 16, 3, 3, (1, 1)),  # too small for it
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["dense", "2:4"])
def test_sums_are_exact(n, c, o, h, w, padding, dtype, values, threads, kind):
    generator = torch.Generator().manual_seed(n * c + o)
    weights, inputs = VALUES[values]
    weight = picked(weights, (o, c, 3, 3), generator, torch.int8)
    if kind == "2:4":
        weight[:, torch.arange(c) % 4 > 1] = 0
    x = picked(inputs - (128 if dtype == torch.int8 else 0), (n, c, h, w), generator, dtype)
    zero = torch.tensor(5, dtype=torch.int32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tiles = ops.int8_tiles(weight, kind=kind)
        got = ops.int8_conv2d(x, weight, torch.ones(o), zero, padding=padding, tiles=tiles)
    finally:
        torch.set_num_threads(before)
    centred = torch.nn.functional.pad(x.double() - 5, (padding[1], padding[1], *(2 * padding[:1])))
    exact = torch.nn.functional.conv2d(centred, weight.double())
    assert torch.equal(got, exact.float())  # below 2^53: rounded once


def test_the_epilogue_follows():
    generator = torch.Generator().manual_seed(0)
    weight = picked(torch.arange(-128, 128), (24, 32, 3, 3), generator, torch.int8)
    x = picked(torch.arange(256), (2, 32, 11, 10), generator, torch.uint8)
    residual = torch.randn(2, 24, 11, 10, generator=generator)
    scale, bias = torch.rand(24, generator=generator) * 1e-4, torch.randn(24, generator=generator)
    options = {
        "padding": (1, 1),
        "activation": "relu",
        "residual": residual,
        "dtype": torch.uint8,
        "y_scale": torch.tensor(0.05),
        "y_zero": torch.tensor(3, dtype=torch.int32),
    }
    zero = torch.tensor(7, dtype=torch.int32)
    tiles = ops.int8_tiles(weight)
    got = ops.int8_conv2d(
        x, weight, scale, zero, None, bias, tiles=tiles, **options, y_range=(0, 255)
    )
    want = reference.int8_conv2d(
        x,
        weight,
        scale,
        zero,
        None,
        bias,
        (1, 1),
        dilation=(1, 1),
        groups=1,
        **options,
        y_min=0,
        y_max=255,
    )
    assert torch.equal(got, want)


def test_only_what_can_use_it_is_packed_for_it():
    """Twice the bytes; other weights, and kernels without it, have their tiles alone."""

    def times(o, c, h, w):
        weight = torch.ones(o, c, h, w, dtype=torch.int8)
        return ops.int8_tiles(weight).numel() / weight.numel()

    if times(128, 128, 3, 3) < 1.9:
        pytest.skip("this machine's kernels have no such way")
    assert times(128, 128, 3, 1) < 1.5
    assert times(128, 120, 3, 3) < 1.5  # not a multiple of 16 inputs
    assert times(32, 1040, 3, 3) < 1.5  # sums could leave int32
