import copy
import hashlib
import re

import pytest
import torch
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Quant, load, save
from sparseq.flow import mapped

needs_proc = pytest.mark.skipif(not mapped.MAPS.exists(), reason="needs Linux's /proc")
WIDTH = 512  # weights of several pages
INT8 = Layer(weight=Quant(axis=0), input=Quant(symmetric=False))
SPARSE = Layer(weight=Quant(axis=0), input=Quant(symmetric=False), sparsity=NM(2, 4))


def network():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


def batch():
    return torch.randn(3, WIDTH)


def converted(layer=INT8):
    model = sparseq.calibrate(sparseq.prepare(network().eval(), Plan({"*": layer})), [batch()])
    return sparseq.convert(model, batch())


def in_file(path, tensor):
    begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    return any(lo <= begin and end <= hi for lo, hi in mapped._mapped_ranges(path.stat()))


def resident(path):
    """Bytes of the file's mappings that are in memory."""
    total, inside = 0, False
    for line in mapped.MAPS.with_name("smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@needs_proc
def test_large_tensors_stay_in_the_file(tmp_path):
    path, model, x = tmp_path / "model.safetensors", network(), batch()
    save(model, path)
    again, copied = load(path, network()), load(path, network(), mmap=False)
    assert in_file(path, again[0].weight) and not in_file(path, again[0].bias)
    assert not in_file(path, copied[0].weight)
    assert torch.equal(again(x), model(x)) and torch.equal(copied(x), model(x))


@needs_proc
@pytest.mark.parametrize("layer", [INT8, SPARSE], ids=["dense", "2:4"])
def test_weights_that_run_on_tiles_leave_memory_and_can_come_back(tmp_path, layer):
    path, model, x = tmp_path / "model.safetensors", converted(layer), batch()
    save(model, path, compress=False)
    again = load(path, network())
    weight = again[0].weight_values
    assert in_file(path, weight)
    assert torch.equal(again(x), model(x))
    assert resident(path) < weight.nbytes / 2
    assert torch.equal(weight, model[0].weight_values)
    assert resident(path) >= weight.nbytes


def test_without_compression_every_tensor_is_plain(tmp_path):
    small, plain, model = tmp_path / "small", tmp_path / "plain", converted(SPARSE)
    save(model, small)
    save(model, plain, compress=False)
    assert plain.stat().st_size > 1.3 * small.stat().st_size
    first, second = load(small, network()).state_dict(), load(plain, network()).state_dict()
    assert list(first) == list(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_parameters_stay_the_same_objects_and_tied_ones_tied(tmp_path):
    path = tmp_path / "model.safetensors"

    def tied():
        model = network()
        model[2].weight = model[0].weight
        return model

    source, target = tied(), tied()
    save(source, path)
    before = list(target.parameters())
    load(path, target)
    assert all(a is b for a, b in zip(before, target.parameters(), strict=True))
    assert target[2].weight is target[0].weight
    assert torch.equal(target[0].weight, source[0].weight)


def test_training_a_loaded_model_leaves_the_file_as_it_is(tmp_path):
    path = tmp_path / "model.safetensors"
    save(network(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    model = load(path, network())
    before = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(batch()).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert torch.equal(load(path, network())[0].weight, before)


def test_the_file_may_be_replaced_or_removed(tmp_path):
    path, model, x = tmp_path / "model.safetensors", converted(), batch()
    save(model, path)
    again = load(path, network())
    save(again, path)
    save(converted(), path)
    path.unlink()
    assert torch.equal(copy.deepcopy(again)(x), model(x))
    assert torch.equal(again.state_dict()["0.weight_values"], model[0].weight_values)


def test_modules_that_load_in_their_own_way_get_copies(tmp_path):
    path = tmp_path / "model.safetensors"

    class Doubling(nn.Linear):
        def _load_from_state_dict(self, *args, **kwargs):
            super()._load_from_state_dict(*args, **kwargs)
            with torch.no_grad():
                self.weight.mul_(2)

    model, target = network(), nn.Sequential(Doubling(WIDTH, WIDTH), nn.ReLU(), nn.Identity())
    target[2] = hooked = nn.Linear(WIDTH, WIDTH)
    seen = []
    hooked.register_load_state_dict_pre_hook(lambda module, state, prefix, *rest: seen.append(
        prefix + "weight" in state))  # fmt: skip
    save(model, path)
    load(path, target)
    assert torch.equal(target[0].weight, 2 * model[0].weight)
    assert torch.equal(hooked.weight, model[2].weight) and all(seen) and seen


@needs_proc
def test_only_what_is_mapped_is_taken_out_of_memory(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    own = torch.arange(1 << 18)
    kept = own.clone()
    storage = torch.UntypedStorage.from_file(str(path), False, 1 << 20)
    theirs = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (1 << 20,), (1,))
    assert int(theirs.sum()) == 0
    mapped.leave_in_file(path, [own, theirs[5:], theirs[:100]])
    assert torch.equal(own, kept)
    assert resident(path) <= 1 << 17
    assert int(theirs.sum()) == 0


def test_a_model_in_channels_last_keeps_its_format(tmp_path):
    path = tmp_path / "model.safetensors"
    model = nn.Sequential(nn.Conv2d(64, 64, 3)).to(memory_format=torch.channels_last)
    save(model, path)
    again = load(path, nn.Sequential(nn.Conv2d(64, 64, 3)).to(memory_format=torch.channels_last))
    assert again[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(again[0].weight, model[0].weight)
