"""Sums in a residual block: written over what they add, or added as it is made."""

import pytest
import torch
from network_cases import Case
from test_network import assert_as_defined, assert_equal

from sparseq import ops, reference, testing
from sparseq.program import Grid, Instruction, Program

FIRST, SECOND, THIRD = Grid(0.0371, 100), Grid(0.05, 7), Grid(0.0625, 31, 3, 250)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    with testing.threads(request.param):
        yield request.param


class Block:
    """Instructions with the constants that they number; value 0 is the program's input."""

    def __init__(self):
        self.random = torch.Generator().manual_seed(0)
        self.constants, self.instructions = [], []

    def add(self, instruction):
        self.instructions.append(instruction)
        return len(self.instructions)

    def conv(self, inputs, grid, channels, kernel=1, sparse=False, **attributes):
        outputs, depth = channels
        shape = (outputs, depth, kernel, kernel)
        weight = torch.randint(-128, 128, shape, generator=self.random).to(torch.int8)
        if sparse:
            weight = weight * ops.mask_24(weight.float())
        scale = 0.1 / (weight[0].numel() ** 0.5 * 74)
        multiplier = (1 + torch.rand(outputs, generator=self.random)) * scale
        bias = torch.randn(outputs, generator=self.random)
        at = len(self.constants)
        tiles = ops.int8_tiles(weight, 1, "2:4" if sparse else "dense")
        self.constants += [weight, tiles, multiplier, bias]
        constants = tuple(range(at, at + 4))
        return self.add(Instruction("conv", inputs, grid, constants, attributes))

    def case(self, x, *outputs):
        program = Program(
            ("image",), tuple(self.instructions), tuple((v, "image") for v in outputs)
        )
        return Case(program, self.constants, [x])


def downsampling(size, batch, channels, kernel, sparse, grid=THIRD, activation="relu"):
    """A block that halves the image; its shortcut's float32 is nobody's but the sum's."""
    inputs, outputs = channels
    block = Block()
    x = block.add(Instruction("map", (0,), FIRST))
    near = {"padding": [kernel // 2] * 2, "stride": [2, 2]}
    inner = block.conv((x,), SECOND, (outputs, inputs), kernel, sparse, **near)
    shortcut = block.conv((x,), None, (outputs, inputs), 1, not sparse, stride=[2, 2])
    near = {"padding": [kernel // 2] * 2, "activation": activation}
    y = block.conv((inner, shortcut), grid, (outputs, outputs), kernel, sparse, **near)
    image = torch.randn(batch, inputs, *size, generator=block.random) * 3
    return block, y, image


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    ("size", "batch", "channels"),
    [
        ((9, 7), 1, (4, 8)),
        ((16, 16), 3, (16, 32)),
        (
            (28, 20),
            2,
            (32, 80),
        ),  # Winograd: some tiles are cut
        ((14, 14), 5, (64, 144)),
        ((14, 14), 3, (64, 128)),  # dense groups of 64 beside 2:4 ones of 32
        ((10, 10), 1, (24, 128)),
        ((1, 1), 2, (8, 40)),
    ],
)
@pytest.mark.usefixtures("isa")
def test_a_shortcut_is_added_as_it_is_made(size, batch, channels, kernel, sparse, threads):
    for grid, activation in [(THIRD, "relu"), (None, "none"), (THIRD, "silu")]:
        block, y, x = downsampling(size, batch, channels, kernel, sparse, grid, activation)
        assert_as_defined(block.case(x, y))


@pytest.mark.usefixtures("isa")
def test_a_shortcut_that_others_want_is_a_value(threads):
    block, y, x = downsampling((12, 12), 2, (16, 32), 3, False)
    assert_as_defined(block.case(x, y, y - 1))
    block.add(Instruction("add", (y, y - 1), None))
    assert_as_defined(block.case(x, y + 1))


@pytest.mark.usefixtures("isa")
def test_what_a_shortcut_is_made_of_lasts(threads):
    """Between it and the sum other values would take that memory."""
    block = Block()
    x = block.add(Instruction("map", (0,), FIRST))
    start = block.conv((x,), SECOND, (32, 16))
    shortcut = block.conv((start,), None, (32, 32))
    inner = block.conv((x,), SECOND, (32, 16))
    for _ in range(3):
        inner = block.conv((inner,), SECOND, (32, 32), 3, padding=[1, 1])
    y = block.conv((inner, shortcut), THIRD, (32, 32))
    assert_as_defined(block.case(torch.randn(2, 16, 9, 9) * 3, y))


@pytest.mark.parametrize("grid", [SECOND, None])
@pytest.mark.usefixtures("isa")
def test_sums_over_what_they_add(grid, threads):
    """A stage of blocks, each sum over the last; one adds its own input, one the first value."""
    block = Block()
    x = block.add(Instruction("map", (0,), FIRST))
    first = y = block.conv((x,), SECOND, (48, 16))
    for kernel in (1, 3, 3, 1):
        inner = block.conv((y,), SECOND, (48, 48), kernel, padding=[kernel // 2] * 2)
        y = block.conv((inner, y), SECOND, (48, 48), 3, padding=[1, 1], activation="relu")
    y = block.conv((y, y), SECOND, (48, 48), 3, padding=[1, 1])
    z = block.conv((y, first), grid, (48, 48), 3, padding=[1, 1])
    case = block.case(torch.randn(2, 16, 11, 13) * 3, z)
    assert_as_defined(case)
    wanted = reference.network(case.program.to_json(), case.constants, case.inputs)
    assert_equal(ops.network(*case), wanted)  # again, over what the first call left
