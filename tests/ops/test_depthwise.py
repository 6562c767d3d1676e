"""Depthwise convolutions: outputs that share columns of inputs, rows cut anywhere, bit for bit."""

import pytest
import torch

from sparseq import ops, reference, testing

WINDOWS = [
    # stride, padding, dilation
    ((1, 1), (1, 1), (1, 1)),
    ((1, 1), (0, 0), (1, 1)),
    ((2, 1), (1, 1), (1, 1)),
    ((1, 1), (2, 3), (2, 1)),
    ((2, 2), (1, 1), (1, 1)),
    ((1, 1), (2, 2), (1, 2)),
]


@pytest.mark.parametrize("window", range(len(WINDOWS)))
@pytest.mark.parametrize("channels", [1, 8, 17, 64, 70])
def test_widths(isa, channels, window):
    stride, padding, dilation = WINDOWS[window]
    for height, width in [(3, 3), (5, 5), (4, 7), (5, 16), (3, 33), (4, 34), (5, 70)]:
        x = torch.randint(0, 256, (2, channels, height, width)).to(torch.uint8)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = torch.randint(-128, 128, (channels, 1, 3, 3)).to(torch.int8)
        zero = torch.tensor([131], dtype=torch.int32)
        given = (x, weight, torch.rand(channels) + 0.01, zero, None, torch.rand(channels))
        more = {"stride": stride, "padding": padding, "dilation": dilation, "groups": channels}
        got = ops.int8_conv2d(*given, **more)
        wanted = reference.int8_conv2d(*given, *map(list, (stride, padding, dilation)), channels)
        testing.assert_equal(got, wanted, message=f"{height} x {width}")


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (7, 7)])
def test_threads_cut_rows_anywhere(isa, size):
    x = torch.randint(-128, 128, (3, 16, *size)).to(torch.int8)
    weight = torch.randint(-128, 128, (16, 1, 3, 3)).to(torch.int8)
    given = (x.contiguous(memory_format=torch.channels_last), weight, torch.ones(16))
    wanted = reference.int8_conv2d(*given, None, None, None, [1, 1], [1, 1], [1, 1], 16)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            got = ops.int8_conv2d(*given, padding=(1, 1), groups=16)
            testing.assert_equal(got, wanted, message=f"{threads} threads")
    finally:
        torch.set_num_threads(before)
