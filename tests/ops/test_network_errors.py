"""What is wrong with a program or its tensors is said in one sentence."""

import re
from dataclasses import replace

import pytest
import torch

from sparseq import ops
from sparseq.program import Grid, Instruction, Program

GRID = Grid(0.5, 3)
image = torch.randn(2, 4, 5, 6)
vector = torch.ones(4)
weight = torch.ones(4, 4, 3, 3, dtype=torch.int8)
tiles = ops.int8_tiles(weight)
CONV = [weight, tiles, vector, vector]


def instruction(op, *inputs, grid=None, constants=(), **attributes):
    return Instruction(op, inputs or (0,), grid, constants, attributes)


def program_of(*instructions, inputs=("image",), outputs=()):
    return Program(inputs, instructions, outputs)


to_grid = instruction("map", grid=GRID)
POOL = {"kernel": [2, 2], "padding": [0, 0]}
ATTENTION, HEADS = ("attention", 0, 0, 0), {"heads": 2, "width": 4, "scale": 0.5}


# (an instruction on the image, what the message must say)
INSTRUCTIONS = [
    (instruction("matmul"), "instruction 0 must be one of .*'layer_norm'.*, got 'matmul'"),
    (replace(to_grid, op=["map"]), r"instruction 0 must be one of .*, got \['map'\]"),
    (instruction("map", 1), r"instruction 0 \(map\): inputs must be values .* below 1, got 1"),
    (instruction("map", -1), "inputs must be values before it, below 1, got -1"),
    (instruction("map", True), "inputs must be values before it, below 1, got True"),
    (instruction("map", 0, 0), "must have 1 inputs, got 2"),
    (instruction("add", 0), "must have 2 inputs, got 1"),
    (instruction("conv", 0, 0, 0), "must have 1 to 2 inputs, got 3"),
    (instruction("map", constants=(0,)), "must have 0 or 2 constants, got 1"),
    (instruction("map", constants=(0, -1)), "constants must be numbers of constants, got -1"),
    (instruction("map", constants=(0, 9)), "constants must be below 4, the number given, got 9"),
    (instruction("map", axis=1), r"attributes must be among \['activation'\], got 'axis'"),
    (instruction("add", 0, 0, kernel=[1, 1]), "attributes must be among .*, got 'kernel'"),
    (instruction("map", activation="elu"), "activation must be one of .*'gelu_tanh'.*, got 'elu'"),
    (instruction("map", activation=["relu"]), r"activation must be one of .*, got \['relu'\]"),
    (instruction("max_pool"), r"\(max_pool\): kernel must be given"),
    (instruction("adaptive"), "size must be given"),
    (instruction("pad"), "around must be given"),
    (instruction("max_pool", kernel=[2]), r"kernel must be 2 whole numbers of at least 1 .* \[2\]"),
    (instruction("max_pool", kernel=[0, 2]), r"kernel must be 2 whole .*, got \[0, 2\]"),
    (instruction("max_pool", **POOL, stride=[1, 2.0]), r"stride must .*, got \[1, 2.0\]"),
    (instruction("max_pool", **POOL, stride=[1, 2**31]), r"stride .* at most 2\^30, got \[1, 21"),
    (instruction("max_pool", **POOL, ceil=1), "ceil must be true or false, got 1"),
    (
        instruction("max_pool", kernel=[3, 3], padding=[1, 2]),
        r"padding must be at most half of kernel, \[3, 3\], got \[1, 2\]",
    ),
    (instruction("avg_pool", kernel=[2, 2], padding=[-1, 0]), "padding must be 2 whole numbers"),
    (instruction("avg_pool", **POOL, divisor=-1), "divisor must be a whole number of at least 0"),
    (instruction("avg_pool", **POOL, dilation=[1, 1]), "attributes .* got 'dilation'"),
    (instruction("pad", around=[1, 1]), "around must be 4 whole numbers of at least 0"),
    (instruction("layer_norm", eps=float("nan")), "eps must be a finite float32 .* got nan"),
    (instruction("layer_norm", eps=-1e-5), "eps must .* of at least 0, got -1e-05"),
    (instruction("layer_norm", eps=10**400), "eps must be a finite float32"),
    (instruction(*ATTENTION, heads=2, width=4), r"\(attention\): scale must be given"),
    (instruction(*ATTENTION, **{**HEADS, "heads": 0}), "heads must be a whole number"),
    (instruction(*ATTENTION, **{**HEADS, "heads": 3}), "heads must divide width, 4, got 3"),
    (instruction(*ATTENTION, **{**HEADS, "scale": 1e39}), "scale must be a finite float32,"),
    (instruction(*ATTENTION, **HEADS, causal=0), "causal must be true or false, got 0"),
    (instruction(*ATTENTION, **HEADS, first=[0, 0]), "first must be 3 whole numbers"),
    (
        instruction(*ATTENTION, **HEADS, first=[0, 1, 0]),
        r"k must have 4 channels from channel 1 on, got \(2, 5, 6, 4\)",
    ),
    (instruction("conv", constants=(0, 1, 2)), "first input must be on a grid, got"),
    (instruction("max_pool", kernel=[6, 2]), r"window must fit .*, got \(2, 5, 6, 4\)"),
    (instruction("layer_norm", constants=(2, 4)), "constants must be below 4"),
]  # fmt: skip

GRIDS = [
    (Grid(0.0), "scale must be a positive, finite float32, got 0.0"),
    (Grid(-1.0), "scale must be a positive, finite float32, got -1.0"),
    (Grid(float("nan")), "scale must be a positive, finite float32, got nan"),
    (Grid(float("inf")), "scale must be a positive, finite float32, got inf"),
    (Grid(1e39), r"scale must be a positive, finite float32, got 1e\+39"),
    (Grid(1e-50), "scale must be a positive, finite float32, got 1e-50"),
    (Grid(10**400), "scale must be a positive, finite float32"),
    (Grid(True), "scale must be a positive, finite float32, got True"),
    (Grid("1"), "scale must be a positive, finite float32, got '1'"),
    (Grid(1.0, 1.5), r"must be whole numbers in \[0, 255\], got 1.5, 0 and 255"),
    (Grid(1.0, 0, 0, 256), r"must be whole numbers in \[0, 255\], got 0, 0 and 256"),
    (Grid(1.0, 0, -1), r"must be whole numbers in \[0, 255\], got 0, -1 and 255"),
    (Grid(1.0, 3, 4, 9), "low <= zero_point <= high and low < high must hold, got 4, 3 and 9"),
    (Grid(1.0, 9, 4, 8), "low <= zero_point <= high and low < high must hold, got 4, 9 and 8"),
    (Grid(1.0, 4, 4, 4), "low <= zero_point <= high and low < high must hold, got 4, 4 and 4"),
]


def says(text):
    return f"^network: .*{text}"


@pytest.mark.parametrize(("wrong", "text"), INSTRUCTIONS)
def test_instructions(wrong, text):
    with pytest.raises(ValueError, match=says(text)):
        ops.network(program_of(wrong), CONV, [image])


@pytest.mark.parametrize(("grid", "text"), GRIDS)
def test_grids(grid, text):
    with pytest.raises(ValueError, match=says(rf"instruction 0 \(map\): .*{text}")):
        ops.network(program_of(instruction("map", grid=grid)), [], [image])


@pytest.mark.parametrize(
    ("constants", "attributes", "error", "text"),
    [
        ([weight.float(), tiles, vector], {}, TypeError, "weight must be int8, got float32"),
        ([weight, tiles.char(), vector], {}, TypeError, "tiles must be uint8, got int8"),
        ([weight, tiles[None], vector], {}, ValueError, "tiles must have one dimension"),
        (
            [weight, tiles, vector.double()],
            {},
            TypeError,
            "multiplier must be float32, got float64",
        ),
        ([weight, tiles, vector[:3]], {}, ValueError, r"multiplier must have one .* 4, .* \(3,\)"),
        ([*CONV[:3], vector[None]], {}, ValueError, r"bias must have one value .* \(1, 4\)"),
        ([weight[0], tiles, vector], {}, ValueError, r"weight must be \[O, I / groups, kh, kw\]"),
        ([weight[:0], tiles, vector], {}, ValueError, "weight must be .* not empty"),
        ([weight[:3], tiles, vector], {"groups": 2}, ValueError, "O a multiple of groups = 2"),
        (CONV, {"groups": 2}, ValueError, "inputs of 4 channels of 1 columns in 2 groups"),
        (CONV, {"columns": 2}, ValueError, "kw = 1 with columns > 1"),
        (
            [weight[..., :1].contiguous(), tiles, vector],
            {"columns": 2},
            ValueError,
            "4 channels of 2 columns",
        ),
        (
            [torch.ones(4, 28, 3, 1, dtype=torch.int8), tiles, vector],
            {"columns": 7, "padding": [0, 4]},
            *(ValueError, "window must fit the padded input"),
        ),
        (
            [torch.ones(1, 4, 100, 100, dtype=torch.int8), tiles, vector[:1]],
            {"padding": [50, 50]},
            *(ValueError, "at most 33025 inputs an output for an exact int32 sum, got 40000"),
        ),
        (CONV, {"dilation": [3, 3]}, ValueError, "window must fit the padded input"),
        ([weight, tiles, vector.to("meta")], {}, ValueError, r"constants\[2\] must be on cpu, got"),
        (
            [weight.to(memory_format=torch.channels_last), tiles, vector],
            *({}, ValueError, r"constants\[0\] must be contiguous, got \(36, 1, 12, 4\)"),
        ),
        ([weight, tiles, 1.0], {}, TypeError, r"constants\[2\] must be a tensor, got float"),
    ],
)
def test_convolutions(constants, attributes, error, text):
    conv = instruction("conv", 1, constants=tuple(range(len(constants))), **attributes)
    with pytest.raises(error, match=says(text)):
        ops.network(program_of(to_grid, conv), constants, [image])


def test_a_residual_has_the_shape_of_the_result():
    conv = instruction("conv", 1, 0, constants=(0, 1, 2, 3))
    text = r"residual must be \[N, H, W, C\] \(2, 3, 4, 4\), got \(2, 5, 6, 4\)"
    with pytest.raises(ValueError, match=says(text)):
        ops.network(program_of(to_grid, conv), CONV, [image])


@pytest.mark.parametrize("op", ["map", "layer_norm"])
def test_constants_of_channels(op):
    wanted = program_of(instruction(op, constants=(0, 1)))
    with pytest.raises(ValueError, match=says(r"must have one value a channel, 4, .* \(5,\)")):
        ops.network(wanted, [vector, torch.ones(5)], [image])
    with pytest.raises(TypeError, match=says("must be float32, got int32")):
        ops.network(wanted, [vector.int(), vector], [image])


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (3, 4, 5, 6), (2, 4, 1, 6), (2, 4, 5, 1)])
@pytest.mark.parametrize("op", ["add", "mul"])
def test_a_second_input_is_repeated_as_a_whole(op, shape):
    both = program_of(instruction(op, 0, 1), inputs=("image", "image"))
    with pytest.raises(ValueError, match=says("or 1 in N, or in H and W, got")):
        ops.network(both, [], [image, torch.ones(shape)])


def test_attention_reads_floats_of_one_batch():
    on_grid = program_of(to_grid, instruction("attention", 0, 1, 0, **HEADS))
    with pytest.raises(ValueError, match=says("inputs must be float32, got a value on a grid")):
        ops.network(on_grid, [], [image])
    both = program_of(instruction("attention", 0, 1, 0, **HEADS), inputs=("image", "image"))
    for other in (image[:1], image[:, :, 1:]):
        with pytest.raises(ValueError, match=says("must agree in N, and k and v in H and W, got")):
            ops.network(both, [], [image, other])


def test_concat_agrees_but_for_channels():
    both = program_of(instruction("concat", 0, 1), inputs=("image", "image"))
    with pytest.raises(ValueError, match=says("inputs must agree but for their channels")):
        ops.network(both, [], [image, image[:, :, 1:]])


@pytest.mark.parametrize(
    ("form", "given", "error", "text"),
    [
        ("image", [], ValueError, "inputs must be 1, got 0"),
        ("image", [image, image], ValueError, "inputs must be 1, got 2"),
        ("image", [3], TypeError, r"inputs\[0\] must be a tensor, got int"),
        ("image", [image.double()], TypeError, r"inputs\[0\] must be float32, got float64"),
        ("image", [image[0]], ValueError, r"inputs\[0\] must have 4 dimensions, image, got"),
        ("rows", [image], ValueError, r"inputs\[0\] must have 3 dimensions, rows"),
        ("vector", [image[0]], ValueError, r"inputs\[0\] must have 2 dimensions, vector"),
        ("image", [image[:, :, :0]], ValueError, "must not be empty except in its first"),
        ("tokens", [image], ValueError, "input 0 must have a form of .*, got 'tokens'"),
    ],
)
def test_inputs(form, given, error, text):
    with pytest.raises(error, match=says(text)):
        ops.network(program_of(instruction("map"), inputs=(form,)), [], given)


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ((2, "image"), "output 0 must be a value, below 2, got 2"),
        ((-1, "image"), "output 0 must be a value, below 2, got -1"),
        ((1, "tokens"), "output 0 must have a form of .*, got 'tokens'"),
        ((1, "vector"), r"output 0 must have H = W = 1 to be a vector, got \(2, 5, 6, 4\)"),
    ],
)
def test_outputs(output, text):
    with pytest.raises(ValueError, match=says(text)):
        ops.network(program_of(instruction("map"), outputs=(output,)), [], [image])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("[]", "its keys must be"),
        ("3", "not iterable"),
        ("[" * 100_000, "recursion"),
        ('{"version":1}', r"its keys must be .*, got \['version'\]"),
        ('{"version":2,"inputs":[],"instructions":[],"outputs":[]}', "version must be 1, got 2"),
        ('{"version":1,"inputs":3,"instructions":[],"outputs":[]}', "not iterable"),
        ('{"version":1,"inputs":[],"instructions":[{}],"outputs":[]}', "'op'"),
        ('{"version":1,"inputs":[],"instructions":[1],"outputs":[]}', "'int' object"),
        ('{"version":1,"inputs":[],"instructions":[],"outputs":[[1]]}', "not enough values"),
    ],
)
def test_texts(text, said):
    with pytest.raises(
        ValueError, match=f"^network: program must be the JSON of a Program: .*{said}"
    ):
        ops.network(text, [], [])


def test_a_program_is_a_program():
    with pytest.raises(TypeError, match=re.escape("must be a Program or its JSON, got dict")):
        ops.network({}, [], [])


def test_errors_while_tracing():
    """The fake kernel says the same."""
    model = torch.nn.Module()
    text = program_of(instruction("max_pool", kernel=[6, 2]), outputs=((1, "image"),)).to_json()
    model.forward = lambda x: torch.ops.sparseq.network(text, [], [x])[0]
    with pytest.raises(Exception, match="window must fit the padded input"):
        torch.export.export(model, (image,))
