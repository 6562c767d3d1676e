"""Large outputs reuse memory: never what is still in use, and never more than the limit."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from sparseq import ops, reference, testing

SIZE = (1024, 1536)  # 6 MiB of float32


def quantised(seed):
    x = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))
    return x, ops.fake_quantize(x, 0.03, None, -127, 127)


def test_freed_memory_is_taken_again_and_live_memory_never():
    _, first = quantised(0)
    kept = [quantised(seed) for seed in range(1, 5)]
    assert len({first.data_ptr(), *(y.data_ptr() for _, y in kept)}) == 5
    freed = first.data_ptr()
    del first
    _, again = quantised(9)
    assert again.data_ptr() == freed
    for x, y in kept:
        wanted = reference.fake_quantize(x, torch.tensor(0.03), None, -127, 127)
        testing.assert_equal(y, wanted)


def test_a_view_keeps_its_memory():
    _, y = quantised(0)
    row, address = y[3], y.data_ptr()
    wanted = row.clone()
    del y
    _, other = quantised(1)
    assert other.data_ptr() != address
    testing.assert_equal(row, wanted)


@pytest.mark.parametrize("layout", ["channels_last", "transposed"])
def test_strides_are_those_of_x(layout):
    x = torch.randn(4, 64, 96, 128)
    x = x.contiguous(memory_format=torch.channels_last) if layout[0] == "c" else x.transpose(1, 3)
    scale = torch.full((x.shape[1],), 0.03)
    y = ops.fake_quantize(x, scale, None, -127, 127, axis=1)
    assert y.stride() == x.stride()
    testing.assert_equal(y, reference.fake_quantize(x, scale, None, -127, 127, axis=1))


def test_threads_share_nothing():
    wrong = []

    def work(seed):
        for turn in range(5):
            x, y = quantised(10 * seed + turn)
            wanted = reference.fake_quantize(x, torch.tensor(0.03), None, -127, 127)
            if not torch.equal(y, wanted):
                wrong.append((seed, turn))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


MEASURE = """
import torch
from sparseq import ops
x = torch.randn(4096, 4096)  # 64 MiB
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
before = resident()
many = [ops.fake_quantize(x, 0.03, None, -127, 127) for _ in range(8)]
many.clear()
print(resident() - before)
ops.empty_cache()
print(resident() - before)
again = ops.dequantize(ops.quantize(x, 0.03, None, -127, 127), 0.03, None)
assert torch.equal(ops.fake_quantize(x, 0.03, None, -127, 127), again)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("limit", "most"), [("0", 20), ("128", 150), ("256", 280)])
def test_no_more_than_the_limit_is_kept(limit, most):
    """Eight outputs of 64 MiB are freed; what stays is the limit and no more, or nothing."""
    environment = {"SPARSEQ_RECYCLE_MB": limit, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=True
    )
    kept, emptied = map(float, done.stdout.split())
    assert int(limit) - 20 <= kept <= most
    assert emptied <= 20


SMALL = """
import torch
from torch import nn
import sparseq
from sparseq import Layer, Plan, Quant
x = torch.randn(1, 3, 32, 32)
net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()
plan = Plan({"*": Layer(Quant(axis=0), input=Quant(symmetric=False))})
fast = sparseq.convert(sparseq.calibrate(sparseq.prepare(net, plan), [x]), x)
with torch.inference_mode():
    fast(x)
lines = [line for line in open("/proc/self/smaps") if line.startswith("AnonHugePages:")]
print(sum(int(line.split()[1]) for line in lines))
"""
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE.exists() or "[madvise]" not in HUGE.read_text(),
    reason="huge pages are not given on request here",
)
def test_a_small_programs_values_take_no_huge_page():
    done = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]
