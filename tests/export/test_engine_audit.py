"""The audit of an engine: what it reads, and that it is not fooled."""

import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
from engine_cases import LAYER, build, edited, exported, needs_rtx
from onnx import TensorProto, numpy_helper

from sparseq import export
from sparseq.export.engine.audit import audited_plan
from sparseq.export.engine.plan import read_plan
from sparseq.export.engine.source import Source
from sparseq.export.view import quantised_layers

pytestmark = needs_rtx


def test_the_plan_says_what_the_weights_are(tmp_path):
    """The structure that the audit relies on, looked at by itself."""
    _, path = exported("demo")
    _, engine = build(path, tmp_path)
    (graph,) = read_plan(engine.read_bytes())
    products = [o for o in graph.operations if o.kind in ("corrltn", "fully_connected")]
    assert len(products) == 16
    assert all(operation.chosen_on_device for operation in products)
    assert products[1].layers[0] == "blocks.0.conv1.product"
    tensor = graph.tensors[products[1].inputs[1]]
    assert (tensor.dtype, tensor.dims) == ("int8", (32, 32, 3, 3))
    assert tensor.bytes == 32 * 32 * 9


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return build(exported("demo 2:4")[1], tmp_path_factory.mktemp("engine"))[1]


class TestTheAuditIsNotFooled:
    def problems(self, data, name="demo 2:4"):
        return audited_plan(data, Source(exported(name)[1], "test")).problems()

    def test_by_the_engine_of_another_model(self, engine):
        """The same network with other weights: types and names are right, no integer is."""
        problems = self.problems(engine.read_bytes(), "demo")
        assert len(problems) == 16
        assert set(problems.values()) == {"the weight in the engine is not the file's"}

    def test_by_one_flipped_bit(self, engine):
        data = bytearray(engine.read_bytes())
        model, _ = exported("demo 2:4")
        weight = quantised_layers(model)[LAYER].weight_values.permute(0, 2, 3, 1).numpy()
        at = data.find(np.ascontiguousarray(weight).tobytes())
        data[at + 1000] ^= 1
        assert self.problems(bytes(data)) == {LAYER: "the weight in the engine is not the file's"}

    def test_by_integers_that_stand_elsewhere(self, engine):
        """The weight is in the file, but not where the layer's operation reads it."""
        data = bytearray(engine.read_bytes())
        model, _ = exported("demo 2:4")
        weight = quantised_layers(model)[LAYER].weight_values.permute(0, 2, 3, 1).numpy()
        raw = np.ascontiguousarray(weight).tobytes()
        at = data.find(raw)
        data[at : at + len(raw)] = bytes(len(raw))
        assert self.problems(bytes(raw + data)).keys() == {LAYER}

    def test_by_a_type(self, engine):
        """The operand's type is read from the operation that computes the layer."""
        data = engine.read_bytes()
        graph = read_plan(data)[0]
        operation = next(o for o in graph.operations if o.name == f"{LAYER}.product")
        name = re.escape(operation.inputs[0].encode())
        pattern = rb'(name="' + name + rb'"[^\n]*type=)int8'
        changed, count = re.subn(pattern, rb"\1half", data)
        assert count == 1
        assert self.problems(changed).keys() == {LAYER}

    def test_by_a_layer_that_is_not_there(self, engine):
        changed = engine.read_bytes().replace(
            b'corrltn={ name="blocks.1.conv1.product"', b'corrltn={ name="blocks.1.conv1.producX"'
        )
        assert self.problems(changed) == {LAYER: "the engine has no operation of its name"}

    def test_by_two_operations_of_one_name(self, engine):
        """Every operation that a layer's node is in counts, not the last one."""
        names = [f'corrltn={{ name="blocks.{n}.conv1.product"'.encode() for n in (3, 1)]
        assert self.problems(engine.read_bytes().replace(*names)) == {
            LAYER: "the weight in the engine is not the file's",
            "blocks.3.conv1": "the engine has no operation of its name",
        }

    @pytest.mark.parametrize("length", [0, 100, 6000, 60000])
    def test_by_half_a_file(self, engine, length, tmp_path):
        (tmp_path / "m.engine").write_bytes(engine.read_bytes()[:length])
        with pytest.raises(ValueError, match="audit: "):
            export.audit(tmp_path / "m.engine", exported("demo 2:4")[1])

    def test_by_a_lost_end(self, engine):
        assert self.problems(engine.read_bytes()[:-100_000])

    def test_by_metadata_that_are_gone(self, engine, tmp_path):
        """Without them no layer is known to be float on purpose: all are held to integers."""
        proto = onnx.load(edited("mixed", lambda graph: None, tmp_path))
        del proto.metadata_props[:]
        onnx.save(proto, tmp_path / "bare.onnx")
        with pytest.raises(export.EngineAuditError, match="runs on float") as caught:
            build(tmp_path / "bare.onnx", tmp_path)
        assert len(caught.value.audit.problems()) == 2


def polygraphy_finds(path, folder):
    """The weights that polygraphy takes for 2:4, by layer; it knows float weights only."""
    proto = onnx.load(path)
    stored = {}
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
            stored[tensor.name] = None
    for node in list(proto.graph.node):
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            for reader in proto.graph.node:
                for index, name in enumerate(reader.input):
                    if name == node.output[0]:
                        reader.input[index] = node.input[0]
            proto.graph.node.remove(node)
    onnx.save(proto, folder / "float.onnx")
    run = "from polygraphy.tools import main; main()"
    command = [sys.executable, "-c", run, "inspect", "sparsity", folder / "float.onnx"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Finished checking" in said  # it exits with 0 in any case
    found = re.findall(r"Found sparse tensor: (\S+)\.weight_values", said)
    checked = int(re.search(r"Checking the sparsity pattern of (\d+)", said).group(1))
    return set(found), checked


@pytest.mark.parametrize("name", ["demo", "demo 2:4", "mobilenet 2:4", "transformer 2:4"])
def test_polygraphy_finds_the_same_weights_24(name, tmp_path):
    pytest.importorskip("polygraphy")
    _, path = exported(name)
    mine = {layer.name for layer in Source(path, "test").layers() if layer.is_24}
    theirs, checked = polygraphy_finds(path, tmp_path)
    assert theirs == mine
    assert checked >= len(mine)
    assert bool(mine) == name.endswith("2:4")


def test_one_changed_weight_is_no_longer_24(tmp_path):
    pytest.importorskip("polygraphy")

    def edit(graph):
        values = graph.value(f"{LAYER}.weight_values").copy()
        values[5, 8:12, 1, 1] = 7
        tensor = next(t for t in graph.graph.initializer if t.name == f"{LAYER}.weight_values")
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    path = edited("demo 2:4", edit, tmp_path)
    mine = {layer.name for layer in Source(path, "test").layers() if layer.is_24}
    assert LAYER not in mine
    assert polygraphy_finds(path, tmp_path)[0] == mine
    table, _ = build(path, tmp_path, sparse=True)
    assert [row.name for row in table.layers if not row.sparse] == ["stem", LAYER]
