import copy
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
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
    prepare,
    save,
    testing,
)
from sparseq.flow import storage
from sparseq.flow.prepare import input_quantizers
from sparseq.nn import SparseQuantConv2d, SparseQuantLinear
from sparseq.sparse import masks_of

BOTH = Layer(weight=Quant(axis=0), input=Quant(symmetric=False))
PLANS = {
    "int8": Plan({"*": BOTH}),
    "int4 groups": Plan({"*": Layer(weight=Quant(bits=4, group_size=3)), "0": BOTH}),
    "asymmetric": Plan({"*": Layer(weight=Quant(axis=0, symmetric=False), input=Quant())}),
    "unsigned": Plan({"*": Layer(weight=Quant(axis=0, signed=False), input=Quant())}),
    "sparse": Plan({"*": Layer(weight=Quant(axis=0), input=Quant(), sparsity=NM(2, 4)), "6": None}),
    "learned": Plan(
        {"*": Layer(weight=Quant(learned=True), input=Quant(learned=True, symmetric=False))}
    ),
    "pruned": Plan({"*": Layer(sparsity=Unstructured(0.8))}),
    "partly": Plan({"3": BOTH}),
}


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3),
        nn.BatchNorm2d(12),
        nn.Flatten(),
        nn.Linear(48, 33),
    )


def data():
    return torch.randn(4, 3, 6, 6)


def prepared(name):
    model = network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.weight.data.normal_()
    return calibrate(prepare(model.eval(), PLANS[name]), [data()])


def assert_same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert sorted(a) == sorted(b)
    for name, value in a.items():
        if isinstance(value, torch.Tensor):
            # + 0: the sign of a zero is not stored
            testing.assert_equal(b[name] + 0, value + 0, message=name)
        else:
            assert b[name] == value, name


def saved(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save(model, path)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    return path


def test_float_round_trip(tmp_path):
    model = network().eval()
    again = load(saved(model, tmp_path), network().eval())
    assert_same_state(model, again)


@pytest.mark.parametrize("name", PLANS)
def test_prepared_round_trip(tmp_path, name):
    model = prepared(name)
    other = network().eval()
    again = load(saved(model, tmp_path), other)
    assert again is other
    assert_same_state(model, again)
    x = data()
    testing.assert_equal(again(x), model(x))
    assert [m.spec for m in input_quantizers(again).values()] == [
        m.spec for m in input_quantizers(model).values()
    ]
    assert [m.spec for m, _ in masks_of(again)] == [m.spec for m, _ in masks_of(model)]
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)  # and it trains on
    again.train()(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", PLANS)
def test_converted_round_trip(tmp_path, name):
    fast = convert(prepared(name))
    again = load(saved(fast, tmp_path), network())
    assert_same_state(fast, again)
    x = data()
    testing.assert_equal(again.eval()(x), fast(x))
    assert [type(m) for m in again] == [type(m) for m in fast]


def test_a_converted_model_comes_back_in_eval_mode(tmp_path):
    again = load(saved(convert(prepared("int8")), tmp_path), network().train())
    assert not again.training
    assert isinstance(again[0], SparseQuantConv2d) and isinstance(again[6], SparseQuantLinear)
    assert isinstance(again[1], nn.Identity)


def test_shared_modules_round_trip(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    x = torch.randn(5, 4)
    fast = convert(calibrate(prepare(Shared(), Plan({"*": BOTH})), [x]))
    again = load(saved(fast, tmp_path), Shared())
    assert again.a is again.b
    testing.assert_equal(again(x), fast(x))


def test_a_single_layer_round_trip(tmp_path):
    x = torch.randn(5, 4)
    fast = convert(calibrate(prepare(nn.Linear(4, 3), Plan({"*": BOTH})), [x]))
    again = load(saved(fast, tmp_path), nn.Linear(4, 3))
    testing.assert_equal(again(x), fast(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_round_trip(tmp_path, dtype):
    model = network().to(dtype)
    assert_same_state(model, load(saved(model, tmp_path), network().to(dtype)))


def test_values_that_are_not_finite_and_empty_tensors_round_trip(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("odd", torch.zeros(100))
            self.register_buffer("none", torch.zeros(0, 3))
            self.register_buffer("scalar", torch.tensor(0, dtype=torch.int64))

    model = Odd()
    model.odd[3:6] = torch.tensor([float("nan"), float("inf"), -1e-45])
    model.scalar.fill_(2**40)
    assert_same_state(model, load(saved(model, tmp_path), Odd()))


# --- size ---


def size_of(model, tmp_path):
    return saved(model, tmp_path).stat().st_size


def wide(weight=None, sparsity=None):
    model = nn.Sequential(nn.Linear(512, 512, bias=False))
    input = None if weight is None else Quant()
    model = prepare(model, Plan({"*": Layer(weight=weight, input=input, sparsity=sparsity)}))
    calibrate(model, [torch.randn(4, 512)])
    return convert(model)


@pytest.mark.parametrize(
    ("weight", "sparsity", "bits"),
    [
        (None, None, 32),
        (Quant(axis=0), None, 8),
        (Quant(bits=4, axis=0), None, 4),
        (Quant(axis=0), NM(2, 4), 4 + 1),
        (Quant(axis=0), Unstructured(0.9), 0.8 + 1),
        (None, Unstructured(0.75), 8 + 1),
    ],
)
def test_files_are_compact(tmp_path, weight, sparsity, bits):
    elements = 512 * 512
    size = size_of(wide(weight, sparsity), tmp_path)
    assert size <= elements * bits / 8 * 1.02 + 8000
    assert size >= elements * bits / 8 * 0.9


# --- bad files ---


def assert_refused(path, text="", model=None):
    """ValueError, and the model is as it was: structure, values and mode."""
    model = network().train() if model is None else model
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    names = os.listdir(path.parent)
    with pytest.raises(ValueError, match=f"(?s)^load: .*{text}"):
        load(path, model)
    assert [type(m) for m in model.modules()] == kinds and model.training
    assert list(model.state_dict()) == list(before)
    for name, value in model.state_dict().items():
        testing.assert_equal(value, before[name], message=name)
    assert os.listdir(path.parent) == names


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"load: path must name a file, got .*none"):
        load(tmp_path / "none.safetensors", network())
    with pytest.raises(FileNotFoundError, match="load: path must name a file"):
        load(tmp_path, network())


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 0.3, 0.6, 0.99, -1])
def test_truncated_files_are_refused(tmp_path, keep):
    path = saved(convert(prepared("int8")), tmp_path)
    content = path.read_bytes()
    length = int(keep * len(content)) if isinstance(keep, float) else keep
    path.write_bytes(content[:length])
    assert_refused(path)


def test_any_flipped_bit_is_noticed(tmp_path):
    path = saved(convert(prepared("int8")), tmp_path)
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for position in torch.randint(len(content), (150,), generator=generator).tolist():
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        if flipped[position] in b" " and content[position] in b" ":
            continue
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"^load: "):
            load(path, network())


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 64, b"\xff" * 64, b"PK\x03\x04" * 40])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert_refused(path)


def test_a_safetensors_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(network().state_dict(), path)
    assert_refused(path, "missing 'sparseq'")


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(3, 4)),
        nn.Sequential(*[*network()[:6], nn.Linear(48, 34)]),
        nn.Sequential(*network(), nn.Linear(33, 2)),
        nn.Sequential(*network()[:6]),
        nn.Sequential(nn.Linear(3, 8), *network()[1:]),
    ],
)
@pytest.mark.parametrize("kind", ["float", "prepared", "converted"])
def test_another_model_is_refused(tmp_path, model, kind):
    source = {
        "float": network,
        "prepared": lambda: prepared("int8"),
        "converted": lambda: convert(prepared("int8")),
    }[kind]()
    assert_refused(saved(source, tmp_path), "does not fit this model", copy.deepcopy(model).train())


@pytest.mark.parametrize("source", [network, lambda: prepared("int8")])
def test_a_model_of_another_dtype_is_refused(tmp_path, source):
    text = "must be float16 .* got float32"
    assert_refused(saved(source(), tmp_path), text, network().half().train())


def rewrite(path, change):
    """Change the header of a file as an attacker could: with a checksum that matches."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sparseq"])
        parts = {name: file.get_tensor(name) for name in file.keys()}
    changed = change(header, parts)
    header = header if changed is None else changed
    text = header if isinstance(header, str) else json.dumps(header)
    digest = storage._digest(text, parts)
    save_file(parts, path, metadata={"sparseq": text, "sparseq_sha256": digest})


def test_rewrite_alone_is_harmless(tmp_path):
    path = saved(convert(prepared("int8")), tmp_path)
    rewrite(path, lambda header, parts: None)
    load(path, network())


def setter(*keys, to):
    def change(header, parts):
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = to

    return change


def remover(*keys):
    def change(header, parts):
        for key in keys[:-1]:
            header = header[key]
        del header[keys[-1]]

    return change


HOSTILE = {
    "another version": (setter("version", to=2), "version must be 1, got 2"),
    "no version": (remover("version"), "missing 'version'"),
    "not json": (lambda header, parts: "{", ""),
    "a list": (lambda header, parts: [], ""),
    "null": (lambda header, parts: "null", ""),
    "deep": (lambda header, parts: "[" * 100000, ""),
    "no tensors": (remover("tensors"), "missing"),
    "tensors a list": (setter("tensors", to=[]), ""),
    "a tensor less": (remover("tensors", "6.weight_values"), "missing '6.weight_values'"),
    "a tensor more": (
        setter("tensors", "9.weight", to={"dtype": "float32", "shape": [1], "encoding": "plain"}),
        "no 9.weight",
    ),
    "another shape": (
        setter("tensors", "6.bias", "shape", to=[10**12]),
        r"6.bias must be float32 \[33\]",
    ),
    "another dtype": (setter("tensors", "6.bias", "dtype", to="int64"), "6.bias must be float32"),
    "unknown encoding": (setter("tensors", "6.bias", "encoding", to="pickle"), "got 'pickle'"),
    "encoding without parts": (setter("tensors", "6.bias", "encoding", to="sparse"), "missing"),
    "int4 without parts": (setter("tensors", "6.bias", "encoding", to="int4"), "missing"),
    "entry a string": (setter("tensors", "6.bias", to="plain"), ""),
    "integer a list": (setter("integer", to=["0"]), ""),
    "integer of no layer": (
        lambda header, parts: header["integer"].update({"1": header["integer"]["0"]}),
        "missing '1'",
    ),
    "integer path": (setter("integer", "../../etc", to={}), "missing"),
    "bad bits": (setter("integer", "0", "weight", "bits", to=64), "bits must be"),
    "unknown field": (setter("integer", "0", "weight", "depth", to=3), "depth"),
    "no static": (remover("integer", "0", "static"), "missing 'static'"),
    "input a number": (setter("integer", "0", "input", to=5), ""),
    "identity of nothing": (setter("identities", to=["1", "4", "99"]), "99"),
    "identity of a method": (setter("identities", to=["1", "4", "forward"]), "forward"),
    "identity of a class": (setter("identities", to=["1", "4", "__class__"]), ""),
    "identities a number": (setter("identities", to=7), ""),
    "biased nothing": (setter("biased", to=["nothing"]), "missing 'nothing'"),
    "prepared nothing": (setter("prepared", "nothing", to={}), "missing 'nothing'"),
    "prepared a number": (setter("prepared", "0", to=3), ""),
    "states": (setter("states", "9._extra_state", to={}), ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused(tmp_path, name):
    change, text = HOSTILE[name]
    path = saved(convert(prepared("int8")), tmp_path)
    rewrite(path, change)
    assert_refused(path, text)


def test_hostile_parts_are_refused(tmp_path):
    def longer(header, parts):
        parts["6.bias"] = torch.zeros(34)

    def other_dtype(header, parts):
        parts["6.bias"] = torch.zeros(33, dtype=torch.int32)

    for change in (longer, other_dtype):
        path = saved(convert(prepared("int8")), tmp_path)
        rewrite(path, change)
        assert_refused(path, "6.bias must hold 33 values of float32")


@pytest.mark.parametrize("what", ["values", "bitmap", "bits"])
def test_hostile_sparse_parts_are_refused(tmp_path, what):
    def change(header, parts):
        name = (
            "6.parametrizations.weight.original"
            if "6.weight" not in header["tensors"]
            else "6.weight"
        )
        assert header["tensors"][name]["encoding"] == "sparse"
        if what == "values":
            parts[f"{name}::values"] = parts[f"{name}::values"][:-1].clone()
        elif what == "bitmap":
            parts[f"{name}::bitmap"] = parts[f"{name}::bitmap"][:-1].clone()
        else:
            parts[f"{name}::bitmap"] = parts[f"{name}::bitmap"] | 255

    path = saved(convert(prepared("pruned")), tmp_path)
    rewrite(path, change)
    assert_refused(path, "6.weight: the bitmap must")


def test_a_failing_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = saved(network(), tmp_path)
    before = path.read_bytes()
    import safetensors.torch

    def fails(tensors, name, metadata):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        save(network(), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.safetensors"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere.* does not exist"):
        save(network(), tmp_path / "nowhere" / "model.safetensors")
