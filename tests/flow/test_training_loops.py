"""QAT in an unmodified loop: mixed precision, checkpointing, compile, EMA, resumption."""

import copy
import io

import loop_cases as cases
import pytest
import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from sparseq import calibrate, convert, testing
from sparseq.flow.prepare import input_quantizers
from sparseq.quant import FakeQuantize, freeze_observers

plans = pytest.mark.parametrize("plan", cases.PLANS)


def assert_same(a, b):
    assert list(a) == list(b)
    for name, value in a.items():
        testing.assert_equal(b[name], value, message=name)


# --- mixed precision ---


@plans
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(plan, dtype):
    model = cases.network(plan)
    optimizer, losses = cases.adam(model), []
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    x, y = cases.batch(0)
    for _ in range(25):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            out = model(x)
            assert out.dtype == dtype
            loss = F.cross_entropy(out, y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]
    for name, value in cases.state(model).items():
        assert value.dtype in (torch.float32, torch.int32, torch.int64), name
        assert bool(value.isfinite().all()), name
    fast, again = convert(model.eval())(x), model(x)
    assert float((fast - again).detach().abs().max()) < 0.02 * float(again.detach().abs().max())


def test_a_step_that_the_scaler_skips_changes_nothing_but_the_scale():
    model = cases.network()
    optimizer = cases.adam(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    x, y = cases.batch(0)
    cases.step(model, optimizer, x, y)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    grid = {n: q.scale.clone() for n, q in input_quantizers(model).items()}
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = F.cross_entropy(model(x), y) * 1e6  # more than float16 has room for
    scaler.scale(loss).backward()
    next(model.parameters()).grad.fill_(float("inf"))
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**15
    assert_same(before, {n: p.detach() for n, p in model.named_parameters()})
    assert_same(grid, {n: q.scale for n, q in input_quantizers(model).items()})


def test_a_batch_of_nan_leaves_the_grids():
    model = cases.network("moving")
    x, y = cases.batch(0)
    cases.step(model, cases.adam(model), x, y)
    grid = {n: q.scale.clone() for n, q in input_quantizers(model).items()}
    model(torch.full_like(x, float("nan")))
    assert_same(grid, {n: q.scale for n, q in input_quantizers(model).items()})


# --- gradient checkpointing ---


def checkpointed(block, x):
    return checkpoint(block, x, use_reentrant=False)


@plans
def test_checkpointing_is_the_plain_run(plan):
    """Recomputing sees the grids of the first pass, and moves no observer."""
    plain, again = cases.network(plan), cases.network(plan, checkpointed)
    optimizers = cases.adam(plain), cases.adam(again)
    for seed in range(5):
        x, y = cases.batch(seed)
        a = cases.step(plain, optimizers[0], x, y)
        b = cases.step(again, optimizers[1], x, y)
        testing.assert_equal(b, a)
        assert_same(cases.grads(plain), cases.grads(again))
        assert_same(cases.state(plain), cases.state(again))


def test_checkpointing_several_passes_before_one_backward():
    """Two micro-batches (or a layer that is called twice) are each repeated on their own grid."""
    plain, again = cases.network("moving"), cases.network("moving", checkpointed)
    for model in (plain, again):
        for seed in range(2):
            model(cases.batch(seed)[0])
        total = sum(F.cross_entropy(model(x), y) for x, y in map(cases.batch, (2, 3, 4)))
        total.backward()
    assert_same(cases.grads(plain), cases.grads(again))
    assert_same(cases.state(plain), cases.state(again))


# --- torch.compile ---


@plans
def test_compiled_training_steps_equal_eager_ones(plan):
    model = cases.network(plan)
    x, y = cases.batch(0)
    calibrate(model, [x])
    eager = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)  # no break, or it raises
    optimizers = cases.adam(eager), cases.adam(model)
    for seed in range(3):
        x, y = cases.batch(seed)
        a = cases.step(eager, optimizers[0], x, y)
        b = cases.step(compiled, optimizers[1], x, y)
        torch.testing.assert_close(b, a)
        for name, value in cases.grads(eager).items():
            torch.testing.assert_close(cases.grads(model)[name], value, msg=name)
    for (name, one), two in zip(
        input_quantizers(eager).items(), input_quantizers(model).values(), strict=True
    ):
        torch.testing.assert_close(two.scale, one.scale, msg=name)


def test_the_first_pass_compiles_whole_too():
    """Uncalibrated: the grid is set in the graph, and the second step compiles once more."""
    model = cases.network()
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model)(cases.batch(0)[0])
    assert explained.graph_break_count == 0


# --- averaged weights ---


@pytest.mark.parametrize("buffers", [True, False])
@plans
def test_ema(plan, buffers):
    model = cases.network(plan)
    calibrate(model, [cases.batch(0)[0]])
    average = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=buffers
    )
    optimizer = cases.adam(model)
    for seed in range(6):
        x, y = cases.batch(seed)
        cases.step(model, optimizer, x, y)
        average.update_parameters(model)
    x, _ = cases.batch(9)
    ema = average.module.eval()
    fast, wanted = convert(ema)(x), ema(x)
    assert float((fast - wanted).detach().abs().max()) < 0.02 * float(wanted.detach().abs().max())
    # a weight's grid is of the averaged weight
    for layer in (ema.first[0], ema.second[0], ema.head):
        quantizer = layer.parametrizations.weight[0]
        if not quantizer.spec.learned:
            _ = layer.weight
            reach = layer.parametrizations.weight.original.detach().flatten(1).abs().amax(1)
            torch.testing.assert_close(quantizer.scale, reach / 127)
    first, other = input_quantizers(ema)["head"], input_quantizers(model)["head"]
    if not buffers and not first.spec.learned:  # as it was when the average began
        assert not torch.equal(first.scale, other.scale)


# --- resumption, copies, accumulation ---


@plans
def test_resumption_is_bit_identical(plan):
    model = cases.network(plan)
    optimizer = cases.adam(model)
    for seed in range(3):
        cases.step(model, optimizer, *cases.batch(seed))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    other = cases.network(plan, seed=1)
    resumed = cases.adam(other)
    kept = torch.load(file, weights_only=True)
    other.load_state_dict(kept["model"])
    resumed.load_state_dict(kept["optimizer"])
    for seed in range(3, 6):
        x, y = cases.batch(seed)
        a = cases.step(model, optimizer, x, y)
        testing.assert_equal(cases.step(other, resumed, x, y), a)
        assert_same(cases.state(model), cases.state(other))


def test_resumption_keeps_frozen_observers():
    model = cases.network()
    model(cases.batch(0)[0])
    freeze_observers(model)
    other = cases.network()
    other.load_state_dict(model.state_dict())
    before = cases.state(other)
    other(cases.batch(5)[0])
    for name, value in cases.state(other).items():
        if "input_quantizer" in name:
            testing.assert_equal(value, before[name], message=name)


@plans
def test_deepcopy_is_independent(plan):
    model = cases.network(plan)
    optimizer = cases.adam(model)
    cases.step(model, optimizer, *cases.batch(0))
    twin = copy.deepcopy(model)
    before = cases.state(twin)
    cases.step(model, optimizer, *cases.batch(3))
    assert_same(before, cases.state(twin))
    # and it learns as the original did
    other = cases.network(plan)
    optimizer = cases.adam(other)
    cases.step(other, optimizer, *cases.batch(0))
    x, y = cases.batch(4)
    for one in (other, twin):
        one.zero_grad()
        F.cross_entropy(one(x), y).backward()
    assert_same(cases.grads(other), cases.grads(twin))


@plans
def test_gradient_accumulation(plan):
    """On settled grids two half batches give the gradient of the whole."""
    model = cases.network(plan)
    x, y = cases.batch(0)
    calibrate(model, [x])
    freeze_observers(model)
    F.cross_entropy(model(x), y).backward()
    whole = cases.grads(model)
    model.zero_grad()
    for part in (slice(0, 4), slice(4, 8)):
        (F.cross_entropy(model(x[part]), y[part]) / 2).backward()
    for name, value in cases.grads(model).items():
        if "input_quantizer" in name:
            # LSQ's factor 1 / sqrt(numel) is of the batch that passes: sqrt(2) as much
            value = value / 2**0.5 if plan == "learned" else value
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-6, msg=name)


def test_quantisers_have_no_state_beside_the_state_dict_but_for_checkpointing():
    """What a checkpoint would lose: anything new must be thought about."""
    quantizer = next(m for m in cases.network().modules() if isinstance(m, FakeQuantize))
    own = set(vars(quantizer)) - set(vars(torch.nn.Module()))
    settled = {"spec", "shape", "follow", "fits"}  # from the plan
    passing = {"enabled", "observing", "observer", "_used"}  # of a call or a schedule
    assert own - {"calibrated", "frozen"} <= settled | passing
