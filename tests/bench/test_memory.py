"""`bench.measure_memory`: in this process, in one of its own, where the system tells less."""

from functools import partial

import bench_models
import pytest
import torch
from torch import nn

import sparseq
from sparseq import bench
from sparseq.bench import child, memory

MEGA = 1 << 20
LINUX = pytest.mark.skipif(child.resident() is None, reason="needs /proc")


class Hungry(nn.Module):
    """Takes 64 MiB for a while."""

    def forward(self, x):
        big = torch.ones(16 * MEGA, device=x.device)
        return x + big.sum()


@LINUX
def test_peak_of_a_model():
    model = Hungry().train()
    # one call: what a call frees may still count when the next one takes its own
    got = bench.measure_memory(model, torch.zeros(1), calls=1)
    assert 60 * MEGA < got.added_bytes < 96 * MEGA
    assert got.peak_bytes == got.before_bytes + got.added_bytes
    assert got.idle_bytes is None and got.model_bytes is None and got.where == "torch"
    assert model.training
    calm = bench.measure_memory(nn.Identity(), torch.zeros(1))
    assert calm.added_bytes < 8 * MEGA, "an earlier peak counts"
    text = str(got)
    assert f"peak {got.peak_bytes / 1e6:.1f} MB" in text and text.endswith(f"(torch, {got.method})")


@LINUX
def test_sampled_where_the_mark_cannot_be_reset(monkeypatch, tmp_path):
    monkeypatch.setattr(child, "RESET", tmp_path / "no" / "such")

    class Slow(Hungry):
        def forward(self, x):
            big = torch.ones(16 * MEGA, device=x.device)
            for _ in range(20):
                big.mul_(1.0)
            return x + big.sum()

    got = bench.measure_memory(Slow(), torch.zeros(1), calls=1)
    assert got.method == "sampled" and 60 * MEGA < got.added_bytes < 96 * MEGA


def test_getrusage_where_there_is_no_proc(monkeypatch, tmp_path):
    pytest.importorskip("resource")
    monkeypatch.setattr(child, "STATUS", tmp_path / "status")
    got = bench.measure_memory(nn.Identity(), torch.zeros(1))
    assert got.method == "getrusage" and got.peak_bytes >= got.before_bytes > 0
    monkeypatch.setattr(child, "greatest_ever", lambda: None)
    with pytest.raises(OSError, match="this system does not tell"):
        bench.measure_memory(nn.Identity(), torch.zeros(1))


@LINUX
def test_status_without_the_field(monkeypatch, tmp_path):
    (tmp_path / "status").write_text("Name: x\nVmRSS:\t  12 kB\n")
    monkeypatch.setattr(child, "STATUS", tmp_path / "status")
    assert child.resident() == 12 * 1024
    with pytest.raises(ValueError, match="has no VmHWM"):
        child.resident("VmHWM")


@LINUX
def test_files_in_a_process_of_their_own(tmp_path):
    x = torch.randn(2, 4, 16, 16)
    model = bench_models.small(8)
    sparseq.save(model, tmp_path / "m.safetensors")
    sparseq.export.onnx(model, x, tmp_path / "m.onnx", verify=False)
    build = partial(bench_models.small, width=8)
    found = {
        "torch": bench.measure_memory(tmp_path / "m.safetensors", x, architecture=build, threads=1),
        "onnxruntime": bench.measure_memory(str(tmp_path / "m.onnx"), x, threads=1, calls=2),
    }
    for where, got in found.items():
        assert got.where == where and got.method == "VmHWM"
        assert 0 < got.idle_bytes < got.peak_bytes and 0 <= got.added_bytes
        assert got.model_bytes < 200 * MEGA and "MB with the model" in str(got)
    # torch is not in ONNX Runtime's process
    assert found["onnxruntime"].idle_bytes < found["torch"].idle_bytes


@LINUX
def test_inputs_by_name(tmp_path):
    model, path = bench_models.pair(), tmp_path / "pair.pt2"
    inputs = {"a": torch.randn(2, 8), "b": torch.randn(2, 4)}
    torch.export.save(torch.export.export(model, (), inputs), path)
    assert bench.measure_memory(path, inputs, threads=1, calls=1).where == "torch"


def test_errors_of_the_other_process(tmp_path):
    x, path = torch.randn(1, 4, 8, 8), tmp_path / "m.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"m\.onnx' does not run: "):
        bench.measure_memory(path, x)
    sparseq.save(bench_models.small(), tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"does not run: .*holds weights only"):
        bench.measure_memory(tmp_path / "m.safetensors", x)


def test_a_process_that_dies_is_an_error(monkeypatch, tmp_path):
    path, script = tmp_path / "m.onnx", tmp_path / "child.py"
    path.write_bytes(b"nothing")
    script.write_text("import sys; sys.exit('out of memory')")
    monkeypatch.setattr(memory.child, "__file__", str(script))
    with pytest.raises(ValueError, match=r"ended with 1: out of memory"):
        bench.measure_memory(path, torch.zeros(1))


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="calls must be at least 1, got 0"):
        bench.measure_memory(nn.Identity(), torch.zeros(1), calls=0)
    with pytest.raises(FileNotFoundError, match="path must name a file"):
        bench.measure_memory(tmp_path / "none.onnx", torch.zeros(1))
    (tmp_path / "m.engine").write_bytes(b"vtrt")
    with pytest.raises(ValueError, match="must not be an engine"):
        bench.measure_memory(tmp_path / "m.engine", torch.zeros(1))


@pytest.mark.gpu
def test_cuda():
    got = bench.measure_memory(Hungry(), torch.zeros(1, device="cuda"))
    assert got.method == "cuda" and 64 * MEGA <= got.added_bytes < 96 * MEGA
