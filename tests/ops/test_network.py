"""The op of programs: equal to its definition, traced, and exported."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from network_cases import Case, cases, small_network

from sparseq import ops, reference
from sparseq.flow.macs import count_macs
from sparseq.program import OPS, Grid, Instruction, Program

slow = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def order(x):
    """Strides, of what has any."""
    sized = zip(x.stride(), x.shape, strict=True) if x.numel() else ()
    return [s for s, n in sized if n > 1]


def assert_equal(got, wanted):
    for y, exact in zip(got, wanted, strict=True):
        assert order(y) == order(exact)
        torch.testing.assert_close(y, exact, rtol=0, atol=0, equal_nan=True)


def assert_as_defined(case):
    wanted = reference.network(case.program.to_json(), case.constants, case.inputs)
    assert_equal(ops.network(*case), wanted)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.usefixtures("isa")
def test_each_instruction(op):
    @slow
    @given(cases(op))
    def check(case):
        assert_as_defined(case)

    check()


@pytest.mark.usefixtures("isa")
def test_any_program():
    @slow
    @given(cases())
    def check(case):
        assert_as_defined(case)

    check()


@pytest.mark.parametrize("channels", [1, 7, 8, 16, 24, 33, 64, 100])
@pytest.mark.parametrize("grid", [None, Grid(0.0625, 90)])
@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
@pytest.mark.usefixtures("isa")
def test_windows_of_every_size(op, grid, channels):
    """Each block of channels over odd and even numbers of pixels."""
    sizes = [[h, w] for h in (1, 2, 3) for w in (1, 2, 3, 4, 5, 7)]
    pools = [Instruction(op, (1,), None, (), {"kernel": kernel}) for kernel in sizes]
    outputs = tuple((2 + n, "pixels") for n in range(len(pools)))
    program = Program(("pixels",), (Instruction("map", (0,), grid), *pools), outputs)
    assert_as_defined(Case(program, [], [torch.randn(1, 4, 8, channels) * 3]))


@pytest.mark.parametrize("shape", [(3, 17, 4, 5), (1, 17, 4, 5), (3, 17, 1, 1), (1, 17, 1, 1)])
@pytest.mark.parametrize("grids", [*itertools.product([None, Grid(0.0625, 90)], repeat=3)])
@pytest.mark.parametrize("op", ["add", "mul"])
def test_the_second_is_repeated(op, grids, shape):
    """In images or pixels or both, whatever the three of them are stored as."""
    x, y, result = grids
    instructions = (
        Instruction("map", (0,), x),
        Instruction("map", (1,), y),
        Instruction(op, (2, 3), result, (), {"activation": "hardswish"}),
    )
    program = Program(("image", "image"), instructions, ((4, "image"),))
    assert_as_defined(Case(program, [], [torch.randn(3, 17, 4, 5) * 3, torch.randn(shape)]))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("queries", "keys", "heads", "depth"),
    [(130, 130, 2, 32), (1, 70, 3, 8), (65, 5, 1, 13), (17, 33, 2, 1), (64, 64, 1, 40)],
)
@pytest.mark.usefixtures("isa")
def test_attention_of_several_blocks(queries, keys, heads, depth, causal):
    """More queries than a block has, with tails; infinity and NaN stay where they may reach."""
    width = heads * depth
    q, k, v = (torch.randn(2, n, width + 3) for n in (queries, keys, keys))
    v[1, keys // 2, 1] = torch.inf
    k[0, keys - 1, 2] = torch.nan
    attributes = {"heads": heads, "width": width, "scale": depth**-0.5, "causal": causal}
    made = Instruction("attention", (0, 1, 2), None, (), {**attributes, "first": [0, 1, 3]})
    on_grid = Instruction("map", (3,), Grid(0.0625, 90))
    program = Program(("rows",) * 3, (made, on_grid), ((3, "rows"), (4, "rows")))
    assert_as_defined(Case(program, [], [q, k, v]))


def test_text_and_object_are_one():
    case = small_network()
    text = ops.network(case.program.to_json(), case.constants, case.inputs)
    assert_equal(ops.network(*case), text)


def test_results_are_new_tensors():
    """Also those that are inputs, or one value twice."""
    x = torch.randn(1, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    program = Program(("image",), (), ((0, "image"), (0, "image")))
    first, second = ops.network(program, [], [x])
    assert torch.equal(first, x) and torch.equal(second, x)
    assert len({t.data_ptr() for t in (x, first, second)}) == 3


def test_no_gradient_and_no_warning():
    case = small_network()
    case.inputs[0].requires_grad_()
    assert not any(y.requires_grad for y in ops.network(*case))


@settings(slow, max_examples=20)
@given(cases())
def test_opcheck(case):
    """The fake kernel tells shapes and strides; with symbolic sizes too."""
    arguments = (case.program.to_json(), case.constants, case.inputs)
    tests = ["test_schema", "test_faketensor", "test_autograd_registration"]
    torch.library.opcheck(torch.ops.sparseq.network.default, arguments, test_utils=tests)


def test_opcheck_of_a_network():
    case = small_network()
    arguments = (case.program.to_json(), case.constants, case.inputs)
    torch.library.opcheck(torch.ops.sparseq.network.default, arguments)


class Runner(torch.nn.Module):
    def __init__(self, case):
        super().__init__()
        self.text = case.program.to_json()
        self.constants = torch.nn.ParameterList(
            torch.nn.Parameter(c, requires_grad=False) for c in case.constants
        )

    def forward(self, x):
        scores, features = ops.network(self.text, list(self.constants), [x * 2])
        return scores + 1, features


def test_compiled_as_eager():
    case = small_network()
    model = Runner(case).eval()
    compiled = torch.compile(model, fullgraph=True)
    for batch in (2, 5):  # the second with a symbolic size
        x = torch.randn(batch, 3, 9, 11)
        assert_equal(compiled(x), model(x))


def test_exported_with_a_dynamic_batch():
    case = small_network()
    model = Runner(case).eval()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    exported = torch.export.export(model, (case.inputs[0],), dynamic_shapes=(batch,))
    for n in (1, 2, 7):
        x = torch.randn(n, 3, 9, 11)
        assert_equal(exported.module()(x), model(x))


def test_multiplications():
    """`N H' W' O I kh kw` of each convolution."""
    case = small_network()
    model = Runner(case)
    counted = count_macs(lambda: model(case.inputs[0]), model)
    assert counted == 2 * (5 * 6 * 8 * 27 + 5 * 6 * 8 * 72 + 5 * 8)
    attributes = {"heads": 2, "width": 6, "scale": 1.0}
    attention = Instruction("attention", (0, 1, 1), None, (), attributes)
    text = Program(("rows", "rows"), (attention,), ((2, "rows"),)).to_json()
    q, k = torch.randn(2, 5, 6), torch.randn(2, 7, 6)
    assert count_macs(lambda: ops.network(text, [], [q, k]), model) == 2 * 2 * 5 * 7 * 6
