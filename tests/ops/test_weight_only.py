import ctypes
import mmap

import pytest
import torch

from sparseq import ops, reference, testing

nan, inf = float("nan"), float("inf")
SIZES = [(k, (1, 70, 8, 13, 3, 24)[i % 6]) for i, k in enumerate((*range(1, 300, 7), 300))]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
BATCHES = [(), (0,), (1,), (2,), (5,), (16,), (33,), (2, 3)]


def divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]


def int4(outputs, columns, groups=1, signed=True, zero=False, bias=True):
    """Arguments of int4_linear after x."""
    low = -8 if signed else 0
    q = torch.randint(low, low + 16, (outputs, columns))
    packed = ops.pack_int4(q.to(torch.int8 if signed else torch.uint8))
    if columns % 2:
        packed[:, -1] |= 0xF0  # the last high nibble belongs to nobody
    scale = torch.rand(outputs, groups) + 0.01
    shape = (outputs, groups)
    zero_point = torch.randint(low, low + 16, shape, dtype=torch.int32) if zero else None
    return packed, scale, zero_point, torch.randn(outputs) if bias else None, signed


def sparse(outputs, columns, bias=True):
    """Arguments of linear_24 after x, in canonical form."""
    groups = (columns + 3) // 4
    pairs = torch.tensor([a | b << 2 for a in range(4) for b in range(a + 1, 4)])
    nibbles = pairs[torch.randint(6, (outputs, groups + groups % 2))]
    if groups % 2:
        nibbles[:, -1] = 0
    indices = (nibbles[:, ::2] | nibbles[:, 1::2] << 4).to(torch.uint8)
    values = torch.randn(outputs, 2 * groups)
    return values, indices, torch.randn(outputs) if bias else None


def dense(values, indices, columns):
    """The weight that values and indices stand for, one group after the other."""
    outputs, kept = values.shape
    weight = values.new_zeros(outputs, 2 * kept)
    for n in range(outputs):
        for i in range(kept):
            position = int(indices[n, i // 4]) >> (2 * (i % 4)) & 3
            weight[n, i // 2 * 4 + position] += values[n, i]
    return weight[:, :columns]


def assert_close(y, x, weight, bias):
    """Within the error of a sum whose longest chain is one lane's, a sixteenth of K rounded up.

    A chain of n roundings is off by at most n * 2^-24 of the sum of magnitudes; ends are padded to
    128 columns, the lanes are added in 4 steps, and the bias in one.
    """
    x, weight = x.double(), weight.double()
    exact, size = x @ weight.T, x.abs() @ weight.abs().T
    if bias is not None:
        exact, size = exact + bias, size + bias.abs()
    chain = (x.shape[-1] + 127) // 128 * 8 + 6
    bound = chain * 2**-24 * size + 1e-37
    if y.dtype != torch.float32:
        bound = bound * 1.01 + exact.abs() * torch.finfo(y.dtype).eps / 2 + 2**-25
    assert y.shape == exact.shape
    assert ((y.double() - exact).abs() <= bound).all()


def every_isa(function, x, arguments):
    """What all ISAs give, bit for bit."""
    results = [(name, function(x, *arguments)) for name in testing.every_isa()]
    for name, y in results[1:]:
        testing.assert_equal(y, results[0][1], message=name)
    return results[0][1]


@pytest.mark.parametrize(("columns", "outputs"), SIZES)
def test_int4(columns, outputs):
    for index, groups in enumerate(divisors(columns)):
        signed, zero, bias = index % 2 == 0, index % 3 > 0, index % 4 > 0
        arguments = int4(outputs, columns, groups, signed, zero, bias)
        packed, scale, zero_point, bias, _ = arguments
        q = ops.unpack_int4(packed, columns, signed)
        weight = ops.dequantize(q, scale, zero_point, group_size=columns // groups)
        x = torch.randn(*BATCHES[(columns + index) % len(BATCHES)], columns)
        for given in map(x.to, FLOATS):
            y = every_isa(ops.int4_linear, given, arguments)
            assert y.dtype == given.dtype
            assert_close(y, given, weight, bias)


@pytest.mark.parametrize("size", [1, 4, 8, 12, 16, 24, 32, 64, 96, 128, 256, 768])
@pytest.mark.parametrize("zero", [False, True])
def test_int4_group_sizes(size, zero):
    columns = 768
    arguments = int4(19, columns, columns // size, not zero, zero)
    packed, scale, zero_point, bias, signed = arguments
    q = ops.unpack_int4(packed, columns, signed)
    weight = ops.dequantize(q, scale, zero_point, group_size=size)
    for rows in (1, 2, 3, 4, 7):
        x = torch.randn(rows, columns)
        assert_close(every_isa(ops.int4_linear, x, arguments), x, weight, bias)


@pytest.mark.parametrize(("columns", "outputs"), SIZES)
def test_sparse(columns, outputs):
    arguments = sparse(outputs, columns, columns % 2 == 0)
    values, indices, bias = arguments
    for index, batch in enumerate(((1,), BATCHES[columns % len(BATCHES)])):
        x = torch.randn(*batch, columns)
        for number, dtype in enumerate(FLOATS):
            given, kept = x.to(dtype), values.to(FLOATS[(number + index + columns) % 3])
            y = every_isa(ops.linear_24, given, (kept, indices, bias))
            assert y.dtype == dtype
            assert_close(y, given, dense(kept, indices, columns), bias)


@pytest.mark.parametrize("values_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_pair_of_types(isa, dtype, values_dtype):
    """A 16-bit type is widened, exactly: as if x and values had been float32."""
    values, indices, bias = sparse(9, 77)
    values, x = values.to(values_dtype), torch.randn(5, 77).to(dtype)
    wide = ops.linear_24(x.float(), values.float(), indices, bias)
    testing.assert_equal(ops.linear_24(x, values, indices, bias), wide.to(dtype))
    tiles = ops.tiles_24(values, indices, 77)  # none on a CPU, and no difference
    assert tiles.shape == (0,)
    testing.assert_equal(ops.linear_24(x, values, indices, bias, tiles), wide.to(dtype))


def test_half_weights_only(isa):
    """Likewise for INT4."""
    for columns, groups in ((77, 7), (256, 4), (128, 8)):
        arguments, x = int4(5, columns, groups, zero=True), torch.randn(3, columns).half()
        wide = ops.int4_linear(x.float(), *arguments)
        testing.assert_equal(ops.int4_linear(x, *arguments), wide.half())


def test_sparse_takes_any_byte():
    """The same position twice, or descending: summed all the same, within the group."""
    for columns in (1, 3, 4, 30, 64, 131):
        groups = (columns + 3) // 4
        values = torch.randn(9, 2 * groups)
        indices = torch.randint(256, (9, (groups + 1) // 2), dtype=torch.uint8)
        for rows in (1, 3, 6):
            x = torch.randn(rows, columns)
            y = every_isa(ops.linear_24, x, (values, indices))
            weight = dense(values.double(), indices, columns)
            torch.testing.assert_close(y, (x.double() @ weight.T).float(), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(y, reference.linear_24(x, values, indices, None))


@pytest.mark.parametrize("op", ["int4_linear", "linear_24"])
@pytest.mark.parametrize(
    ("rows", "columns", "outputs"), [(0, 9, 3), (2, 9, 0), (2, 0, 3), (0, 0, 0)]
)
def test_empty(isa, op, rows, columns, outputs):
    arguments = int4(outputs, columns) if op == "int4_linear" else sparse(outputs, columns)
    y = getattr(ops, op)(torch.randn(rows, columns), *arguments)
    wanted = getattr(reference, op)(torch.randn(rows, columns), *arguments)
    assert y.shape == (rows, outputs)
    if columns == 0:
        testing.assert_equal(y, wanted)
    else:
        assert y.numel() == 0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("op", ["int4_linear", "linear_24"])
def test_layouts(isa, op, dtype):
    """x and every weight, however they lie in memory."""
    arguments = int4(11, 96, 3, zero=True) if op == "int4_linear" else sparse(11, 96)
    function = getattr(ops, op)
    x = torch.randn(2, 3, 96).to(dtype)
    wanted = function(x, *arguments)
    for name, arranged in testing.layouts(x):
        if name != "expanded":
            y = function(arranged, *arguments)
            testing.assert_equal(y, wanted, message=name)
            assert y.is_contiguous()
    for index, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor):
            for name, arranged in testing.layouts(argument):
                if name != "expanded":
                    given = [*arguments[:index], arranged, *arguments[index + 1 :]]
                    testing.assert_equal(function(x, *given), wanted, message=f"{index} {name}")


@pytest.mark.parametrize("op", ["int4_linear", "linear_24"])
def test_rows_and_threads_change_nothing(isa, op):
    """A row's result is its own, bit for bit, alone or among others, on any number of threads."""
    columns, outputs = (1100, 203) if isa != "scalar" else (300, 203)
    arguments = int4(outputs, columns, 1) if op == "int4_linear" else sparse(outputs, columns)
    function, x = getattr(ops, op), torch.randn(33, columns)
    wanted = torch.cat([function(row, *arguments) for row in x.split(1)])
    for count in (1, 2, 7):
        with testing.threads(count):
            for rows in (1, 2, 3, 5, 16, 33):
                testing.assert_equal(function(x[:rows], *arguments), wanted[:rows])


def test_more_rows_than_fit_the_cache(isa):
    """Panels of x: see kPanel."""
    x = torch.randn(75, 4100)
    arguments = int4(3, 4100, 41, zero=True)
    y = ops.int4_linear(x, *arguments)
    testing.assert_equal(y, torch.cat([ops.int4_linear(row, *arguments) for row in x.split(9)]))
    torch.testing.assert_close(y, reference.int4_linear(x, *arguments), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("op", ["int4_linear", "linear_24"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values_that_are_not_finite(isa, op, dtype):
    """Each in a row of its own, at several columns, the ends among them; 1e38 is inf in float16."""
    for columns in (5, 64, 130):
        x = torch.randn(20, columns).to(dtype)
        for row in range(20):
            x[row, (row * 7) % columns if row else columns - 1] = (nan, inf, -inf, 1e38)[row % 4]
        if op == "int4_linear":
            arguments = int4(6, columns, zero=True)
            arguments[1].mul_(0.1)
        else:
            arguments = sparse(6, columns)
            arguments[0].clamp_(-2, 2)
        y, wanted = (getattr(m, op)(x, *arguments) for m in (ops, reference))
        torch.testing.assert_close(
            y, wanted, rtol=1e-4 if dtype == torch.float32 else 1e-2, atol=1e-3, equal_nan=True
        )


def test_scales_that_are_not_finite(isa):
    """They spoil their own groups and nothing else; what lies past the end is no group's."""
    x = torch.rand(3, 40) + 1
    packed = torch.full((4, 20), 0x11, dtype=torch.uint8)
    for value in (inf, -inf, nan):
        scale = torch.ones(4, 5)
        scale[1, 0] = scale[2, 4] = value
        y = ops.int4_linear(x, packed, scale)
        assert y[:, [0, 3]].isfinite().all()
        testing.assert_equal(y[:, 1:3], torch.full((3, 2), value))
        alone = ops.int4_linear(x[:, :5], packed[:, :3], torch.full((4, 1), value))
        testing.assert_equal(alone, torch.full((3, 4), value))


def test_weights_are_those_of_the_definition(isa):
    """Bit for bit, huge zero points and tiny scales included."""
    packed = torch.arange(256, dtype=torch.uint8).reshape(8, 32)
    q = ops.unpack_int4(packed, 64)
    for groups in (1, 2, 4, 8, 64):
        scale = torch.rand(8, groups) * torch.tensor([1e-42, 1e-30, 1e-3, 1.0] * 2)[:, None]
        zero = torch.randint(-(2**31), 2**31 - 1, (8, groups), dtype=torch.int32)
        size = 64 // groups
        weight = q - zero.float().repeat_interleave(size, 1)
        weight = weight * scale.repeat_interleave(size, 1)
        assert torch.equal(ops.int4_linear(torch.eye(64), packed, scale, zero), weight.T)


def at_the_end_of_a_page(tensor):
    """The same values in front of memory that must not be read."""
    size = tensor.numel() * tensor.element_size()
    page = mmap.PAGESIZE
    length = (size + page - 1) // page * page
    memory = mmap.mmap(-1, length + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + length), ctypes.c_size_t(page), 0) == 0
    count = tensor.numel()
    flat = torch.frombuffer(memory, dtype=tensor.dtype, offset=length - size, count=count)
    return flat.view(tensor.shape).copy_(tensor)


@pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="needs mprotect")
@pytest.mark.parametrize("columns", [1, 5, 31, 32, 33, 96, 127, 128, 160, 200, 259])
def test_nothing_is_read_past_the_end(isa, columns):
    for rows, outputs in ((1, 9), (5, 3)):
        x = at_the_end_of_a_page(torch.randn(rows, columns))
        for groups in {1, columns // 32 if columns % 32 == 0 else 1, columns}:
            arguments = int4(outputs, columns, groups, zero=True)
            guarded = [at_the_end_of_a_page(t) for t in arguments[:4]]
            wanted = ops.int4_linear(x.clone(), *arguments)
            testing.assert_equal(ops.int4_linear(x, *guarded), wanted)
        values, indices, bias = sparse(outputs, columns)
        indices.fill_(255)
        guarded = [at_the_end_of_a_page(t) for t in (values, indices, bias)]
        wanted = ops.linear_24(x.clone(), values, indices, bias)
        testing.assert_equal(ops.linear_24(x, *guarded), wanted)


def test_compiled():
    def both(x, four, two):
        return ops.int4_linear(x * 2, *four) + ops.linear_24(x + 1, *two)

    x, four, two = torch.randn(3, 40), int4(5, 40, 5, zero=True), sparse(5, 40)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    testing.assert_equal(compiled(x, four, two), both(x, four, two))
