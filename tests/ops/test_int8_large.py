"""More than 2^31 elements: right, not wrapped. A stride of 0 keeps the input small."""

import re
from pathlib import Path

import pytest
import torch

from sparseq import ops

MEMORY = Path("/proc/meminfo")
FREE = re.search(r"MemAvailable:\s*(\d+)", MEMORY.read_text()) if MEMORY.is_file() else None


@pytest.mark.skipif(not FREE or int(FREE[1]) < 6 * 2**20, reason="needs 6 GiB of free memory")
def test_linear_over_two_to_the_31():
    rows, depth = 2**25 + 3, 64
    row = torch.arange(depth, dtype=torch.int8)
    weight = torch.ones(1, depth, dtype=torch.int8)
    weight[0, ::2] = 0
    y = ops.int8_linear(row.expand(rows, depth), weight, torch.ones(1))
    assert rows * depth > 2**31 and y.shape == (rows, 1)
    low, high = y.aminmax()
    assert low == high == int(row[1::2].sum())
