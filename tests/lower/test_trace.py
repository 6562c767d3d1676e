"""Tracing: control flow by shape, writes in place, modules that cannot be looked into."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import sparseq
from sparseq import Layer, Plan, Quant, explain
from sparseq.lower import layerwise
from sparseq.lower.trace import Traced, trace
from tests.lower.lowering import Chain, assert_all_in_programs, fast_of, lowered

X = (2, 8, 6, 6)


def conv():
    return nn.Conv2d(8, 8, 3, padding=1)


def by_layers(fast, *inputs):
    with torch.inference_mode():
        return all(torch.equal(fast(x), layerwise(fast)(x)) for x in inputs)


def test_decisions_by_shape_hold_or_the_layers_run():
    def forward(m, x):
        h = m.a(x)
        return m.b(h) if x.shape[-1] > 4 and len(x.shape) == 4 and h.dim() == 4 else h

    fast = lowered(Chain(forward, a=conv(), b=conv()), torch.randn(X))
    assert_all_in_programs(fast)
    small = torch.randn(1, 8, 3, 3)
    assert by_layers(fast, torch.randn(X), torch.randn(3, 8, 5, 9), small)
    assert torch.equal(fast(small), fast.a(small))


def test_sizes_do_not_take_results_out_of_a_program():
    def forward(m, x):
        h = m.a(x).flatten(2).transpose(1, 2)
        y = m.b(m.n(h))
        n, length, channels = y.shape
        return y.reshape(n, length, 2, channels // 2)

    fast = lowered(Chain(forward, a=conv(), n=nn.LayerNorm(8), b=nn.Linear(8, 4)), torch.randn(X))
    assert [len(p.outputs) for p in fast.assembled.programs] == [1]
    with torch.inference_mode():
        x = torch.randn(3, 8, 5, 7)
        torch.testing.assert_close(fast(x), layerwise(fast)(x), rtol=0, atol=0.05)


def last_marked(m, x):
    """Of each sequence the row of the greatest mark, as text encoders pool."""
    rows = m.a(x)
    return m.b(rows[torch.arange(rows.shape[0]), rows[..., 0].argmax(-1)])


def test_values_that_decide_are_the_examples():
    x = torch.randn(3, 5, 8)
    layers = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 4)}
    fast = lowered(Chain(last_marked, **layers), x)
    assert len(fast.assembled.programs) == 2 and by_layers(fast, x, torch.randn(2, 4, 8))

    def positive(m, x):
        h = m.a(x)
        return m.b(h.relu() if (h.abs() + 1).sum().item() > 0 else h)

    fast = lowered(Chain(positive, a=conv(), b=conv()), torch.randn(X))
    assert fast.assembled is not None and by_layers(fast, torch.randn(X))


def test_sizes_as_numbers():
    def forward(m, x):
        return m.b(m.a(x) / x.shape[2:].numel())

    fast = lowered(Chain(forward, a=conv(), b=conv()), torch.randn(X))
    assert_all_in_programs(fast)


WRITES = {
    "residual": lambda m, x: (h := m.a(x)).relu_() + m.b(h),
    "read before": lambda m, x: m.b((h := m.a(x)) + (h * 2).relu_()),
    "read after": lambda m, x: (m.b(h := m.a(x)), functional.softplus(h), h.mul_(2))[1] + h,
    "the input": lambda m, x: m.b(x.clone()) + functional.elu(x.clone(), inplace=True) + m.a(x),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes_in_place(name):
    x = torch.randn(X)
    fast = lowered(Chain(WRITES[name], a=conv(), b=conv()), x)
    kept = x.clone()
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), layerwise(fast)(x), rtol=0, atol=0.05)
    assert torch.equal(x, kept)


class Moody(nn.Module):
    """Decides by values."""

    def __init__(self):
        super().__init__()
        self.inner = conv()
        nn.init.constant_(self.inner.bias, 1.0)

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else x


def test_a_module_that_cannot_be_traced_is_one_node():
    first = conv()
    nn.init.constant_(first.bias, 3.0)  # calibration sees the layer inside
    fast = lowered(nn.Sequential(first, Moody(), conv()), torch.randn(X))
    assert by_layers(fast, torch.randn(X), *(v * torch.ones(X) for v in (9.0, -9.0)))
    assert "Moody: torch.fx cannot trace it (TraceError" in str(explain(fast))
    assert [row.program != "" for row in explain(fast).rows] == [True, False, True]


def test_a_model_that_cannot_be_traced_runs_by_layers():
    fast = fast_of(Moody(), torch.rand(X))
    assert type(fast) is Moody and "torch.fx cannot trace it" in explain(fast).notes[-1]


def test_tensors_made_on_the_way_are_kept():
    table = torch.randn(8, 1, 1)
    x = torch.randn(X)
    fast = lowered(Chain(lambda m, x: m.b(m.a(x) * table), a=conv(), b=conv()), x)
    assert len(fast.assembled.programs) == 1
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), layerwise(fast)(x), rtol=0, atol=0.05)


@pytest.mark.parametrize("quantised", [False, True])
def test_no_layer_runs_on_values(quantised):
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    ).eval()
    example = torch.randn(2, 4, 8, 8)
    if quantised:
        prepared = sparseq.prepare(model, Plan({"*": Layer(Quant(axis=0), Quant())}))
        model = sparseq.convert(sparseq.calibrate(prepared, [example]))
    devices = []
    for layer in model.modules():
        if layer._parameters or layer._buffers:
            layer.register_forward_hook(lambda m, a, y: devices.append(y.device.type))
    traced = trace(model, example)
    assert isinstance(traced, Traced)
    assert set(devices) == {"meta"}
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    assert calls[0].meta["shape"] == (2, 8, 6, 6)
    assert calls[-1].meta["shape"] == (2, 5)


def test_a_layer_that_has_no_meta_kernel_runs_on_values(monkeypatch):
    ran = []

    def forward(self, x):
        if x.device.type == "meta":
            raise NotImplementedError
        ran.append(x.shape)
        return functional.linear(x, self.weight, self.bias)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    traced = trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(2, 4))
    assert isinstance(traced, Traced)
    assert ran == [(2, 4)]


def test_the_example_is_not_changed():
    x = torch.randn(X)
    kept = x.clone()
    assert isinstance(trace(Chain(lambda m, x: x.relu_() * 2), x), Traced)
    assert torch.equal(x, kept)


def test_layers_called_twice():
    fast = lowered(Chain(lambda m, x: m.a(m.a(x).relu()), a=conv()), torch.randn(X))
    assert explain(fast).rows[0].program.count("in program 1") == 2
    assert by_layers(fast, torch.randn(X))
