"""The same run under torchrun, on two gloo ranks, beside one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import run_ranks
import small_runs
import torch

from sparseq import bench
from sparseq.run import exercise, measure, models
from sparseq.run.folder import Folder, Stage, stages_of
from sparseq.run.ranks import Ranks
from sparseq.run.train import train
from sparseq.sparse import masks_of

HERE = Path(__file__).parent
WANTED = small_runs.recipe(**run_ranks.RECIPE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two ranks left."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(HERE / "run_ranks.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """What one process leaves."""
    monkeypatch.setattr(models, "build", small_runs.tiny)
    torch.set_num_threads(1)
    return small_runs.trained(tmp_path, WANTED)


def test_one_rank_writes(folder):
    assert {path.name for path in folder.iterdir()} == {"0"}
    files = {path.name for path in (folder / "0" / "stages").iterdir()}
    assert files == {"run.json", *(f"{stage.name}.pt" for stage in stages_of(WANTED))}
    assert (folder / "0" / "best.onnx").is_file() and (folder / "0" / "finished").is_file()


def test_two_ranks_learn_as_one_process_does(folder, alone):
    for stage in stages_of(WANTED):
        one, two = alone.read(stage), Folder(folder / "0").read(stage)
        assert two["done"] and len(two["accuracies"]) == len(one["accuracies"])
        # each rank normalises by its own half of a batch: 16 images instead of 32
        assert two["losses"] == pytest.approx(one["losses"], rel=0.25), stage
        assert two["accuracies"] == pytest.approx(one["accuracies"], abs=20), stage
        shapes = {name: getattr(v, "shape", None) for name, v in one["model"].items()}
        assert shapes == {name: getattr(v, "shape", None) for name, v in two["model"].items()}


def test_what_two_ranks_leave_is_a_run_like_any_other(folder, alone):
    workshop = small_runs.workshop(folder / "0", WANTED)
    pruned = workshop.trained(Stage(0, "PQ"))
    kept = sum(int(mask.mask.sum()) for mask, _ in masks_of(pruned))
    total = sum(mask.mask.numel() for mask, _ in masks_of(pruned))
    assert 1 - kept / total == pytest.approx(0.8, abs=0.01)
    model = measure.deployed(workshop, "PQ", 0)
    noted = workshop.read(Stage(0, "PQ"))["accuracies"][-1]
    assert bench.accuracy(model, workshop.data.test_batches()) == pytest.approx(noted, abs=5)


def test_a_batch_is_split_evenly(alone):
    with pytest.raises(ValueError, match="batch must be a multiple of the 3 processes, got 32"):
        train(alone.network(Stage(0, "")), alone.data, WANTED.train, ranks=Ranks(0, 3))


def test_parts_of_batches_are_all_of_them(alone):
    whole, halves = (
        [
            list(alone.data.train_batches(32, torch.Generator().manual_seed(1), r, n))
            for r in range(n)
        ]
        for n in (1, 2)
    )
    for (images, labels), one, two in zip(whole[0], *halves, strict=True):
        assert torch.equal(images[0::2], one[0]) and torch.equal(images[1::2], two[0])
        assert torch.equal(labels[0::2], one[1]) and torch.equal(labels[1::2], two[1])
    tested = [len(y) for r in range(3) for _, y in alone.data.test_batches(16, r, 3)]
    assert sorted(tested) == [8, 16, 16]


def test_workers_do_not_go_with_torchrun(tmp_path, monkeypatch):
    from contextlib import nullcontext

    monkeypatch.setattr(exercise, "ranks_of_this_run", lambda device: nullcontext(Ranks(0, 2)))
    with pytest.raises(ValueError, match="workers must be 1 under torchrun"):
        exercise.run(WANTED, tmp_path, workers=2)
