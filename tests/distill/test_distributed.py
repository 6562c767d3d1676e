"""Distillation under DDP on two gloo ranks, beside one process that sees all the data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of the two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(HERE / "distill_ranks.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_ranks_agree_on_student_and_projections(both):
    one, two = (found["ddp"] for found in both)
    assert any("projections" in name for name in one) and one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_two_ranks_are_one_process_on_all_data(both):
    for name, value in both[0]["alone"].items():
        torch.testing.assert_close(both[0]["ddp"][name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_a_cached_teacher_is_the_teacher(both):
    for name, value in both[0]["uncached"].items():
        torch.testing.assert_close(both[0]["alone"][name], value, rtol=1e-3, atol=1e-5, msg=name)
