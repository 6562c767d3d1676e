"""Files whose float parts are float16: the numbers, by ONNX Runtime, and what is refused."""

import numpy as np
import onnx
import pytest
import torch
from engine_cases import CASES, edited, exported, needs_rtx
from onnx import TensorProto, numpy_helper

from sparseq import export
from sparseq.export.engine.half import to_half
from sparseq.export.engine.source import Source
from sparseq.export.scratch import session


def outputs(proto, x):
    """What the graph says, without kernels of ONNX Runtime that saturate."""
    return session(proto, optimise=False).run(["output"], {"input": x.numpy()})[0]


@pytest.mark.parametrize("name", ["demo 2:4", "transformer", "mixed"])
def test_the_numbers_are_those_of_float16(name):
    _, path = exported(name)
    before = path.read_bytes()
    proto = onnx.load_model_from_string(to_half(Source(path, "test")))
    assert path.read_bytes() == before
    torch.manual_seed(1)
    x = torch.randn(32, *CASES[name][1][1:])
    wanted, got = outputs(onnx.load(path), x), outputs(proto, x)
    assert got.dtype == np.float32
    size = np.sqrt((wanted**2).mean())
    # float16 moves some values to the next step of their grid; nothing more
    assert 0 < np.sqrt(((got - wanted) ** 2).mean()) < 0.05 * size


def test_integers_stay_and_floats_are_halved():
    _, path = exported("demo 2:4")
    whole, half = (
        onnx.load(path).graph,
        onnx.load_model_from_string(to_half(Source(path, "t"))).graph,
    )
    kinds = {t.name: t.data_type for t in half.initializer}
    assert TensorProto.FLOAT not in kinds.values()
    integers = {t.name: t for t in whole.initializer if t.data_type == TensorProto.INT8}
    stored = {t.name: t for t in half.initializer if t.name in integers}
    assert {name: t.raw_data for name, t in stored.items()} == {
        name: t.raw_data for name, t in integers.items()
    }
    for value in (*half.input, *half.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert [n.op_type for n in half.node].count("Cast") == 2


def changed(name, value):
    """An edit that scales a constant."""

    def edit(graph):
        tensor = next(t for t in graph.graph.initializer if t.name == name)
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((array * value).astype(array.dtype), name))

    return edit


@needs_rtx
def test_what_float16_does_not_hold(tmp_path):
    path = edited("demo", changed("blocks.1.conv1.bias", 1e9), tmp_path)
    with pytest.raises(ValueError, match=r"half: the constant blocks.1.conv1.bias holds .*65504"):
        export.tensorrt(path, tmp_path / "m.engine", half=True, runtime="tensorrt_rtx")
    path = edited("demo", changed("blocks.1.conv1.weight_scale", 1e-5), tmp_path)
    with pytest.raises(ValueError, match=r"half: the scales of layer blocks.1.conv1 .* too small"):
        export.tensorrt(path, tmp_path / "m.engine", half=True, runtime="tensorrt_rtx")
    assert [p.name for p in tmp_path.iterdir()] == ["edited.onnx"]


def test_a_channel_that_batch_norm_switched_off(tmp_path):
    """Its tiny scale becomes float16's smallest number: it adds nothing, and a scale stays > 0."""

    def edit(graph):
        tensor = next(t for t in graph.graph.initializer if t.name == "stem.weight_scale")
        array = numpy_helper.to_array(tensor).copy()
        array[3] = 1e-14
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    proto = onnx.load_model_from_string(to_half(Source(edited("demo", edit, tmp_path), "test")))
    scale = next(t for t in proto.graph.initializer if t.name == "stem.weight_scale")
    assert numpy_helper.to_array(scale)[3] == np.float16(6e-8) > 0


@needs_rtx
def test_an_older_opset(tmp_path):
    _, path = exported("demo")
    proto = onnx.load(path)
    proto.opset_import[0].version = 18
    onnx.save(proto, tmp_path / "old.onnx")
    with pytest.raises(ValueError, match="half needs ONNX opset 19 or newer, and the file has 18"):
        export.tensorrt(
            tmp_path / "old.onnx", tmp_path / "m.engine", half=True, runtime="tensorrt_rtx"
        )
