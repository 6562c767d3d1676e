"""A schedule's state, its geometric curve, and blocks in it."""

import copy
import io
import itertools

import pytest
import torch
from torch import nn

from sparseq import Block, Layer, Plan, Unstructured, prepare, testing
from sparseq.sparse import PruningSchedule, masks_of


def pruned(spec=None):
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    return prepare(model, Plan({"*": Layer(sparsity=spec or Unstructured(0.8))}))


def train(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_geometric_keeps_the_same_share_each_time(start):
    model = pruned(Unstructured(0.9))
    schedule = PruningSchedule(model, 4, "geometric", start)
    left = [1 - start]
    for _ in range(4):
        schedule.step()
        left.append(1 - schedule.sparsity)
    share = (0.1 / (1 - start)) ** 0.25
    assert all(abs(b - a * share) < 1 / 144 for a, b in itertools.pairwise(left))
    assert schedule.sparsity == round(0.9 * 144) / 144


@pytest.mark.parametrize("curve", ["cubic", "linear", "geometric"])
def test_blocks_rise_too(curve):
    model = pruned(Block(2, 4, 0.75))
    schedule = PruningSchedule(model, 3, curve)
    before = 0.0
    while not schedule.done:
        train(model, schedule.taken)
        schedule.step()
        assert schedule.sparsity > before
        before = schedule.sparsity
        for mask, _ in masks_of(model):
            blocks = mask.mask.unflatten(1, (-1, 4)).unflatten(0, (-1, 2)).sum(dim=(1, 3))
            assert set(blocks.unique().tolist()) <= {0, 8}
    assert schedule.sparsity == round(0.75 * 18) / 18


@pytest.mark.parametrize("model_first", [True, False])
def test_going_on_gives_what_going_through_gives(model_first):
    through = pruned()
    schedule = PruningSchedule(through, 5)
    for seed in range(2):
        schedule.step()
        train(through, seed)
    file = io.BytesIO()
    torch.save({"model": through.state_dict(), "schedule": schedule.state_dict()}, file)
    for seed in range(2, 6):
        schedule.step()
        train(through, seed)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = pruned()
    if model_first:
        resumed.load_state_dict(state["model"])
    again = PruningSchedule(resumed, 5)  # starts the masks over
    if not model_first:
        resumed.load_state_dict(state["model"])
    again.load_state_dict(state["schedule"])
    assert again.taken == 2
    for seed in range(2, 6):
        again.step()
        train(resumed, seed)
    for key, value in through.state_dict().items():
        testing.assert_equal(resumed.state_dict()[key], value)


def test_a_finished_schedule_loaded_again_changes_nothing():
    model = pruned(Unstructured(0.5, criterion="random"))
    schedule = PruningSchedule(model, 1)
    schedule.step()
    state = copy.deepcopy(model.state_dict())
    again = PruningSchedule(model, 1)
    again.load_state_dict(schedule.state_dict() | {"masks": {k: v for k, v in _masks(state)}})
    again.step()
    schedule.step()
    for key, value in model.state_dict().items():
        testing.assert_equal(value, state[key])


def _masks(state):
    for key, value in state.items():
        if key.endswith(".mask"):
            yield key.partition(".")[0], value


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": 4}, "state must be of a schedule with steps = 3, got 4"),
        ({"curve": "linear"}, "a schedule with curve = 'cubic', got 'linear'"),
        ({"start": 0.5}, "a schedule with start = 0.0, got 0.5"),
        ({"taken": 4}, "state must have taken from 0 to 3, got 4"),
        ({"taken": None}, "got None"),
        ({"masks": {"0": torch.ones(12, 8, dtype=torch.bool)}}, "must hold a mask of each layer"),
    ],
)
def test_another_schedules_state(change, text):
    model = pruned()
    schedule = PruningSchedule(model, 3)
    schedule.step()
    before = schedule.state_dict()
    with pytest.raises(ValueError, match=text):
        schedule.load_state_dict({**before, **change})
    assert schedule.taken == 1
    testing.assert_equal(schedule.state_dict()["masks"]["2"], before["masks"]["2"])
