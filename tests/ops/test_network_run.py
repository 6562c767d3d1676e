"""How the CPU runs programs: memory that values share, threads, ISAs, plans; and hostile text."""

import json
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from network_cases import Case, cases, small_network

from sparseq import ops, reference, testing
from sparseq.program import Grid, Instruction, Program

A, B = Grid(0.05, 120), Grid(0.07, 30, 10, 240)
_run = torch.ops.sparseq.network


def wanted(case):
    return reference.network(case.program.to_json(), case.constants, case.inputs)


def assert_as_defined(case, inputs=None):
    got = _run(case.program.to_json(), case.constants, inputs or case.inputs)
    for y, exact in zip(got, wanted(case), strict=True):
        torch.testing.assert_close(y, exact, rtol=0, atol=0, equal_nan=True)


class Builder:
    """A program, one instruction after the other; values are what the calls return."""

    def __init__(self, *inputs, forms=None):
        self.inputs, self.forms = list(inputs), forms or ["image"] * len(inputs)
        self.constants, self.instructions = [], []

    def add(self, op, *values, grid=None, constants=(), **attributes):
        self.instructions.append(Instruction(op, values, grid, constants, attributes))
        return len(self.inputs) + len(self.instructions) - 1

    def conv(self, x, shape, *residual, grid=A, kind="auto", **attributes):
        weight = torch.randint(-128, 128, shape, dtype=torch.int8)
        if kind == "2:4":
            weight = weight * ops.mask_24(weight.float())
        tiles = ops.int8_tiles(weight, attributes.get("groups", 1))
        multiplier = torch.rand(shape[0]) * 0.002 / weight[0].numel() ** 0.5
        first = len(self.constants)
        self.constants += [weight, tiles, multiplier, torch.randn(shape[0])]
        numbers = tuple(range(first, first + 4))
        return self.add("conv", x, *residual, grid=grid, constants=numbers, **attributes)

    def case(self, *outputs):
        outputs = tuple(o if isinstance(o, tuple) else (o, "image") for o in outputs)
        program = Program(tuple(self.forms), tuple(self.instructions), outputs)
        return Case(program, self.constants, self.inputs)


SAME = {"padding": [1, 1]}


def residual_network(images=2, size=12, channels=32):
    """Blocks with residuals on a grid and in float32, 2:4 and depthwise layers, all shared."""
    b = Builder(torch.randn(images, 16, size, size) * 3)
    x = b.add("map", 0, grid=A)
    x = b.conv(x, (channels, 16, 3, 3), activation="relu", **SAME)
    for kind, grid in (("auto", B), ("2:4", None)):
        y = b.conv(x, (channels, channels, 3, 3), grid=B, kind=kind, activation="silu", **SAME)
        x = b.conv(y, (channels, channels, 1, 1), x, grid=grid, activation="relu")
    y = b.add("map", x, grid=B)
    y = b.conv(y, (channels, 1, 3, 3), x, groups=channels, activation="hardswish", **SAME)
    z = b.conv(y, (channels, channels // 4, 3, 3), groups=4, stride=[2, 2], **SAME)
    pooled = b.add("adaptive", z, grid=A, size=[1, 1])
    return b.case((b.conv(pooled, (10, channels, 1, 1), grid=None), "vector"), z, x)


@pytest.mark.parametrize("count", [1, 2])
def test_blocks_on_every_isa(isa, count):
    with testing.threads(count):
        assert_as_defined(residual_network())


def test_tiles_of_another_isa():
    """They are packed anew from the weight."""
    with testing.isa("scalar"):
        case = residual_network(images=1)
    for _ in testing.every_isa():
        assert_as_defined(case)


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_any_program_on_every_isa(case):
    for _ in testing.every_isa():
        for count in (1, 2):
            with testing.threads(count):
                assert_as_defined(case)


@pytest.mark.parametrize("images", [0, 1, 3])
def test_plans_follow_the_batch(images):
    assert_as_defined(residual_network(images))


def test_large_enough_to_share():
    """Every kind of step is divided among threads, and gives the bits of one thread."""
    b = Builder(torch.randn(2, 24, 40, 40), torch.randn(2, 24, 40, 40))
    x = b.add("map", 0, grid=A)
    y = b.add("map", 1, activation="gelu")
    y = b.add("layer_norm", y, grid=B)
    both = b.add("add", x, y, grid=A)
    wide = b.add("concat", both, x, y)
    poolings = [
        b.add("max_pool", wide, kernel=[3, 3], stride=[2, 2], padding=[1, 1]),
        b.add("avg_pool", wide, kernel=[3, 3], stride=[2, 2], padding=[1, 1]),
        b.add("adaptive", wide, size=[1, 1]),
    ]
    framed = b.add("pad", wide, grid=B, around=[1, 2, 3, 4])
    case = b.case(*poolings, framed, b.conv(x, (24, 1, 3, 3), groups=24, **SAME))
    with testing.threads(2):
        assert_as_defined(case)


@pytest.mark.parametrize("grids", [(A, A), (None, None), (A, B), (None, A), (A, None)])
def test_joined_in_place_and_copied(grids):
    """Joins of joins; a value joined twice, one read elsewhere too, and inputs."""
    part, whole = grids
    b = Builder(torch.randn(2, 8, 5, 6), torch.randn(2, 3, 5, 6))
    x = b.add("map", 0, grid=A)
    first = b.conv(x, (20, 8, 3, 3), grid=part, **SAME)
    second = b.conv(x, (12, 8, 1, 1), grid=part)
    inner = b.add("concat", first, second, grid=whole)
    third = b.add("max_pool", first, grid=part, kernel=[3, 3], stride=[1, 1], padding=[1, 1])
    outer = b.add("concat", inner, third, grid=whole)
    again = b.add("concat", third, 1, third, x, grid=whole)
    read = b.conv(b.add("map", outer, grid=A), (4, 52, 3, 3), **SAME)
    pooled = b.add("avg_pool", first, grid=whole, kernel=[2, 2])
    assert_as_defined(b.case(outer, again, read, pooled, inner))


def test_a_join_read_by_a_convolution_in_place():
    """Also where a pixel's bytes are a multiple of 1024, which lie apart."""
    b = Builder(torch.randn(1, 16, 4, 4))
    x = b.add("map", 0, grid=A)
    parts = [b.conv(x, (512, 16, 1, 1)), b.conv(x, (512, 16, 3, 3), **SAME)]
    wide = b.add("concat", *parts, grid=A)
    y = b.conv(wide, (1024, 1024, 1, 1), wide)
    z = b.add("add", y, wide, grid=A)
    assert_as_defined(
        b.case(z, b.add("adaptive", y, size=[2, 2]), b.conv(parts[1], (9, 512, 1, 1)))
    )


@pytest.mark.parametrize("layout", ["planes", "pixels"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("columns", [1, 2, 7])
def test_a_stem_in_its_frame(layout, shared, columns):
    """The input is quantised into the middle of its padding, or copied there where it's read."""
    x = torch.randn(2, 3, 9, 11)
    if layout == "pixels":
        x = x.contiguous(memory_format=torch.channels_last)
    b = Builder(x)
    q = b.add("map", 0, grid=A)
    framed = b.add("pad", q, grid=A, around=[3, 3, 3, 4])
    stem = b.conv(framed, (8, 3 * columns, 7, 1), columns=columns, stride=[2, 2])
    assert_as_defined(b.case(stem, *([q] if shared else [])))


def strided(x):
    """The same numbers with other strides."""
    yield x
    yield x.contiguous(memory_format=torch.channels_last)
    yield x.transpose(2, 3).contiguous().transpose(2, 3)
    yield torch.stack([x, x], -1)[..., 1]
    yield torch.cat([x, x], 1)[:, x.shape[1] :]
    yield torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[:, x.shape[1] :]
    yield torch.cat([x, x], 3)[..., : x.shape[3]]


def test_inputs_of_any_strides():
    """Quantised, read as float32, and both; expanded ones too."""
    x = torch.randn(3, 5, 6, 7)
    b = Builder(x, x[:1])
    q = b.add("map", 0, grid=A)
    y = b.add("mul", 0, 1)
    z = b.add("layer_norm", 1, grid=B)
    case = b.case(q, y, z, 0, 1)
    for same in strided(x):
        assert_as_defined(case, [same, same[:1]])
    one = torch.randn(1, 5, 1, 1).expand(3, 5, 6, 7)
    assert_as_defined(Case(case.program, [], [one, one[:1]]))


@pytest.mark.parametrize("form", ["rows", "vector"])
def test_rows_of_any_strides(form):
    x = torch.randn(6, 14, 20)[::2, ::2, 1:18]
    x = x[:, 0] if form == "vector" else x
    for same in (x, x.contiguous(), x.transpose(0, 1).contiguous().transpose(0, 1)):
        b = Builder(same, forms=[form])
        q = b.add("map", 0, grid=A)
        assert_as_defined(b.case((b.conv(q, (9, 17, 1, 1), grid=None), form), (0, form)))


def test_constants_are_those_of_the_call():
    """Same shapes, other numbers at other or the same addresses."""
    case = residual_network(images=1)
    other = residual_network(images=1)
    for _ in range(2):
        for constants in (case.constants, other.constants):
            assert_as_defined(Case(case.program, constants, case.inputs))
    for now, then in zip(case.constants, other.constants, strict=True):
        if now.shape == then.shape:  # of 2:4 weights the tiles may be longer
            now.copy_(then)
    agrees = all(map(torch.equal, case.constants, other.constants))
    assert agrees
    assert_as_defined(case)


def test_more_plans_than_are_kept():
    case = small_network()
    for _ in range(2):
        for size in range(9, 29):
            assert_as_defined(Case(case.program, case.constants, [torch.randn(1, 3, size, 9)]))


def test_calls_from_several_threads():
    """Of one plan and of several, at the same time."""
    several = [residual_network(1), residual_network(3), small_network()]
    exact = [wanted(case) for case in several]
    start = threading.Barrier(4)

    def work(seed):
        order = random.Random(seed)
        start.wait()
        for _ in range(40):
            n = order.randrange(len(several))
            case = several[n]
            got = _run(case.program.to_json(), case.constants, case.inputs)
            assert all(map(torch.equal, got, exact[n]))
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


# What the op itself refuses, without the checks of Python: it's what a saved module calls.


def message(text, constants=(), inputs=None):
    with pytest.raises(ValueError, match=r"^network: ") as error:
        _run(text, list(constants), [torch.randn(1, 2, 3, 3)] if inputs is None else inputs)
    return str(error.value).splitlines()[0]


def text_of(*instructions, outputs=(), **whole):
    rows = [{"inputs": [0]} | i for i in instructions]
    known = {"version": 1, "inputs": ["image"], "instructions": rows, "outputs": list(outputs)}
    return json.dumps(known | whole)


HEADS = {"op": "attention", "inputs": [0, 0, 0], "heads": 1, "width": 2, "scale": 1}


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "{", "[]", "{}", "null", '"', '{"version"', '{"version":1,}', "[" * 100_000),
        *('{"version":1}{', '{"version":01}', '{"version":1,"version":1}', '{"\\u0061":1}'),
        *('{"version":NaN}', '{"version":1e999}', "\x00", '{"a":"\x01"}', '{"version":-}', "é"),
        json.dumps({str(n): 0 for n in range(100)}),
    ],
)
def test_text_that_is_no_program(text):
    message(text)


@pytest.mark.parametrize(
    "instruction",
    [
        *({"op": "none"}, {"op": 3}, {"op": "map", "inputs": [1]}, {"op": "map", "inputs": [-1]}),
        *({"op": "map", "inputs": []}, {"op": "map", "inputs": [0, 0]}, {"op": "map", "inputs": 0}),
        *({"op": "map", "inputs": [0.0]}, {"op": "map", "inputs": [10**30]}, {"op": "map", "a": 1}),
        *({"op": "map", "activation": "mish"}, {"op": "map", "constants": [0]}),
        *({"op": "map", "constants": [0, 1 << 30]}, {"op": "map", "constants": [0, 1]}),
        *({"op": "map", "grid": g} for g in ([], [1, 0, 0], [1, 0, 0, 0], 3, [1, 0, 0, 256])),
        *({"op": "map", "grid": g} for g in ([0, 0, 0, 9], [-1, 0, 0, 9], [1e300, 0, 0, 9])),
        *({"op": "map", "grid": g} for g in ([1, 3, 4, 9], [1, 10, 4, 9], [1, 0, -1, 9])),
        *({"op": "map", "grid": g} for g in ([1e-60, 0, 0, 9], [1, 0.5, 0, 9], ["1", 0, 0, 9])),
        *({"op": "max_pool"}, {"op": "max_pool", "kernel": [0, 1]}, {"op": "adaptive"}),
        *({"op": "max_pool", "kernel": [2, 2], "stride": [0, 1]}, {"op": "pad"}),
        *({"op": "max_pool", "kernel": [9, 9]}, {"op": "max_pool", "kernel": [1 << 40, 1]}),
        *({"op": "max_pool", "kernel": [2, 2], "padding": [2, 0]}, {"op": "pad", "around": [0]}),
        *({"op": "pad", "around": [1 << 30] * 4}, {"op": "pad", "around": [-1, 0, 0, 0]}),
        *({"op": "adaptive", "size": [1 << 30, 1 << 30]}, {"op": "adaptive", "size": [0, 1]}),
        *({"op": "avg_pool", "kernel": [1, 1], "divisor": -1}, {"op": "layer_norm", "eps": -1}),
        *({"op": "avg_pool", "kernel": [1, 1], "dilation": [1, 1]}, {"op": "concat", "inputs": []}),
        *({"op": "conv", "constants": [0, 0, 0]}, {"op": "add"}, "map", None, 3),
        *(HEADS | wrong for wrong in ({"scale": "1"}, {"heads": 0}, {"heads": 3}, {"width": 9})),
        *(HEADS | wrong for wrong in ({"first": [0, 0]}, {"first": [0, 1, 0]}, {"causal": 1})),
        *(HEADS | wrong for wrong in ({"activation": "relu"}, {"inputs": [0, 0]}, {"eps": 1})),
        {k: v for k, v in HEADS.items() if k != "scale"},
    ],
)
def test_instructions_that_cannot_be(instruction):
    row = instruction if isinstance(instruction, dict) else None
    text = text_of(row) if row else text_of(instructions=[instruction])
    message(text, [torch.ones(3), torch.ones(3)])


@pytest.mark.parametrize(
    "outputs", [3, [0], [[0]], [[1, "image"]], [[0, "vector"]], [[0, "cube"]], [[-1, "image"]]]
)
def test_outputs_that_cannot_be(outputs):
    message(text_of(outputs=outputs) if outputs != 3 else text_of().replace("[]}", "3}"))


@pytest.mark.parametrize("seed", range(300))
def test_damaged_text(seed):
    """Runs, or is refused with a sentence of the op."""
    case = small_network()
    damage = random.Random(seed)
    text = list(case.program.to_json())
    for _ in range(damage.randint(1, 3)):
        at = damage.randrange(len(text))
        text[at : at + damage.choice([0, 1, 1, 5])] = damage.choice(
            ["", "9", "-1", "[", '"', ",", "0"]
        )
    small = [torch.randn(1, 3, 5, 5)]
    try:
        _run("".join(text), case.constants, small)
    except ValueError as error:
        assert re.match(r"network: .+", str(error))


def test_a_window_whose_sum_could_overflow():
    x = torch.zeros(1, 1, 1, 1).expand(1, 1, 2902, 2902)
    b = Builder(x)
    case = b.case(b.add("adaptive", b.add("map", 0, grid=A), size=[1, 1]))
    found = message(case.program.to_json(), [], [x])
    assert "a window must hold at most 8421504 pixels" in found


def wrong_constants(constants):
    weight, tiles, multiplier, bias = constants
    other = ops.int8_tiles(torch.ones(8, 8, 3, 3, dtype=torch.int8))
    yield "tiles must be made by", [weight, other[:-64], multiplier, bias]
    yield "tiles must be made by", [weight, tiles[:40].clone(), multiplier, bias]
    yield "tiles must be made by", [weight, tiles[:0].clone(), multiplier, bias]
    yield "tiles must be made by", [weight, tiles.clone().fill_(7), multiplier, bias]
    yield "tiles must be a contiguous", [weight, tiles.repeat(2)[::2], multiplier, bias]
    yield "weight must be contiguous", [weight.float(), tiles, multiplier, bias]
    yield "weight must be contiguous", [weight.transpose(2, 3), tiles, multiplier, bias]
    yield "weight must have", [weight[:, :2].contiguous(), tiles, multiplier, bias]
    yield "constant 2 must be", [weight, tiles, multiplier[:7], bias]
    yield "constant 3 must be", [weight, tiles, multiplier, torch.ones(1).expand(8)]
    yield "constants must be at least", [weight, tiles]


@pytest.mark.parametrize("number", range(11))
def test_constants_that_do_not_fit(number):
    b = Builder(torch.randn(1, 3, 4, 4))
    x = b.add("map", 0, grid=A)
    case = b.case(b.conv(x, (8, 3, 3, 3)))
    assert_as_defined(case)
    said, constants = list(wrong_constants(case.constants))[number]
    assert said in message(case.program.to_json(), constants, case.inputs)
    assert_as_defined(case)


@pytest.mark.parametrize(
    "x", [torch.ones(1, 2, 3), torch.ones(1, 2, 3, 3).double(), torch.ones(1, 2, 0, 3)]
)
def test_inputs_that_do_not_fit(x):
    message(text_of({"op": "map"}), [], [x])
    message(text_of({"op": "map"}), [], [x, x])
