"""A run that is killed at any point goes on to the very same result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import killed_runs
import pytest
import small_runs
import torch

from sparseq.run import models
from sparseq.run.folder import Folder, Stage, stages_of

HERE = Path(__file__).parent
WANTED = small_runs.recipe(**killed_runs.RECIPE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the same run: never killed, and killed in each of the ways."""
    folder = tmp_path_factory.mktemp("killed")
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / "killed_runs.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("way", killed_runs.WAYS)
def test_a_killed_run_comes_to_the_same_result(runs, way):
    lives = json.loads((runs / "lives.json").read_text())[way]
    assert lives > len(stages_of(WANTED))
    assert small_runs.differences(runs / "never", runs / way, WANTED) == []
    left = {path.name for path in (runs / way / "stages").iterdir()}
    assert left == {"run.json", *(f"{stage.name}.pt" for stage in stages_of(WANTED))}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(models, "build", small_runs.tiny)
    torch.set_num_threads(1)
    return small_runs.recipe(variants=["Q"])


def test_finished_stages_are_not_trained_again(few, tmp_path):
    first, again, more = (small_runs.Silent() for _ in range(3))
    small_runs.trained(tmp_path, few, first)
    assert first.steps == 4 * killed_runs.STEPS and len(first.lines) == 2
    small_runs.trained(tmp_path, few, again)
    assert again.steps == 0 and again.skipped == first.steps and again.lines == []
    wider = few.model_copy(update={"variants": ("Q", "P"), "limit": 5.0})
    small_runs.trained(tmp_path, wider, more)  # what is there serves the wider recipe, too
    assert more.steps == 3 * killed_runs.STEPS


def test_another_recipe_or_other_data_is_refused(few, tmp_path, monkeypatch):
    small_runs.trained(tmp_path, few)
    prune = few.prune.model_copy(update={"sparsity": 0.5})
    other = few.model_copy(update={"prune": prune, "gradient_checkpointing": True})
    with pytest.raises(ValueError, match=r"another recipe: .*prune\.sparsity was 0\.8, is 0\.5"):
        small_runs.trained(tmp_path, other)
    monkeypatch.setattr(small_runs, "TRAIN", 64)
    with pytest.raises(ValueError, match=r"a run of other data; --fresh starts anew"):
        small_runs.trained(tmp_path, few)


def test_fresh_forgets(few, tmp_path):
    shop = small_runs.trained(tmp_path, few)
    with shop.folder.claim(few, shop.data, fresh=True):
        assert shop.read(Stage(0, "")) is None


def test_two_runs_do_not_share_a_folder(few, tmp_path):
    shop = small_runs.workshop(tmp_path, few)
    with (
        shop.folder.claim(few, shop.data),
        pytest.raises(ValueError, match="another run is at work"),
        Folder(tmp_path).claim(few, shop.data),
    ):
        pass


@pytest.mark.parametrize("content", [b"", b"PK no archive", None])
def test_a_damaged_state_is_named(few, tmp_path, content):
    shop = small_runs.trained(tmp_path, few)
    path = tmp_path / "stages" / "0-baseline.pt"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ValueError, match=r"0-baseline\.pt is damaged .*delete it"):
        shop.read(Stage(0, ""))


class Foreign:
    pass


def test_states_hold_no_pickled_objects(few, tmp_path):
    shop = small_runs.trained(tmp_path, few)
    torch.save({"format": 1, "done": Foreign}, tmp_path / "stages" / "0-baseline.pt")
    with pytest.raises(ValueError, match=r"0-baseline\.pt is damaged"):
        shop.read(Stage(0, ""))
