"""Which kernel a layer runs on: by a table, whatever is in it."""

import json
import math

import pytest
import sparseq._C as core
import torch
from torch import nn

from sparseq import NM, Layer, Plan, Quant, calibrate, convert, explain, load, prepare, save
from sparseq.choice import KERNELS, SHIPPED, VERSION, Choice, Work, choose, table, user_table
from sparseq.flow import tune
from sparseq.nn import SparseQuantConv2d, SparseQuantLinear


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Puts a table of `[rows, inputs, outputs, taps, groups, us...]` in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def put(*rows, isas=("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "scalar"), version=VERSION):
        path = user_table()
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"version": version, "isas": {isa: rows for isa in isas}}))
        choose.cache_clear()

    yield put
    choose.cache_clear()


def linear(inputs=64, outputs=64):
    layer = nn.Linear(inputs, outputs)
    layer.weight.data[:, ::2] = 0  # 2:4
    return layer


def test_the_fastest_wins_and_the_reason_has_the_figures(measured):
    measured(
        [1, 64, 64, 1, 1, 9.0, 12.0, 30.0],
        [128, 64, 64, 1, 1, 30.0, 20.0, 60.0],
        [4096, 64, 64, 1, 1, 500.0, 400.0, 200.0],
    )
    at = {rows: choose(Work(rows, 64, 64), True) for rows in (1, 100, 9999)}
    assert at[1] == Choice("int8", "dense: 2:4 measured 0.75x at 1x64->64")
    assert at[100] == Choice("int8 2:4", "2:4 measured 1.50x dense at 128x64->64")
    assert at[9999] == Choice("float32", "float32 measured 2.00x int8 2:4 at 4096x64->64")
    assert choose(Work(100, 64, 64), False) == Choice(
        "int8", "float32 measured 0.50x at 128x64->64"
    )
    # a few per cent are noise: the smaller weight stays
    measured([1, 64, 64, 1, 1, 10.0, 10.4, 9.9])
    assert choose(Work(1, 64, 64), True).kernel == "int8 2:4"


def test_the_nearest_shape_counts(measured):
    measured([16, 64, 64, 1, 1, 1.0, 9.0, 9.0], [16, 64, 64, 9, 1, 9.0, 1.0, 9.0])
    assert choose(Work(16, 300, 64), True).kernel == "int8"
    assert choose(Work(16, 300, 64, taps=25), True).kernel == "int8 2:4"
    assert str(Work(784, 64, 32, 9, 2)) == "784x9x64->32 in 2 groups"


@pytest.mark.parametrize("spoil", ["", "{}", "[]", '{"version": 1, "isas": {"avx2": [[1]]}}'])
def test_a_table_that_cannot_be_read_is_passed_over(measured, spoil):
    measured([1, 1, 1, 1, 1, 1.0, 1.0, 1.0])
    assert len(table("avx2")) == 1
    user_table().write_text(spoil)
    assert table("avx2") == {
        Work(*row[:5]): dict(zip(KERNELS, row[5:], strict=True))
        for row in json.loads(SHIPPED.read_text())["isas"]["avx2"]
    }
    measured([1, 1, 1, 1, 1, 1.0, 1.0, 1.0], version=VERSION + 1)
    assert len(table("avx2")) > 1


def test_what_nobody_measured_says_so():
    assert choose(Work(8, 64, 64), True, "scalar") == Choice("int8 2:4", "not measured on scalar")
    assert choose(Work(8, 64, 64), True, "avx512") == choose(Work(8, 64, 64), True, "avx2")


def test_the_shipped_table_is_sound():
    for isa in ("avx2", "avx_vnni", "avx512_vnni", "amx_int8"):
        rows = table(isa)
        assert set(rows) == set(tune.works())
        assert all(math.isfinite(t) and t > 0 for times in rows.values() for t in times.values())


def test_convert_chooses_for_the_rows_of_its_example(measured):
    measured([1, 64, 64, 1, 1, 9.0, 20.0, 90.0], [256, 64, 64, 1, 1, 30.0, 20.0, 90.0])
    plan = Plan({"*": Layer(weight=Quant(axis=0), input=Quant(), sparsity=NM(2, 4))})
    model = prepare(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), plan)
    calibrate(model, [torch.randn(8, 64)])
    few, many = convert(model, torch.randn(1, 64)), convert(model, torch.randn(300, 64))
    assert [m.kernel for m in (few[0], few[2], many[0])] == ["int8", "int8", "int8 2:4"]
    assert "dense: 2:4 measured 0.45x at 1x64->64" in explain(few).rows[0].note
    x = torch.randn(5, 64)
    assert torch.equal(few(x), many(x))  # a choice never changes the integers
    assert convert(model)[0].kernel == "int8 2:4" and convert(model)[0].rows is None


def test_the_choice_is_made_again_where_a_file_is_loaded(measured, tmp_path):
    measured([1, 64, 64, 1, 1, 9.0, 20.0, 90.0])
    plan = Plan({"*": Layer(weight=Quant(axis=0), input=Quant(), sparsity=NM(2, 4))})
    model = prepare(nn.Sequential(nn.Linear(64, 64)), plan)
    calibrate(model, [torch.randn(8, 64)])
    fast = convert(model, torch.randn(3, 64))
    save(fast, tmp_path / "m.safetensors")
    measured([1, 64, 64, 1, 1, 20.0, 9.0, 90.0])
    loaded = load(tmp_path / "m.safetensors", nn.Sequential(nn.Linear(64, 64)))
    assert (fast[0].kernel, loaded[0].kernel, loaded[0].rows) == ("int8", "int8 2:4", 3)
    assert torch.equal(fast(torch.ones(2, 64)), loaded(torch.ones(2, 64)))


def test_every_kernel_gives_the_same_numbers():
    grid = {"scale": torch.tensor([0.03]), "zero_point": torch.tensor([5], dtype=torch.int32)}
    conv = nn.Conv2d(8, 8, 3, padding=1)
    conv.weight.data[:, ::2] = 0
    for layer, x in (
        (SparseQuantLinear.from_float(linear(), **grid), torch.randn(7, 64)),
        (SparseQuantConv2d.from_float(conv, **grid), torch.randn(2, 8, 5, 5)),
    ):
        results = {}
        for kernel in KERNELS:
            layer.use(kernel)
            assert layer.kernel == kernel and layer.choice.reason == "asked for"
            results[kernel] = layer(x)
        assert torch.equal(results["int8"], results["int8 2:4"])
        torch.testing.assert_close(results["float32"], results["int8"])
        assert not {"tiles", "float_weight"} & layer.state_dict().keys()


def test_a_kernel_that_a_layer_lacks_is_refused():
    layer = SparseQuantLinear.from_float(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="weight must hold at most 2 non-zeros in every 4"):
        layer.use("int8 2:4")
    with pytest.raises(ValueError, match="use: kernel must be one that this layer has, got 'int4'"):
        layer.use("int4")
    assert layer.kernel == "int8"


def test_int4_weights_alone_run_packed_while_rows_are_few():
    for spec in (Quant(bits=4, axis=0), Quant(bits=4, axis=0, symmetric=False, group_size=16)):
        layer = SparseQuantLinear.from_float(nn.Linear(64, 20), weight=spec, input=None)
        assert layer.kernel == "int4" and layer.tiles.numel() == 64 * 20 // 2
        assert "up to 128 rows from packed int4" in layer.choice.reason
        weight = layer.packed().dequantize()
        for x in (torch.randn(3, 64), torch.randn(200, 64), torch.randn(2, 3, 64).bfloat16()):
            wanted = nn.functional.linear(x.float(), weight, layer.bias).to(x.dtype)
            got = layer(x)
            assert got.dtype == x.dtype
            torch.testing.assert_close(got, wanted)
    grid = SparseQuantLinear.from_float(
        nn.Linear(64, 20), weight=Quant(bits=4, axis=0, group_size=16), scale=torch.tensor([0.1])
    )
    x = torch.randn(3, 64)
    rounded = (x / 0.1).round().clamp(-128, 127) * 0.1
    wanted = nn.functional.linear(rounded, grid.packed().dequantize(), grid.bias)
    assert grid.kernel == "int4"
    torch.testing.assert_close(grid(x), wanted)


def test_tune_measures_and_writes_a_table(monkeypatch, tmp_path):
    works = [Work(4, 16, 16), Work(16, 8, 8, taps=9), Work(16, 1, 1, taps=9, groups=8)]
    monkeypatch.setattr(tune, "works", lambda: works)
    path = tmp_path / "new" / "kernels.json"
    isa, threads = core.isa(), torch.get_num_threads()
    assert len(list(tune.tune(path))) == tune.steps()
    assert (core.isa(), torch.get_num_threads()) == (isa, threads)
    content = json.loads(path.read_text())
    assert content["version"] == VERSION
    for rows in content["isas"].values():
        assert [Work(*row[:5]) for row in rows] == works
        assert all(t > 0 for row in rows for t in row[5:])
    content["isas"] = {"another": [[1, 1, 1, 1, 1, 1.0, 1.0, 1.0]]}
    path.write_text(json.dumps(content))
    list(tune.tune(path))  # keeps what other machines measured
    assert "another" in json.loads(path.read_text())["isas"]
