"""QAT in an unmodified loop: mixed precision, checkpointing, compile, EMA, resumption."""

import copy
import io

import loop_cases as cases
import pytest
import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from sparseq import Plan, calibrate, convert, prepare, testing
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


def test_a_step_that_the_scaler_skips():
    model = cases.network()
    optimizer = cases.adam(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    x, y = cases.batch(0)
    cases.step(model, optimizer, x, y)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = F.cross_entropy(model(x).float() * 1e30, y) * 1e10
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**15
    assert_same(before, {n: p.detach() for n, p in model.named_parameters()})


@pytest.mark.parametrize("plan", ["minmax", "moving"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_batch_that_overflowed_leaves_the_grid(plan, value):
    """float16 overflows now and then; GradScaler skips the step, and the ranges must survive it."""
    model = cases.network(plan)
    x, y = cases.batch(0)
    cases.step(model, cases.adam(model), x, y)
    quantizer = input_quantizers(model)["first.0"]
    before = quantizer.scale.clone(), quantizer.observer.high.clone()
    x = x.clone()
    x[0, 0, 0, 0] = float(value)
    model(x)
    testing.assert_equal(quantizer.scale, before[0])
    testing.assert_equal(quantizer.observer.high, before[1])
    assert all(bool(v.isfinite().all()) for v in cases.state(model).values())


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


class Twice(torch.nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(self.block(x) * 3)


def test_checkpointing_a_layer_that_runs_twice():
    def network():
        torch.manual_seed(0)
        layer = torch.nn.Linear(6, 6)
        return prepare(Twice(layer), Plan({"*": cases.PLANS["moving"]}))

    plain, again = network(), network()
    for _ in range(2):
        x = torch.randn(4, 6)
        plain(x).square().sum().backward()
        checkpoint(again, x, use_reentrant=False).square().sum().backward()
        assert_same(cases.grads(plain), cases.grads(again))
        assert_same(cases.state(plain), cases.state(again))


def test_checkpointing_several_passes_before_one_backward():
    """Micro-batches are each repeated on their own grid."""
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
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=buffers)
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
    if not buffers and not first.spec.learned:  # torch then keeps them in step with the model's
        testing.assert_equal(first.scale, other.scale)


@pytest.mark.parametrize("buffers", [True, False])
def test_an_average_from_before_the_first_step_knows_its_grids(buffers):
    model = cases.network()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=buffers)
    optimizer = cases.adam(model)
    for seed in range(4):
        cases.step(model, optimizer, *cases.batch(seed))
        average.update_parameters(model)
    x, _ = cases.batch(9)
    converted = convert(average.module)(x)  # neither was ever called
    assert float((converted - average.module.eval()(x)).detach().abs().max()) < 0.05
    with pytest.raises(RuntimeError, match="no range yet"):
        cases.network().eval()(x)


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
    passing = {"enabled", "observing", "observer", "_passes"}  # of a call or a schedule
    assert own - {"calibrated", "frozen"} <= settled | passing
