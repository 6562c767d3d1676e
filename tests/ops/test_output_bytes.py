"""Where one byte of the output ends and the next begins, the float32 division decides."""

import pytest
import torch

from sparseq import reference, testing

HALVES = torch.arange(255, dtype=torch.float64) + 0.5


def ends(scale):
    """The three float32 nearest to each y with y / scale halfway from a tie to its neighbour."""
    ties = HALVES.float()
    above = torch.nextafter(ties, torch.tensor(torch.inf)).double()
    below = torch.nextafter(ties, torch.tensor(0.0)).double()
    nearest = (torch.cat([HALVES + above, HALVES + below]) / 2 * scale.double()).float()
    infinity = torch.full_like(nearest, torch.inf)
    return torch.cat(
        [nearest, torch.nextafter(nearest, infinity), torch.nextafter(nearest, -infinity)]
    )


def check(y, scale, sign=1, **more):
    """The bytes of outputs y, which are biases here: the products are all 0."""
    count = y.numel()
    x, weight = torch.zeros(2, 4, dtype=torch.int8), torch.zeros(count, 4, dtype=torch.int8)
    zero = torch.tensor([0 if sign > 0 else 255], dtype=torch.int32)
    given = (x, weight, torch.ones(count), None, None, sign * y)
    keywords = {"x_scale": torch.ones(1), "dtype": torch.uint8, "y_scale": scale.reshape(1)}
    keywords |= {"y_zero": zero, "y_min": 0, "y_max": 255, **more}
    wanted = reference.int8_linear(*given, **keywords)
    got = torch.ops.sparseq.int8_linear(*given, **keywords)
    testing.assert_equal(got, wanted, message=f"{scale}, {sign}")
    return wanted


SIGNIFICANDS = [1.0, 1 + 2**-23, 2 - 2**-23, 4 / 3, 1.1]


@pytest.mark.parametrize("exponent", [-126, -61, -60, -59, -8, 0, 59, 60, 61])
def test_next_to_every_tie(isa, exponent):
    significands = torch.cat([torch.tensor(SIGNIFICANDS), 1 + torch.rand(15)])
    for scale in significands * 2.0**exponent:
        bytes_ = check(ends(scale), scale)
        assert len(bytes_.unique()) == 256
        check(ends(scale), scale, sign=-1)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "hardswish", "gelu"])
@pytest.mark.parametrize("residual", [None, torch.uint8, torch.float32])
def test_values_that_no_bound_holds(isa, activation, residual):
    big = [0.0, -0.0, 1e-45, 1.0, 2.0**58, 2.0**59, 2.0**60, 3.4e38, torch.inf, torch.nan]
    y = torch.tensor([sign * value for value in big for sign in (1, -1)])
    more = {"activation": activation}
    if residual is not None:
        other = torch.arange(2 * y.numel()).reshape(2, -1).to(residual)
        more |= {"residual": other}
        if residual == torch.uint8:
            more |= {"residual_scale": torch.tensor([2.0**50])}
    for scale in (2.0**-140, 2.0**-60, 0.01, 2.0**60, 2.0**100):
        check(y, torch.tensor(scale), **more)
        check(y[:8], torch.tensor(scale), **more | ({"residual": other[:, :8]} if residual else {}))


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (1, 18), (5, 7), (33, 19), (40, 48)])
def test_images_of_three_colours_become_bytes(isa, size):
    x = 40 * torch.randn(2, 3, *size)
    x[0, :, 0, 0] = torch.tensor([torch.nan, torch.inf, -3.4e38])
    weight = torch.eye(3, dtype=torch.int8).reshape(3, 3, 1, 1)  # what comes in goes out
    given = (x, weight, torch.ones(3), torch.tensor([7], dtype=torch.int32), None, None)
    window = ([1, 1], [0, 0], [1, 1], 1)
    keywords = {"x_scale": torch.tensor([0.37]), "x_min": 0, "x_max": 255}
    got = torch.ops.sparseq.int8_conv2d(*given, *window, **keywords)
    testing.assert_equal(got, reference.int8_conv2d(*given, *window, **keywords))
