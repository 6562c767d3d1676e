"""Bytes, zeros, multiplications, accuracy; `benchmark_model` and `throughput`."""

import numpy as np
import pytest
import torch
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Quant, bench


def test_accuracy_by_hand():
    batches = [
        (torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0])),
        (torch.tensor([[3.0, 4.0]]), torch.tensor([1])),
    ]
    assert bench.accuracy(nn.Identity(), batches) == pytest.approx(200 / 3)


def test_accuracy_evaluates():
    model = nn.Sequential(nn.Dropout(0.99), nn.BatchNorm1d(2)).train()
    inputs = torch.tensor([[1.0, 0.0]] * 50)
    assert bench.accuracy(model, [(inputs, torch.zeros(50, dtype=torch.int64))]) == 100
    assert model.training and torch.equal(model[1].running_mean, torch.zeros(2))


def test_accuracy_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one image"):
        bench.accuracy(nn.Identity(), [])


def test_size(tmp_path):
    (tmp_path / "a").write_bytes(bytes(2_500_000))
    assert bench.size_mb(tmp_path / "a") == 2.5
    with pytest.raises(FileNotFoundError):
        bench.size_mb(tmp_path / "b")


class Head(nn.Module):
    """A convolution, a depthwise one, attention and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 12)

    def forward(self, x):
        y = self.up(self.depth(self.conv(x))).flatten(2).transpose(1, 2)
        return self.fc(self.mix(y, y, y, need_weights=False)[0].mean(1))


def count(images, side):
    pixels, tokens = images * side**2, 4 * side**2
    convolutions = pixels * (4 * 8 * 9 + 8 * 9 + 8 * 8 * 4)
    attention = images * tokens * (4 * 8 * 8 + 2 * 8 * tokens)
    return convolutions + attention + images * 8 * 12


@pytest.mark.parametrize("converted", [False, True])
def test_macs_by_hand(converted):
    model, x = Head().eval(), torch.randn(2, 4, 6, 6)
    if converted:
        plan = Plan({"*": Layer(weight=Quant(axis=0), input=Quant(symmetric=False))})
        model = sparseq.convert(sparseq.calibrate(sparseq.prepare(model, plan), [x]))
    got = bench.benchmark_model(model, x, repeats=2, warmup=0, threads=1)
    assert got.macs == count(2, 6)
    assert got.macs_per_second == pytest.approx(1000 * got.macs / got.latency.median_ms)
    assert f"{got.macs:,} a call" in str(got)


def test_macs_are_those_of_the_channel_graph():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(128, 5))
    x = torch.randn(1, 3, 6, 6)
    graph = sparseq.ChannelGraph(model, x)
    classes = graph.pruning_classes(True)
    got = bench.benchmark_model(model, x, repeats=1, warmup=0)
    assert got.macs == graph.macs(np.array([], dtype=np.int64), classes) == 16 * 8 * 27 + 128 * 5


def test_an_op_that_does_not_tell_leaves_macs_unknown(monkeypatch):
    from sparseq.flow import macs

    monkeypatch.setattr(macs, "COUNTED", {})
    monkeypatch.setattr(macs, "FREE", set())
    plan = Plan({"*": Layer(weight=Quant(axis=0), input=Quant(symmetric=False))})
    x = torch.randn(2, 8)
    model = sparseq.calibrate(sparseq.prepare(nn.Sequential(nn.Linear(8, 8)), plan), [x])
    got = bench.benchmark_model(sparseq.convert(model), x, repeats=1, warmup=0)
    assert got.macs is None and got.macs_per_second is None and "MACs: unknown" in str(got)


def test_benchmark_puts_the_modes_back():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
    model[0].eval()
    bench.benchmark_model(model, torch.randn(4, 3), repeats=1, warmup=0)
    assert model.training and not model[0].training and model[1].training
    assert torch.equal(model[1].running_mean, torch.zeros(2))


def test_model_size_by_hand(tmp_path):
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 64))
    model[2].weight = nn.Parameter(model[0].weight.detach().T.contiguous())
    tied = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    tied[1].weight = tied[0].weight
    got = bench.model_size(model)
    assert got.parameters == 64 * 32 * 2 + 32 + 64 + 2 * 32
    assert got.parameter_bytes == 4 * got.parameters
    assert got.buffer_bytes == 2 * 32 * 4 + 8 and got.memory_bytes == sum(
        (got.parameter_bytes, got.buffer_bytes)
    )
    sparseq.save(model, tmp_path / "m.safetensors")
    assert got.file_bytes == (tmp_path / "m.safetensors").stat().st_size
    assert bench.model_size(tied).parameter_bytes == 4 * (64 * 64 + 2 * 64)
    assert f"{got.parameters:,}" in str(got)


def test_a_converted_model_is_smaller():
    model, x = nn.Sequential(nn.Linear(256, 256)), torch.randn(4, 256)
    layer = Layer(weight=Quant(axis=0), input=Quant(symmetric=False), sparsity=NM(2, 4))
    before = bench.model_size(model)
    fast = sparseq.convert(sparseq.calibrate(sparseq.prepare(model, Plan({"*": layer})), [x]))
    after = bench.model_size(fast)
    assert after.file_bytes < 0.3 * before.file_bytes
    assert after.parameters == 0 and after.buffer_bytes > 256 * 256


def test_throughput_is_a_table():
    model = nn.Linear(3, 2)
    got = bench.throughput(
        model, torch.zeros(2, 3), batches=(1, 5), threads=(1, 2), repeats=3, warmup=0
    )
    assert [(row.threads, row.images) for row in got.rows] == [(1, 1), (1, 5), (2, 1), (2, 5)]
    assert got.best.images_per_second == max(row.images_per_second for row in got.rows)
    first, last = got.rows[0].per_image_ms, got.rows[1].per_image_ms
    assert got.growth(1) == last / first
    lines = str(got).splitlines()
    assert lines[0].split()[:2] == ["threads", "batch"] and len(lines) == 5
    assert sum("*" in line for line in lines) == 1


def test_throughput_checks_its_arguments():
    model, x = nn.Linear(3, 2), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="batches must be at least 1, got 0"):
        bench.throughput(model, x, batches=(0,))
    for empty in ({"batches": ()}, {"threads": ()}):
        with pytest.raises(ValueError, match="must hold at least one number, got none"):
            bench.throughput(model, x, **empty)
    got = bench.throughput(model, x, batches=(1,), threads=(1,), repeats=1, warmup=0)
    with pytest.raises(ValueError, match=r"threads must be one of \[1\], got 7"):
        got.growth(7)
