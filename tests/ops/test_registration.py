"""Every op is complete: definition, kernels, fake kernel, tests, benchmark, export."""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from network_cases import small_network

from sparseq import ops, reference
from sparseq.export.translate import NOT_EXPORTED, translations

ROOT = Path(__file__).parents[2]
raw = torch.ops.sparseq
SCHEMAS = {
    schema.name.removeprefix("sparseq::"): schema
    for schema in torch._C._jit_get_all_schemas()
    if schema.name.startswith("sparseq::")
}

torch.manual_seed(0)  # conftest's seed comes with a test, after this module's tensors
x = torch.linspace(-4, 4, 48).reshape(2, 4, 6)
image = x.reshape(2, 4, 3, 2).contiguous(memory_format=torch.channels_last)
q = torch.arange(48, dtype=torch.int8).reshape(2, 4, 6)
u = q.to(torch.uint8)
one, each, groups = torch.tensor(0.1), torch.rand(4) + 0.1, torch.rand(2, 4, 2) + 0.1
zero, zeros = torch.tensor(3, dtype=torch.int32), torch.tensor([0, 1, -2, 3], dtype=torch.int32)
scales = torch.rand(5) + 0.1
weight = torch.arange(30, dtype=torch.int8).reshape(5, 6)
taps = torch.arange(40, dtype=torch.int8).reshape(5, 2, 2, 2)
pixels = torch.arange(144, dtype=torch.int32).to(torch.int8).reshape(2, 4, 3, 6)
nibbles, fine = raw.pack_int4(weight), torch.rand(5, 3) * 3
kept, positions = torch.rand(5, 4), torch.tensor([[0x94], [0xE4], [0xD8], [0x4C], [0xEE]])
positions, halves = positions.to(torch.uint8), x.bfloat16()
halved = weight * (torch.arange(6) % 2).to(torch.int8)  # 2:4
halved_taps = taps * torch.tensor([0, 1], dtype=torch.int8).reshape(2, 1, 1)


def leaf(value):
    return value.clone().requires_grad_()


program, constants, (picture,) = small_network()


# Argument sets for opcheck, at least one an op; those with a leaf() check autograd too. A dict at
# the end holds keyword arguments.
ROWS = {
    "quantize": [
        (x, one, None, -127, 127, None, None),
        (x, each, zeros, -128, 127, 1, None),
        (x.half(), groups, None, 0, 15, -1, 3),
        (image.bfloat16(), each, zeros.float(), -8, 7, 1, None),
        (leaf(x), one, zero, -128, 127, None, None),
        (x.transpose(0, 2), torch.rand(6) + 0.1, None, -127, 127, 0, None),
        (x[:0], one, None, -127, 127, None, None),
    ],
    "dequantize": [
        (q, one, None, None, None, torch.float32),
        (q, each, zeros, 1, None, torch.float16),
        (u, groups, None, -1, 3, torch.bfloat16),
        (q.transpose(0, 2), one, zero, None, None, torch.float32),
    ],
    "fake_quantize": [
        (x, one, None, -127, 127, None, None, 1.0),
        (leaf(x), one, zero, -128, 127, None, None, 1.0),
        (leaf(x), leaf(one), None, -127, 127, None, None, 0.1),
        (x, leaf(one), leaf(torch.tensor(0.4)), -128, 127, None, None, 0.1),
        (leaf(x), leaf(each), leaf(zeros.float()), -8, 7, 1, None, 0.1),
        (leaf(x), leaf(groups), None, -7, 7, None, 3, 1.0),
        (leaf(image.half()), each, zeros, -128, 127, 1, None, 1.0),
        (leaf(x).transpose(0, 2), one, None, -127, 127, None, None, 1.0),
    ],
    "fake_quantize_observed": [
        (x, one, None, -127, 127, None, None, 1.0),
        (leaf(x), one, zero, -128, 127, None, None, 1.0),
        (leaf(x), leaf(each), leaf(zeros.float()), -8, 7, 1, None, 0.1),
        (leaf(x).bfloat16(), groups, None, -7, 7, -1, 3, 1.0),
        (leaf(image), one, None, -127, 127, None, None, 1.0),
    ],
    "fake_quantize_backward": [
        (x, x, one, None, -127, 127, None, None),
        (x.transpose(0, 2), x.transpose(0, 2), one, zero, -128, 127, None, None),
        (x, x, groups, None, -7, 7, -1, 3),
    ],
    "fake_quantize_learned_backward": [
        (x, x, one, None, -127, 127, None, None, 1.0),
        (x.half(), x.half(), each, zeros.float(), -128, 127, 1, None, 0.1),
        (x, x, groups, None, -7, 7, -1, 3, 0.1),
    ],
    "minmax": [
        (x, None, None),
        (x.half(), 1, None),
        (image, -3, None),
        (x, None, 3),
        (x, 0, 12),
        (x, -3, 12),
    ],
    "histogram": [
        (x, torch.tensor(4.0), 8, None, None),
        (leaf(x).half(), torch.tensor([0.5, 1, 2, 4]), 64, 1, None),
        (image, torch.tensor([8.0, 1, 2, 4]), 16, -3, None),
        (x, torch.ones(2, 4, 2), 4, None, 3),
        (x.transpose(0, 2)[:0], torch.ones(1), 2, None, None),
    ],
    "pack_int4": [(q,), (u[..., :5],), (q.transpose(0, 2),)],
    "unpack_int4": [(u, 12, True), (u, 11, False), (u.transpose(0, 2), 4, True)],
    "int8_linear": [
        (q, weight, scales, None, None, None),
        (u[0], weight, scales, zero.reshape(1), torch.ones(5, dtype=torch.int32), scales),
        (u, weight, scales, zero.reshape(1), None, scales, raw.int8_tiles(weight, 1)),
        (leaf(x), weight, scales, None, None, None, {"x_max": 15, "activation": "relu6"}),
        (
            *(x.bfloat16(), weight, scales, None, torch.ones(5, dtype=torch.int32), scales),
            {"x_scale": one, "residual": torch.randn(2, 4, 5), "dtype": torch.float32},
        ),
        (
            *(x.half(), weight, scales, None, None, scales),
            {"residual": torch.randn(2, 4, 5).half(), "activation": "relu"},
        ),
        (
            *(x[:, :, :6].transpose(0, 1), weight, scales, zero.reshape(1), None, None),
            {"x_scale": one, "x_min": 0, "dtype": torch.int8, "y_scale": one, "y_max": 7},
        ),
    ],
    "int8_conv2d": [
        (pixels, taps[:4], scales[:4], None, None, None, [1, 1], [0, 0], [1, 1], 2),
        (
            pixels[:, :2].contiguous(memory_format=torch.channels_last),
            taps,
            scales,
            zero.reshape(1),
            torch.ones(5, dtype=torch.int32),
            scales,
            [2, 1],
            [1, 2],
            [1, 2],
            1,
        ),
        (
            pixels,
            taps[:4],
            scales[:4],
            None,
            None,
            None,
            [1, 1],
            [0, 0],
            [1, 1],
            2,
            raw.int8_tiles(taps[:4], 2),
        ),
        (
            *(leaf(image), taps[:4], scales[:4], zero.reshape(1), None, scales[:4]),
            *([1, 1], [1, 1], [1, 1], 2),
            {"x_scale": one, "activation": "hardswish", "dtype": torch.bfloat16},
        ),
        (
            *(image.half(), taps[:4], scales[:4], zero.reshape(1), None, scales[:4]),
            *([1, 1], [1, 1], [1, 1], 2),
            {"x_scale": one},
        ),
        (
            *(pixels, taps[:4], scales[:4], None, None, None, [1, 1], [0, 0], [1, 1], 2),
            {"residual": pixels[:, :, :2, :5], "residual_scale": one, "dtype": torch.uint8}
            | {"y_scale": one, "y_min": 0, "y_max": 255, "y_zero": zero.reshape(1)},
        ),
    ],
    "int4_linear": [
        (x, nibbles, fine, None, None),
        (halves, nibbles, fine, fine.int(), scales),
        (x.transpose(0, 1), nibbles, fine[:, :1], None, scales, False),
        (x.half(), nibbles, fine, fine.int(), scales),
    ],
    "linear_24": [
        (x, kept, positions, None),
        (halves[0], kept, positions, scales),
        (x.transpose(0, 1)[:0], kept, positions, scales),
        (x.half(), kept.half(), positions, scales, raw.tiles_24(kept.half(), positions, 6)),
        (halves, kept.bfloat16(), positions, None),
    ],
    "tiles_24": [(kept, positions, 6), (kept.half(), positions, 6)],
    "int8_tiles": [(weight, 1), (taps[:4], 2), (taps[:4, :1], 4), (halved, 1, "dense")],
    "network": [
        (program.to_json(), constants, [picture]),
        (program.to_json(), constants, [leaf(picture)]),
        (program.to_json(), constants, [picture[:0]]),
    ],
    "mask_24": [(x,), (image.half(),), (x.transpose(0, 2).bfloat16(),), (x[:0],)],
    "pack_24": [
        (halved,),
        (halved.T.contiguous().T.half(),),
        (halved_taps,),
        (halved_taps.float(),),
    ],
    "unpack_24": [(*raw.pack_24(halved), 6), (*raw.pack_24(halved_taps.float()), 2)],
}


def split(row):
    return (row[:-1], row[-1]) if isinstance(row[-1], dict) else (row, {})


# What these give is for one machine's kernels to read: it has no definition in plain torch, and the
# products made with it are compared with theirs in test_gemm.py and tests/cuda.
OF_THE_MACHINE = {"int8_tiles", "tiles_24"}
DEFINED = [name for name in SCHEMAS if name not in OF_THE_MACHINE]


def test_there_are_ops():
    assert len(SCHEMAS) >= 10


@pytest.mark.parametrize("name", DEFINED)
def test_reference_takes_the_same_arguments(name):
    function = getattr(reference, name)
    assert [a.name for a in SCHEMAS[name].arguments] == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", DEFINED)
def test_rows_agree_with_the_reference(name):
    for row in ROWS[name]:
        arguments, keywords = split(row)
        with torch.no_grad():
            got = getattr(raw, name)(*arguments, **keywords)
            wanted = getattr(reference, name)(*arguments, **keywords)
        got, wanted = (v if isinstance(v, (tuple, list)) else (v,) for v in (got, wanted))
        for value, exact in zip(got, wanted, strict=True):
            assert value.shape == exact.shape and value.dtype == exact.dtype
            # float sums and the reference's double ones may round to neighbours of 8 or 11 bits
            ulp = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
            torch.testing.assert_close(value, exact, rtol=max(1e-5, ulp), atol=1e-5)


@pytest.mark.parametrize("name", SCHEMAS)
def test_kernels_are_listed(name):
    assert "CPU" in ops.kernels()[name]
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"sparseq::{name}", "Meta")


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # opcheck's own look at inputs
@pytest.mark.parametrize(
    ("name", "index"), [(name, i) for name in SCHEMAS for i in range(len(ROWS.get(name, [0])))]
)
def test_opcheck(name, index):
    torch.library.opcheck(getattr(raw, name).default, *split(ROWS[name][index]))


def test_opcheck_covers_autograd():
    """fake_quantize is the op with a gradient; its rows ask for those of x, scale, zero_point."""
    asked = {
        tuple(isinstance(a, torch.Tensor) and a.requires_grad for a in row[:3])
        for row in ROWS["fake_quantize"]
    }
    assert {
        (True, False, False),
        (True, True, False),
        (False, True, True),
        (True, True, True),
    } <= asked


def test_public_ops_are_documented():
    public = {name for name in SCHEMAS if not name.endswith("_backward")}
    assert public | {"empty_cache", "kernels", "tile_kind"} == set(ops.__all__)
    for name in public:
        text = inspect.getdoc(getattr(ops, name))
        assert "Args:" in text and "Returns:" in text and "Raises:" in text, name


def test_every_op_has_a_benchmark():
    """Read, not run: the files build large tensors when imported."""
    entries = {}
    for file in ("ops.py", "product_rows.py"):
        tree = ast.parse((ROOT / "benchmarks" / file).read_text())
        (rows,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "rows")
        (table,) = (n.value for n in rows.body if isinstance(n, ast.Return))
        assert isinstance(table, ast.Dict)
        entries |= {key.value: value for key, value in zip(table.keys, table.values, strict=True)}
    assert set(entries) == set(SCHEMAS)
    assert all(len(value.elts) > 0 for value in entries.values())


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_every_op_is_exported_or_says_why_not(target):
    pytest.importorskip("onnxscript")
    exported = {op._schema.name.partition("::")[2] for op in translations(target)}
    assert exported | set(NOT_EXPORTED) == set(SCHEMAS)
    assert not exported & set(NOT_EXPORTED)
