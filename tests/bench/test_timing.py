"""`bench.latency`, `bench.compare` of callables, `bench.alternate`."""

import pytest
import torch
from torch import nn

from sparseq import bench
from sparseq.bench import stats, timing


class Clock:
    """Time that passes only where a test lets it."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


class Sleeper(nn.Module):
    """Takes a known time, the last one for ever, and notes how it was called."""

    def __init__(self, clock=None, *seconds):
        super().__init__()
        self.clock = clock or Clock()
        self.seconds = seconds or (0.0,)
        self.calls = []

    def forward(self, x):
        self.clock.sleep(self.seconds[min(len(self.calls), len(self.seconds) - 1)])
        self.calls.append((self.training, torch.is_grad_enabled(), torch.get_num_threads()))
        return x


def test_latency_measures_one_call(clock):
    model = Sleeper(clock, 0.5, 0.010, 0.5, 0.020, 0.5, 0.040)
    got = bench.latency(model, torch.zeros(4, 3), repeats=3, warmup=0)
    assert (got.min_ms, got.median_ms) == (pytest.approx(10), pytest.approx(20))
    assert got.p95_ms == pytest.approx(38) and got.p99_ms == pytest.approx(39.6)
    assert got.interval_ms == (pytest.approx(10), pytest.approx(40))
    assert got.images == 4 and got.repeats == 3
    assert got.per_image_ms == pytest.approx(5)
    assert got.images_per_second == pytest.approx(200)
    assert len(model.calls) == 2 * 3


def test_warm_calls_are_not_timed(clock):
    model = Sleeper(clock, *[1.0] * 4, 0.01)
    got = bench.latency(model, torch.zeros(1), repeats=5, warmup=2)
    assert got.p99_ms == pytest.approx(10) and len(model.calls) == 2 * (2 + 5)


def test_latency_runs_as_deployed_and_puts_everything_back():
    model = nn.Sequential(Sleeper(), nn.Dropout()).train()
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


def test_compare_tells_fast_from_slow(clock):
    times = {"slow": 0.004, "fast": 0.001}
    calls = {name: lambda s=seconds: clock.sleep(s) for name, seconds in times.items()}
    got = bench.compare(calls, repeats=9, warmup=1, images=2)
    assert got["slow"].median_ms == pytest.approx(4) and got["fast"].median_ms == pytest.approx(1)
    assert got["slow"].images == 2


def test_compare_checks_its_arguments():
    with pytest.raises(ValueError, match="calls must name at least one"):
        bench.compare({})
    for argument in ({"repeats": 0}, {"warmup": -1}, {"threads": 0}, {"images": 0}):
        ((name, value),) = argument.items()
        with pytest.raises(ValueError, match=f"{name} must be at least .* got {value}"):
            bench.compare({"a": lambda: None}, **argument)
    with pytest.raises(ValueError, match=r"example must hold an image, got shape \(0, 3\)"):
        bench.latency(nn.Identity(), torch.zeros(0, 3))


def test_latency_tells_itself(clock):
    model = Sleeper(clock, 0.0125)
    got = bench.latency(model, torch.zeros(2, 3), repeats=20, warmup=0, threads=1)
    assert str(got) == (
        "median 12.500 ms (95 % interval 12.500 to 12.500), p95 12.500, p99 12.500, min 12.500; "
        "160.0 images/s; batch 2, threads 1, 20 calls"
    )


def test_repeats_fill_the_time_given(clock):
    few = bench.latency(Sleeper(clock, 1.0), torch.zeros(1), warmup=0, seconds=3)
    many = bench.latency(Sleeper(clock, 1 / 64), torch.zeros(1), warmup=0, seconds=1)
    assert few.repeats == timing.LEAST
    assert many.repeats == 33  # two calls a round; the last one begins in time


def test_warmup_goes_on_until_calls_are_steady(clock):
    model = Sleeper(clock, *(1 - n / 32 for n in range(31)), 1 / 64)
    got = bench.latency(model, torch.zeros(1), repeats=5, seconds=1000)
    assert got.p99_ms == pytest.approx(1000 / 64)
    rounds = len(model.calls) // 2 - 5
    assert 31 // 2 + 2 * stats.WINDOW - 4 <= rounds < timing.WARMEST


def test_warmup_ends_with_half_the_time_at_the_latest(clock):
    model = Sleeper(clock, 1.0)
    bench.latency(model, torch.zeros(1), repeats=1, seconds=0)
    assert len(model.calls) == 2 * (2 + 1)
    model = Sleeper(clock, *(0.9**n for n in range(500)))
    bench.latency(model, torch.zeros(1), repeats=1, seconds=1000)
    assert len(model.calls) == 2 * (timing.WARMEST + 1)


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


def test_alternate_without_a_count(clock):
    got = bench.alternate({"a": lambda: clock.sleep(1)}, seconds=0)
    assert len(got["a"]) == timing.LEAST
    assert got["a"] == [[pytest.approx(1)] * timing.CALLS] * timing.LEAST
    got = bench.alternate({"a": lambda: clock.sleep(1)}, seconds=7.02 * 20.5)
    assert len(got["a"]) == 21  # of 2 + 5 calls and a pause each


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
