"""Stages spread over processes, and the plan of `--dry-run`."""

import os
import signal

import numpy as np
import psutil
import pytest
import small_runs
import torch

from sparseq.run import data, exercise, models, sweep
from sparseq.run.estimate import duration
from sparseq.run.folder import Folder, Stage, stages_of
from sparseq.run.stage import Workshop
from sparseq.run.sweep import train_stages


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A recipe on a file of 64 digits, which worker processes load for themselves."""
    path = tmp_path_factory.mktemp("data") / "few.npz"
    images = small_runs.digits()
    arrays = {
        f"{x}_{part}": getattr(images, f"{x}_{part}")[:count].numpy()
        for x in "xy"
        for part, count in (("train", 64), ("test", 32))
    }
    for name in ("x_train", "x_test"):
        arrays[name] = arrays[name].transpose(0, 2, 3, 1)
    np.savez(path, **arrays)
    once = {"epochs": 1, "batch": 32}
    parts = dict.fromkeys(("train", "distil", "prune", "quantise"), once)
    return small_runs.recipe(**parts, data=str(path), variants=["Q", "P", "Q+D"])


def workshop(recipe, path):
    (path / "stages").mkdir(parents=True)
    return Workshop(recipe, data.load(recipe.data), Folder(path))


def test_workers_give_what_one_process_gives(few, tmp_path):
    torch.set_num_threads(2)  # one for each of two workers
    told = small_runs.Silent()
    train_stages(workshop(few, tmp_path / "spread"), told, workers=2)
    torch.set_num_threads(1)
    alone = small_runs.Silent()
    train_stages(workshop(few, tmp_path / "alone"), alone)
    assert small_runs.differences(tmp_path / "spread", tmp_path / "alone", few) == []
    assert told.steps == alone.steps and sorted(told.lines) == sorted(alone.lines)
    assert not psutil.Process().children(recursive=True) or all(
        "spawn_main" not in " ".join(child.cmdline())
        for child in psutil.Process().children(recursive=True)
    )


def test_a_worker_that_is_killed_is_told(few, tmp_path, monkeypatch):
    class Killing(small_runs.Silent):
        def start(self, name, steps, done=0):
            workers = [
                child
                for child in psutil.Process().children()
                if "spawn_main" in " ".join(child.cmdline())
            ]
            os.kill(workers[0].pid, signal.SIGKILL)

    with pytest.raises(ChildProcessError, match="the same command goes on from where it was"):
        train_stages(workshop(few, tmp_path), Killing(), workers=2)


def test_a_worker_s_error_is_the_run_s(few, tmp_path):
    recipe = few.model_copy(update={"train": few.train.model_copy(update={"rate": 1e30})})
    shop = workshop(recipe, tmp_path)
    with pytest.raises(ArithmeticError, match="0-baseline: train: the loss became"):
        sweep._spread(shop, stages_of(recipe), small_runs.Silent(), 1)


def test_a_plan_tells_time_and_memory_and_writes_nothing(few, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "build", small_runs.tiny)
    recipe = few.model_copy(update={"seeds": (0, 1)})
    plan = exercise.plan(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [row.stage for row in plan.rows] == stages_of(recipe)
    for row in plan.rows:
        assert row.steps == 2 and row.epochs == 1 and not row.done
        assert row.seconds > row.steps * row.step_seconds > 0 and row.memory_bytes > 1e7
    assert plan.seconds == pytest.approx(sum(row.seconds for row in plan.rows))
    text = str(plan)
    for stage in stages_of(recipe):
        assert f"\n{stage.name} " in text
    assert "training: about" in text and "MB" in text


def test_a_plan_knows_what_is_done_and_workers(few, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "build", small_runs.tiny)
    shop = workshop(few, tmp_path)
    shop.run(Stage(0, ""), small_runs.Silent())
    one, two, many = (exercise.plan(few, tmp_path, workers=n) for n in (1, 2, 99))
    assert [row.done for row in one.rows] == [stage.chain == "" for stage in stages_of(few)]
    assert one.rows[0].seconds == 0 and "0-baseline  done" in str(one)
    of = {row.stage.chain: row.seconds for row in many.rows}
    assert many.seconds == pytest.approx(max(of["Q"], of["P"], of["D"] + of["DQ"]))
    assert two.memory_bytes > one.memory_bytes


def test_durations():
    shown = [duration(seconds) for seconds in (0.4, 99, 100, 5400, 36_000, 864_000)]
    assert shown == ["0 s", "99 s", "2 min", "90 min", "10.0 h", "10.0 days"]
