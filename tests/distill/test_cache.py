"""Cached logits: what the teacher said, by sample, and only this teacher."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from sparseq import distill
from sparseq.distill import CachedLogits, Loss, digest

X = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([40, 7, 13, 2, 99, 51, 3, 8, 21, 60])


def network(classes=4):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, classes))


def batches(size=4):
    return [(IDS[i : i + size], X[i : i + size]) for i in range(0, 10, size)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("classes", [3, 4])  # 3: the ids behind the logits want padding
def test_logits_by_id(dtype, classes, tmp_path):
    teacher = network(classes).train()
    cache = CachedLogits.write(tmp_path / "t.safetensors", teacher, batches(), dtype)
    assert teacher.training and all(m.training for m in teacher.modules())
    with torch.no_grad():
        wanted = torch.cat([teacher.eval()(x) for _, x in batches()]).to(dtype).float()
    assert len(cache) == 10
    assert torch.equal(cache(IDS), wanted) and cache(IDS).dtype == torch.float32
    chosen = torch.tensor([3, 0, 9, 3])
    assert torch.equal(cache(IDS[chosen]), wanted[chosen])
    again = CachedLogits(tmp_path / "t.safetensors", digest(teacher))
    assert torch.equal(again(IDS.flip(0).int()), wanted.flip(0))
    with safe_open(tmp_path / "t.safetensors", "pt") as file:  # a file like any other
        assert torch.equal(file.get_tensor("logits").float(), wanted)
        assert file.get_tensor("ids").tolist() == IDS.tolist()


def test_file_is_mapped_not_read(tmp_path):
    maps = "/proc/self/maps"
    try:
        open(maps).close()
    except OSError:
        pytest.skip(f"{maps} is Linux's")
    cache = CachedLogits.write(tmp_path / "mapped.safetensors", network(), batches())
    with open(maps) as file:
        assert "mapped.safetensors" in file.read()
    assert cache(IDS[:1]).shape == (1, 4)


def test_loss_with_a_cached_teacher_is_that_with_the_teacher(tmp_path):
    teacher = network().eval()
    cache = CachedLogits.write(tmp_path / "t", teacher, batches(), torch.float32)
    logits, labels = torch.randn(10, 4), torch.arange(10) % 4
    got = Loss(cache, 3.0, 0.4)(logits, labels, ids=IDS)
    torch.testing.assert_close(got, Loss(teacher, 3.0, 0.4)(logits, labels, X))
    both = Loss([cache, network().eval()], 3.0, 0.4)(logits, labels, X, IDS)
    torch.testing.assert_close(both, got)
    with pytest.raises(ValueError, match="ids must be given to a cached teacher, got None"):
        Loss(cache)(logits, labels, X)


def test_a_teacher_trained_since_is_an_error(tmp_path):
    teacher = network()
    CachedLogits.write(tmp_path / "t", teacher, batches())
    CachedLogits(tmp_path / "t", copy.deepcopy(teacher))
    for change in (
        lambda t: t[3].bias.data.add_(1e-3),
        lambda t: t[1].running_mean.add_(1e-3),
        lambda t: t.double(),
    ):
        other = copy.deepcopy(teacher)
        change(other)
        with pytest.raises(ValueError, match="must hold this teacher's logits, got those of"):
            CachedLogits(tmp_path / "t", other)
    with pytest.raises(ValueError, match="write it anew"):
        CachedLogits(tmp_path / "t", "0" * 64)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_digest_knows_names_and_values_and_no_wrapper():
    teacher = network()
    assert digest(teacher) == digest(network()) == digest(torch.compile(teacher, backend="eager"))
    assert digest(teacher) == digest(teacher.eval()) and len(digest(teacher)) == 64
    assert digest(nn.ModuleDict({"a": nn.Linear(2, 2)})) != digest(
        nn.ModuleDict({"b": nn.Linear(2, 2)})
    )

    class Hidden(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.register_buffer("shift", torch.tensor([value]), persistent=False)

    assert digest(Hidden(1.0)) != digest(Hidden(2.0))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], ValueError, "at least one sample, got none"),
        ([(IDS[:2], X[:2]), (IDS[1:3], X[1:3])], ValueError, "once each, got 7 more than once"),
        ([(IDS[:2], X[:3])], ValueError, r"must have shape \(2, 4\), got \(3, 4\)"),
        ([(IDS[:2].float(), X[:2])], TypeError, r"integers \(N,\), got torch.float32 \(2,\)"),
        ([(IDS[:2, None], X[:2])], TypeError, r"integers \(N,\), got torch.int64 \(2, 1\)"),
        ([(IDS[:2], X[:2] * 1e9)], ValueError, "must be finite in torch.float16"),
    ],
)
def test_nothing_is_left_of_a_cache_that_failed(given, error, message, tmp_path):
    teacher = network().train()
    with pytest.raises(error, match=message):
        CachedLogits.write(tmp_path / "t", teacher, given)
    assert list(tmp_path.iterdir()) == [] and teacher.training


def test_errors_of_use(tmp_path):
    teacher = network()
    with pytest.raises(TypeError, match=r"float16, bfloat16 or float32, got torch\.int8"):
        CachedLogits.write(tmp_path / "t", teacher, batches(), torch.int8)
    with pytest.raises(FileNotFoundError, match="path must name a file"):
        CachedLogits(tmp_path / "t", teacher)
    cache = CachedLogits.write(tmp_path / "t", teacher, batches())
    for unknown in (1, 100, -5):
        with pytest.raises(ValueError, match=f"ids must be in .*, got {unknown}$"):
            cache(torch.tensor([7, unknown]))
    with pytest.raises(TypeError, match="ids must be a tensor of integers"):
        cache([7])


def test_files_that_are_none(tmp_path):
    teacher = network()
    path = tmp_path / "t"
    CachedLogits.write(path, teacher, batches())
    whole = path.read_bytes()
    text = whole[8:1024].decode()
    later = text.replace('\\"version\\": 1', '\\"version\\": 9')
    assert later != text
    other = json.dumps({"__metadata__": {"format": "pt"}}).ljust(1016)
    for content in (
        b"",
        b"no tensors here",
        whole[:-3],
        whole[:8] + later.encode() + whole[1024:],
        (1016).to_bytes(8, "little") + other.encode(),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="must be a file of cached logits"):
            CachedLogits(path, teacher)


def test_public_names():
    assert all(hasattr(distill, name) for name in distill.__all__)
