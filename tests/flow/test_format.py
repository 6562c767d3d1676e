"""docs/format.md is true: its reader, numpy and safetensors only, reads what is saved."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sparseq import (
    NM,
    Layer,
    Plan,
    Quant,
    Unstructured,
    calibrate,
    convert,
    load,
    ops,
    prepare,
    save,
    testing,
)
from sparseq.flow.encodings import decode, encode

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()


@pytest.fixture(scope="module")
def read():
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert "torch" not in re.findall(r"^(?:import|from) (\w+)", code, re.M)
    namespace = {}
    exec(compile(code, "docs/format.md", "exec"), namespace)
    return namespace["read"]


INPUT = Quant(symmetric=False)
LAYERS = {
    "int8": Layer(weight=Quant(axis=0), input=INPUT),
    "int8 2:4": Layer(weight=Quant(axis=0), input=INPUT, sparsity=NM(2, 4)),
    "int4": Layer(weight=Quant(bits=4, axis=0), input=INPUT),
    "int4 2:4": Layer(weight=Quant(bits=4, axis=0), input=INPUT, sparsity=NM(2, 4)),
    "uint8": Layer(weight=Quant(axis=0, signed=False), input=INPUT),
    "uint4": Layer(weight=Quant(bits=4, axis=0, signed=False), input=INPUT),
    "float 2:4": Layer(sparsity=NM(2, 4)),
    "float pruned": Layer(sparsity=Unstructured(0.8)),
}


def network():
    return nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 33))


def fast(name):
    model = prepare(network(), Plan({"*": LAYERS[name]}))
    return convert(calibrate(model, [torch.randn(2, 8, 4, 4)]))


@pytest.mark.parametrize("name", LAYERS)
def test_the_page_is_enough_to_read_a_file(read, tmp_path, name):
    model = fast(name)
    save(model, tmp_path / "model.safetensors")
    found = read(tmp_path / "model.safetensors")
    state = {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    assert found.keys() == state.keys()
    for key, value in state.items():
        got = torch.from_numpy(np.ascontiguousarray(found[key]))
        testing.assert_equal(got + 0, value + 0, message=key)
    again = load(tmp_path / "model.safetensors", network())
    x = torch.randn(3, 8, 4, 4)
    testing.assert_equal(again.eval()(x), model.eval()(x))


def test_the_example_of_the_page():
    numbers = r"\[[\d, ]+\]"
    (row,) = re.findall(rf"The row `({numbers})`", PAGE)
    ((values, indices),) = re.findall(rf"values `({numbers})`, indices .*? `({numbers})`", PAGE)
    weight = torch.tensor([eval(row)], dtype=torch.int8)
    packed = ops.pack_24(weight)
    assert packed[0].tolist() == [eval(values)] and packed[1].tolist() == [eval(indices)]


def weight_24(shape, dtype=torch.int8, zeros=0):
    rank = torch.rand(shape)
    weight = (torch.rand(shape) + 1).to(dtype) * ops.mask_24(rank)
    weight.view(-1)[weight.view(-1).nonzero().flatten()[:zeros]] = 0
    return weight


# (tensor, whether four bits hold it, the encoding that is smallest)
CASES = {
    "dense": (torch.ones(8, 16, dtype=torch.int8), False, "plain"),
    "few elements": (torch.zeros(3, 8, dtype=torch.int8), False, "plain"),
    "int8 2:4": (weight_24((8, 16)), False, "2:4"),
    "taps": (weight_24((8, 16, 3, 3)), False, "2:4"),
    "float32": (weight_24((8, 16), torch.float32), False, "2:4"),
    "float16": (weight_24((8, 16), torch.float16), False, "2:4"),
    "bfloat16": (weight_24((8, 16), torch.bfloat16), False, "2:4"),
    "float64": (weight_24((8, 16), torch.float64), False, "sparse"),
    "uint8": (weight_24((8, 16), torch.uint8), False, "sparse"),
    "with more zeros": (weight_24((8, 16), zeros=9), False, "sparse"),
    "int4 2:4": (weight_24((8, 16), zeros=9), True, "2:4"),
    "int4 dense": (torch.ones(8, 16, dtype=torch.int8), True, "int4"),
    "int4 almost zero": (torch.eye(16, dtype=torch.int8), True, "sparse"),
    "half zeros, not 2:4": (torch.ones(8, 16).triu(8).to(torch.int8), False, "sparse"),
    "3 dimensions": (weight_24((8, 16, 3)), False, "2:4"),
    "short tail": (
        weight_24((30, 9)),
        False,
        "sparse",
    ),  # the 2:4 form fills a tail of one with two
    "empty": (torch.zeros(0, 8), False, "plain"),
    "no columns": (torch.zeros(8, 0), False, "plain"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_smallest_encoding_is_taken(name):
    tensor, int4, wanted = CASES[name]
    parts, entry = encode("w", tensor, int4)
    assert entry["encoding"] == wanted
    testing.assert_equal(decode("w", entry, parts, tensor), tensor)
    size = sum(part.numel() * part.element_size() for part in parts.values())
    assert size <= tensor.numel() * tensor.element_size()


BAD = {
    "positions": (lambda parts, entry: parts["w::indices"].fill_(0), "w: unpack_24: .* ascend"),
    "no indices": (lambda parts, entry: parts.pop("w::indices"), "w::indices"),
    "values cut": (
        lambda parts, entry: parts.update({"w::values": parts["w::values"][:-1]}),
        r"w: the values must be \(8, 8\), got \(7, 8\)",
    ),
    "indices cut": (
        lambda parts, entry: parts.update({"w::indices": parts["w::indices"][:, :-1]}),
        "w: unpack_24: values and indices must be",
    ),
    "another dtype": (
        lambda parts, entry: parts.update({"w::values": parts["w::values"].half()}),
        "w must hold 128 values of int8",
    ),
    "unsigned": (
        lambda parts, entry: parts.update({"w::values": parts["w::values"].view(torch.uint8)}),
        "values must be int8",
    ),
    "bits": (lambda parts, entry: entry.update(bits=4), "packed must be uint8"),
    "other bits": (lambda parts, entry: entry.update(bits=[3]), "bits that are 4 or absent"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_2_4_parts_are_refused(name):
    change, text = BAD[name]
    tensor = weight_24((8, 16))
    parts, entry = encode("w", tensor, False)
    change(parts, entry)
    with pytest.raises((ValueError, TypeError, KeyError), match=text):
        decode("w", entry, parts, tensor)


def test_2_4_needs_rows():
    tensor = torch.zeros(128, dtype=torch.int8)
    entry = {"dtype": "int8", "shape": [128], "encoding": "2:4"}
    parts = {"w::values": tensor[:64], "w::indices": tensor[:16].view(torch.uint8)}
    with pytest.raises(ValueError, match="w: 2:4 must have 2 to 4 dimensions"):
        decode("w", entry, parts, tensor)


def test_files_of_the_first_release_still_load(tmp_path, monkeypatch):
    """They know plain, sparse and int4 only."""
    from sparseq.flow import encodings

    sizes = encodings._sizes
    monkeypatch.setattr(
        encodings, "_sizes", lambda t, int4: {k: v for k, v in sizes(t, int4).items() if k != "2:4"}
    )
    model = fast("int4 2:4")
    save(model, tmp_path / "old.safetensors")
    monkeypatch.undo()
    again = load(tmp_path / "old.safetensors", network())
    for key, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            testing.assert_equal(again.state_dict()[key], value)
