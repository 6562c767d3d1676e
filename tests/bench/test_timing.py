"""`bench.latency`, `bench.compare` of callables, `bench.alternate`."""

import time

import pytest
import torch
from torch import nn

from sparseq import bench
from sparseq.bench import timing


class Sleeper(nn.Module):
    """Takes a known time and notes how it was called."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.calls = []

    def forward(self, x):
        self.calls.append((self.training, torch.is_grad_enabled(), torch.get_num_threads()))
        time.sleep(self.seconds)
        return x


def test_latency_measures_one_call():
    model = Sleeper(0.01)
    got = bench.latency(model, torch.zeros(4, 3), repeats=5, warmup=2)
    assert 10 <= got.median_ms < 40
    assert got.median_ms <= got.p95_ms <= got.p99_ms
    assert got.images == 4 and got.repeats == 5
    assert got.per_image_ms == got.median_ms / 4
    assert got.images_per_second == pytest.approx(4000 / got.median_ms)
    assert len(model.calls) == 2 * (5 + 2)


def test_latency_runs_as_deployed_and_puts_everything_back():
    model = nn.Sequential(Sleeper(0), nn.Dropout()).train()
    model[1].eval()
    before = torch.get_num_threads()
    got = bench.latency(model, torch.zeros(1), repeats=3, warmup=0, threads=1)
    assert set(model[0].calls) == {(False, False, 1)} and got.threads == 1
    assert model.training and model[0].training and not model[1].training
    assert torch.get_num_threads() == before
    assert torch.is_grad_enabled()


def test_modes_are_put_back_after_an_error():
    model = nn.Linear(3, 2).train()
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="shapes"):
        bench.latency(model, torch.zeros(1, 5), threads=1)
    assert model.training and torch.get_num_threads() == before


def test_compare_interleaves_and_alternates():
    calls = []
    got = bench.compare(
        {name: lambda name=name: calls.append(name) for name in "ab"}, repeats=2, warmup=1
    )
    assert list(got) == ["a", "b"]
    assert "".join(calls) == "bbaa" + "aabb" + "bbaa"


def test_compare_tells_fast_from_slow():
    times = {"slow": 0.004, "fast": 0.001}
    calls = {name: lambda s=seconds: time.sleep(s) for name, seconds in times.items()}
    got = bench.compare(calls, repeats=9, warmup=1)
    assert got["slow"].median_ms > 2 * got["fast"].median_ms


def test_compare_checks_its_arguments():
    with pytest.raises(ValueError, match="calls must name at least one"):
        bench.compare({})
    for argument in ({"repeats": 0}, {"warmup": -1}, {"threads": 0}, {"images": 0}):
        ((name, value),) = argument.items()
        with pytest.raises(ValueError, match=f"{name} must be at least .* got {value}"):
            bench.compare({"a": lambda: None}, **argument)
    with pytest.raises(ValueError, match=r"example must hold an image, got shape \(0, 3\)"):
        bench.latency(nn.Identity(), torch.zeros(0, 3))


def test_latency_tells_itself():
    got = bench.latency(Sleeper(0), torch.zeros(2, 3), repeats=20, warmup=0, threads=1)
    low, high = got.interval_ms
    assert got.min_ms <= low <= got.median_ms <= high <= got.p99_ms
    text = str(got)
    assert f"median {got.median_ms:.3f} ms" in text and "batch 2, threads 1, 20 calls" in text


def test_repeats_fill_the_time_given():
    slow, fast = Sleeper(0.02), Sleeper(0.002)
    few = bench.latency(slow, torch.zeros(1), warmup=0, seconds=0.01)
    many = bench.latency(fast, torch.zeros(1), warmup=0, seconds=0.3)
    assert few.repeats == timing.LEAST < many.repeats
    assert many.repeats * 2 * 0.002 < 1


def test_warmup_goes_on_until_calls_are_steady():
    class Waking(Sleeper):
        def forward(self, x):
            self.seconds = max(0.001, 0.02 - 0.001 * len(self.calls))
            return super().forward(x)

    model = Waking(0)
    got = bench.latency(model, torch.zeros(1), repeats=5, seconds=10)
    assert len(model.calls) > 2 * (5 + 10)
    assert got.median_ms < 10


def test_warmup_ends_with_half_the_time_at_the_latest():
    model = Sleeper(0.01)
    bench.latency(model, torch.zeros(1), repeats=1, seconds=0)
    assert len(model.calls) == 2 * (2 + 1)


def test_several_inputs():
    class Sum(nn.Module):
        def forward(self, a, b):
            assert not self.training
            return a + b

    pair = [torch.zeros(3, 1), torch.ones(3, 1)]
    for example in (pair, tuple(pair), dict(zip("ab", pair, strict=True))):
        assert bench.latency(Sum(), example, repeats=1, warmup=0).images == 3
    for example in ([], "ab", [torch.zeros(1), 2], None):
        with pytest.raises(TypeError, match="example must be a tensor, or a sequence or mapping"):
            bench.latency(Sum(), example)


def test_alternate_takes_turns():
    noted = []
    calls = {name: lambda name=name: noted.append(name) for name in "abc"}
    got = bench.alternate(calls, rounds=2, threads=1)
    assert {name: [len(b) for b in bursts] for name, bursts in got.items()} == {
        name: [timing.CALLS] * 2 for name in "abc"
    }
    turns = [a for a, b in zip(noted, [*noted[1:], ""], strict=True) if a != b]
    assert "".join(turns) == "cba" + "bc" + "ba"  # untimed, then back and forth
    noted.clear()
    bench.alternate(calls, rounds=6, order="random")
    first = [a for a, b in zip(noted, [*noted[1:], ""], strict=True) if a != b]
    noted.clear()
    bench.alternate(calls, rounds=6, order="random")
    assert first == [a for a, b in zip(noted, [*noted[1:], ""], strict=True) if a != b]
    assert first != ["c", "b", "a", "b", "c"] * 2


def test_alternate_without_a_count():
    got = bench.alternate({"a": lambda: None}, seconds=0)
    assert len(got["a"]) == timing.LEAST


def test_burst_resets_before_each_call():
    noted = []
    times = bench.burst(lambda: noted.append("call"), lambda: noted.append("reset"), calls=3)
    assert len(times) == 3 and all(t >= 0 for t in times)
    assert noted[::2] == ["reset"] * (len(noted) // 2) and noted[1::2] == ["call"] * (
        len(noted) // 2
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"calls": {}}, "calls must name at least one"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"seconds": -1}, "seconds must be at least 0, got -1"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"order": "aabb"}, "order must be 'abba' or 'random', got 'aabb'"),
    ],
)
def test_alternate_checks_its_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        bench.alternate(**{"calls": {"a": lambda: None}, **arguments})
