"""Files that are truncated, altered or made to harm: always ValueError, and nothing has changed."""

import copy
import json
import os
import random
import struct
import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sparseq import Layer, Plan, Quant, calibrate, convert, load, prepare, save, testing
from sparseq.flow import storage

BOTH = Layer(weight=Quant(axis=0), input=Quant(symmetric=False))


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 9)
    )


def prepared():
    torch.manual_seed(0)
    return calibrate(prepare(network().eval(), Plan({"*": BOTH})), [torch.randn(4, 3, 4, 4)])


KINDS = {"prepared": prepared, "converted": lambda: convert(prepared())}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    for kind, build in KINDS.items():
        save(build(), folder / kind)
    return {kind: (folder / kind).read_bytes() for kind in KINDS}


@pytest.fixture(scope="module")
def target():
    """A model to load into, and what it must still be afterwards."""
    model = network().train()
    return model, copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]


def refused(path, content, target):
    """Whether `load` raised ValueError; the model must be as it was in any case of refusal."""
    model, state, types = target
    path.write_bytes(content)
    try:
        load(path, copy.deepcopy(model))
    except ValueError as error:
        assert str(error).startswith("load: ")
    else:
        return False
    with pytest.raises(ValueError, match=r"^load: "):
        load(path, model)
    assert [type(m) for m in model.modules()] == types and model.training
    for name, value in model.state_dict().items():
        testing.assert_equal(value, state[name], message=name)
    return True


def split(content):
    """Header and data of a safetensors file."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@kinds
def test_sound_files_load(kind, files, target, tmp_path):
    assert not refused(tmp_path / "f", files[kind], target)
    assert not refused(tmp_path / "f", joined(*split(files[kind])), target)


@kinds
def test_truncation_at_every_boundary(kind, files, target, tmp_path):
    content = files[kind]
    header, data = split(content)
    start = len(content) - len(data)
    ends = {0, 1, 7, 8, 9, start - 1, start, len(content) - 1}
    for name, entry in header.items():
        if name != "__metadata__":
            for offset in entry["data_offsets"]:
                ends |= {start + offset - 1, start + offset, start + offset + 1}
    for end in sorted(e for e in ends if 0 <= e < len(content)):
        assert refused(tmp_path / "f", content[:end], target), end
    assert refused(tmp_path / "f", content + b"\0", target)


@kinds
def test_flipped_bits(kind, files, target, tmp_path):
    """Everywhere: length, header, our JSON in it, tensors. The checksum sees what parses."""
    content = files[kind]
    header = len(content) - len(split(content)[1])
    rng = random.Random(0)
    places = [*range(0, 8), *rng.sample(range(8, header), 120)]
    places += rng.sample(range(header, len(content)), 60)
    accepted = []
    for place in places:
        altered = bytearray(content)
        altered[place] ^= 1 << rng.randrange(8)
        if not refused(tmp_path / "f", bytes(altered), target):
            accepted.append(place)
    # a space of the padding may become another blank, and only that
    assert all(content[place : place + 1] == b" " for place in accepted)


@kinds
def test_random_bytes_and_lengths(kind, files, target, tmp_path):
    rng, content = random.Random(1), files[kind]
    for length in (0, 1, 2**20, 2**31, 2**63 - 1, 2**64 - 1):
        assert refused(tmp_path / "f", struct.pack("<Q", length) + content[8:], target), length
    for size in (8, 9, 64, 4096):
        assert refused(tmp_path / "f", rng.randbytes(size), target)


def edit_first(change):
    def edit(header):
        name = next(name for name in header if name != "__metadata__")
        change(header, name)

    return edit


OUTER = {
    "huge shape": lambda h, n: h[n].update(shape=[2**40, 2**20]),
    "overflowing shape": lambda h, n: h[n].update(shape=[2**63, 2]),
    "negative shape": lambda h, n: h[n].update(shape=[-1]),
    "negative offset": lambda h, n: h[n].update(data_offsets=[-4, 0]),
    "backward offsets": lambda h, n: h[n].update(data_offsets=h[n]["data_offsets"][::-1]),
    "far offsets": lambda h, n: h[n].update(data_offsets=[2**40, 2**40 + 4]),
    "offsets a string": lambda h, n: h[n].update(data_offsets="0,4"),
    "dtype of pickles": lambda h, n: h[n].update(dtype="O"),
    "dtype narrower": lambda h, n: h[n].update(dtype="U8"),
    "no dtype": lambda h, n: h[n].pop("dtype"),
    "entry a list": lambda h, n: h.update({n: []}),
    "metadata a list": lambda h, n: h.update(__metadata__=[]),
    "metadata a number": lambda h, n: h["__metadata__"].update(sparseq=1),
    "no metadata": lambda h, n: h.pop("__metadata__"),
    "no checksum": lambda h, n: h["__metadata__"].pop("sparseq_sha256"),
    "no header of ours": lambda h, n: h["__metadata__"].pop("sparseq"),
}


@kinds
@pytest.mark.parametrize("name", OUTER)
def test_altered_outer_headers(kind, name, files, target, tmp_path):
    header, data = split(files[kind])
    edit_first(OUTER[name])(header)
    assert refused(tmp_path / "f", joined(header, data), target)


def test_overlapping_tensors(files, target, tmp_path):
    header, data = split(files["converted"])
    names = [n for n in header if n != "__metadata__"]
    a, b = header[names[0]], header[names[1]]
    for offsets in (a["data_offsets"], [a["data_offsets"][0], b["data_offsets"][1]]):
        altered = copy.deepcopy(header)
        altered[names[1]]["data_offsets"] = offsets
        assert refused(tmp_path / "f", joined(altered, data), target)


def test_deep_nesting_and_duplicate_names(files, target, tmp_path):
    header, data = split(files["converted"])
    text = json.dumps(header).encode()
    assert refused(tmp_path / "f", joined(b"[" * 100000, data), target)
    assert refused(tmp_path / "f", joined(text[:-1] + b',"x":' + b"[" * 5000 + b"}", data), target)
    first = next(n for n in header if n != "__metadata__")
    entry = json.dumps({**header[first], "shape": [1]})
    doubled = text[:-1] + f',"{first}":{entry}}}'.encode()
    assert refused(tmp_path / "f", joined(doubled, data), target)


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_in_disguise_runs_nothing(target, tmp_path):
    trace = tmp_path / "ran"
    file = tmp_path / "model.safetensors"
    for legacy in (False, True):
        torch.save({"0.weight": Trap(str(trace))}, file, _use_new_zipfile_serialization=not legacy)
        assert refused(file, file.read_bytes(), target)
    assert not trace.exists()


def test_refusal_takes_no_memory(files, target, tmp_path):
    header, data = split(files["converted"])
    edit_first(OUTER["huge shape"])(header)
    path = tmp_path / "f"
    path.write_bytes(joined(header, data))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"^load: "):
        load(path, copy.deepcopy(target[0]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


# --- with a checksum that fits: what an attacker makes ---


def rewritten(path, content, change):
    """The file with its own header and parts changed, and a checksum of them."""
    path.write_bytes(content)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sparseq"])
        parts = {name: file.get_tensor(name).clone() for name in file.keys()}
    changed = change(header, parts)
    text = changed if isinstance(changed, str) else json.dumps(header)
    digest = storage._digest(text, parts)
    save_file(parts, path, metadata={"sparseq": text, "sparseq_sha256": digest})
    return path.read_bytes()


WRONG = [None, True, 3, -1, 1.5, "x", [], {}, [[]], {"a": []}, 10**30, "os.system"]


def places(value, path=()):
    """Every place in the header that holds a value."""
    yield path
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def put(header, path, value):
    for key in path[:-1]:
        header = header[key]
    header[path[-1]] = value


def at(header, path):
    for key in path:
        header = header[key]
    return header


@kinds
def test_wrong_types_everywhere(kind, files, target, tmp_path):
    """Each value of the header becomes one of another type."""
    path, rng = tmp_path / "f", random.Random(2)
    path.write_bytes(files[kind])
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sparseq"])
    accepted = []
    for place in list(places(header))[1:]:
        own = at(header, place)
        others = [w for w in WRONG if type(w) is not type(own)]
        for value in rng.sample(others, 1):
            content = rewritten(path, files[kind], lambda h, p, v=value, w=place: put(h, w, v))
            if not refused(path, content, target):
                accepted.append((place, own, value))
    # fields that may be null, or a whole number where a real one goes
    free = {"rows", "axis", "group_size", "percentile", "input", "learned", "observer"}
    assert not [a for a in accepted if not (free & set(a[0]))], accepted


def setter(*keys, to):
    return lambda header, parts: put(header, keys, to)


def part(name, change):
    def edit(header, parts):
        parts[name] = change(parts[name])

    return edit


CONVERTED = {
    "a layer becomes nothing": setter("identities", to=["0"]),
    "the root becomes nothing": setter("identities", to=[""]),
    "rows of no call": setter("integer", "0", "rows", to=0),
    "rows without end": setter("integer", "0", "rows", to=2**62),
    "a flag a string": setter("integer", "0", "bias", to="yes"),
    "an axis elsewhere": setter("integer", "0", "weight", "axis", to=1),
    "groups": setter("integer", "4", "weight", "group_size", to=10**9),
    "another kind": setter("integer", "0", "kind", to="Linear"),
    "a foreign module": setter("integer", "os.path", to={}),
    "a version that is true": setter("version", to=True),
    "a dtype of no floats": setter("floats", to={"4": "int8"}),
    "a dtype that is code": setter("floats", to={"4": "os.system"}),
    "floats a list": setter("floats", to=["4"]),
    "a foreign state": setter("states", "4._extra_state", to={}),
    "a tensor as a state": setter("states", "0.weight_values", to=[1]),
    "weights out of range": part("0.weight_values", lambda t: torch.full_like(t, -128)),
    "an infinite scale": part("0.weight_scale", lambda t: torch.full_like(t, torch.inf)),
    "a negative scale": part("0.weight_scale", lambda t: -t),
    "a scale that is NaN": part("0.input_scale", lambda t: torch.full_like(t, torch.nan)),
    "a scale of zero": part("0.input_scale", torch.zeros_like),
    "a zero point far off": part("0.input_zero_point", lambda t: torch.full_like(t, 2**30)),
}
PREPARED = {
    "an observed scale of zero": part("0.input_quantizer.scale", torch.zeros_like),
    "a zero point far off": part("4.input_quantizer.zero_point", lambda t: t + 10**6),
    "a state of strings": setter(
        "states", "0.input_quantizer._extra_state", to={"calibrated": "y"}
    ),
    "a state that is a list": setter("states", "0.input_quantizer._extra_state", to=[]),
    "a spec of another type": setter("prepared", "0", "weight", "type", to="NM"),
    "a spec of no type": setter("prepared", "0", "weight", "type", to="os.system"),
    "bits without end": setter("prepared", "0", "weight", "bits", to=10**30),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_attacks_on_converted_files(name, files, target, tmp_path):
    content = rewritten(tmp_path / "f", files["converted"], CONVERTED[name])
    assert refused(tmp_path / "f", content, target)


@pytest.mark.parametrize("name", PREPARED)
def test_attacks_on_prepared_files(name, files, target, tmp_path):
    content = rewritten(tmp_path / "f", files["prepared"], PREPARED[name])
    assert refused(tmp_path / "f", content, target)


def test_our_own_duplicates_and_constants(files, target, tmp_path):
    def doubled(header, parts):
        return json.dumps(header)[:-1] + ', "version": 1}'

    def not_finite(header, parts):
        header["integer"]["0"]["weight"]["percentile"] = float("nan")

    for change in (doubled, not_finite, lambda h, p: "[" * 100000, lambda h, p: '{"a":' * 90000):
        content = rewritten(tmp_path / "f", files["converted"], change)
        assert refused(tmp_path / "f", content, target)
