"""benchmarks/gpu.py, which needs a GPU to say anything: its own logic, on the CPU."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from sparseq import ops

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("gpu_benchmark", BENCHMARKS / "gpu.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["gpu_benchmark"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_every_row_runs_and_is_reported(gpu, tmp_path) -> None:
    assert gpu.main(["--device", "cpu", "--small", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    page = (tmp_path / "gpu.md").read_text()
    assert len(results) >= 12
    for result in results:
        assert result["seconds"][""] > 0 and f"| {result['work']} |" in page
    works = " ".join(result["work"] for result in results)
    named = ("int8_linear", "int8_linear 2:4", "int8_conv2d 2:4", "fake_quantize", "mask_24")
    assert all(name in works for name in named)
    assert "did not run: " in page  # torch's semi-structured products are for GPUs


def row(gpu, **changes):
    given = {"name": "work", "ours": lambda: None, "check": lambda: None, "moved": 0}
    return gpu.GpuRow(**given | changes)


def test_the_roof(gpu) -> None:
    # an H100: 132 multiprocessors at 1.83 GHz do 1979e12 operations a second in INT8
    rate = 132 * 1.83e9 * gpu.PRODUCTS_PER_CYCLE[9, 0]
    assert 2 * rate == pytest.approx(1979e12, rel=0.01)
    roof = gpu.Roof(bandwidth=3e12, products=rate)
    work = {"products": 4096**3, "moved": 3 * 4096**2}
    assert roof.seconds(row(gpu, kind="int8", **work)) == pytest.approx(4096**3 / rate)
    assert roof.seconds(row(gpu, kind="int8 2:4", **work)) == pytest.approx(4096**3 / rate / 2)
    assert roof.seconds(row(gpu, kind="half", **work)) == pytest.approx(4096**3 / rate * 2)
    assert roof.seconds(row(gpu, moved=3e9)) == pytest.approx(1e-3)
    assert gpu.Roof(3e12, None).seconds(row(gpu, kind="int8", **work)) is None


def test_a_peer_that_fails_says_why_and_ours_must_not(gpu) -> None:
    def refuse() -> None:
        raise RuntimeError("not on this card\nand more")

    clock = gpu.Clock(torch.device("cpu"))
    times = gpu.measure(row(gpu, peers={"good": lambda: None, "bad": refuse}), clock, 2)
    assert times["bad"] == "not on this card" and times["good"] >= 0
    with pytest.raises(RuntimeError, match="not on this card"):
        gpu.measure(row(gpu, ours=refuse), clock, 2)
    lines = gpu.table([(row(gpu, peers={"bad": refuse}), {"": 2e-6, "bad": "no"})], gpu.Roof(1, 1))
    assert lines[2] == "| work | 2.0 | 0% | bad | - | did not run: no |"


def test_other_numbers_are_not_timed(gpu, monkeypatch) -> None:
    make = next(gpu.rows(True))
    work = make(torch.device("cpu"))
    right = ops.int8_linear
    import gpu_rows

    monkeypatch.setattr(
        gpu_rows.ops, "int8_linear", lambda *a, **o: right(*a, **o) + ("tiles" in o)
    )
    with pytest.raises(AssertionError, match="values differ"):
        gpu.measure(work, gpu.Clock(torch.device("cpu")), 1)


def test_without_a_gpu_it_says_so(gpu, capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 1
    assert "needs a CUDA device" in capsys.readouterr().out
