"""DDP and FSDP2 on two gloo ranks, beside one process that sees all the data."""

import os
import subprocess
import sys
from pathlib import Path

import loop_cases as cases
import pytest
import ranks
import torch
from torch.nn.functional import cross_entropy

from sparseq import calibrate, testing

HERE = Path(__file__).parent
plans = pytest.mark.parametrize("plan", cases.PLANS)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of the two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(HERE / "ranks.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def alone(plan, calibrated=False):
    """The same steps in one process, on whole batches."""
    model = cases.network(plan)
    if calibrated:
        calibrate(model, [cases.batch(0)[0]])
    optimizer, gradients = torch.optim.SGD(model.parameters(), 0.05), []
    for seed in range(ranks.STEPS):
        x, y = cases.batch(seed, 2 * ranks.HALF)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        gradients.append(cases.grads(model))
        optimizer.step()
    return model, gradients


def assert_ranks_agree(one, two, path=""):
    if isinstance(one, torch.Tensor):
        testing.assert_equal(two, one, message=path)
    else:
        pairs = one.items() if isinstance(one, dict) else enumerate(one)
        for key, value in pairs:
            assert_ranks_agree(value, two[key], f"{path} {key}")


@plans
def test_ddp_ranks_agree(both, plan):
    assert_ranks_agree(both[0][f"ddp {plan}"], both[1][f"ddp {plan}"])


@plans
def test_ddp_is_one_process_on_all_data(both, plan):
    model, gradients = alone(plan)
    found = both[0][f"ddp {plan}"]
    if plan != "learned":  # whose gradient has LSQ's 1 / sqrt(numel) of a rank's batch
        for step, wanted in zip(found["grads"], gradients, strict=True):
            for name, value in wanted.items():
                torch.testing.assert_close(step[name], value, rtol=1e-3, atol=1e-5, msg=name)
    wanted = ranks.grids(model)
    for index, value in enumerate(wanted["first.0"]):  # reads the data themselves
        if plan in ("minmax", "moving"):
            testing.assert_equal(found["grids"]["first.0"][index], value)
    for name, (scale, *_) in wanted.items():
        torch.testing.assert_close(found["grids"][name][0], scale, rtol=1e-2, atol=0, msg=name)


@pytest.mark.parametrize("observer", ranks.OBSERVERS)
def test_calibrate_with_uneven_batches(both, observer):
    """Ranks agree; of extremes, one process on all batches gives the same."""
    name = f"calibrate {observer}"
    assert_ranks_agree(both[0][name], both[1][name])
    model = ranks.observed(observer)
    sizes = [(0, 8), (1, 3), (2, 5), (3, 6)]
    calibrate(model, [cases.batch(seed, size)[0] for seed, size in sizes])
    for layer, (scale, zero_point) in ranks.grids(model).items():
        got = both[0][name]["grids"][layer]
        if observer == "minmax":
            testing.assert_equal(got[0], scale, message=layer)
            testing.assert_equal(got[1], zero_point, message=layer)
        elif observer != "moving_average":  # which depends on the order of batches
            torch.testing.assert_close(got[0], scale, rtol=0.1, atol=0, msg=layer)


@plans
def test_fsdp_is_one_process_on_all_data(both, plan):
    model, gradients = alone(plan, calibrated=True)
    one, two = both[0][f"fsdp {plan}"], both[1][f"fsdp {plan}"]
    assert_ranks_agree(one, two)
    # LSQ's factor for an input is 1 / sqrt(numel) of a rank's batch, not of the whole
    steps = 1 if plan == "learned" else ranks.STEPS
    for step, wanted in zip(one["grads"][:steps], gradients[:steps], strict=True):
        for name, value in wanted.items():
            if plan != "learned" or "input_quantizer" not in name:
                torch.testing.assert_close(step[name], value, rtol=1e-3, atol=1e-5, msg=name)
    before = dict(cases.network(plan).named_parameters())
    for name, value in model.named_parameters():
        got = one["state"][name]
        if plan != "learned":
            torch.testing.assert_close(got, value, rtol=2e-2, atol=1e-3, msg=name)
        moved = before[name].detach().reshape(got.shape)
        assert not torch.equal(got, moved), name  # scales too: learned, not left at 1


def test_learned_scales_must_be_calibrated_before_they_are_sharded(both):
    assert "calibrate" in both[0]["uncalibrated"]
