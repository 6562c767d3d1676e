import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparseq import ops, reference, testing

SCHEMES = {
    "tensor": ((), None, None),
    "one element": ((1,), None, None),
    "channel": ((6,), 1, None),
    "group": ((8, 3), None, 2),
}


def inputs(scheme, zero="float32", dtype=torch.float32):
    shape, axis, group_size = SCHEMES[scheme]
    x = (3 * torch.randn(8, 6)).to(dtype).requires_grad_()
    scale = (0.02 + 0.01 * torch.rand(shape)).requires_grad_()
    zero_point = {
        "none": None,
        "int32": torch.randint(-50, 50, shape, dtype=torch.int32),
        "float32": (20 * torch.randn(shape)).requires_grad_(),
    }[zero]
    return x, scale, zero_point, (axis, group_size)


def reference_gradients(grad, x, scale, zero_point, grouping, factor=1.0):
    args = [None if v is None else v.detach() for v in (x, scale, zero_point)]
    return reference.fake_quantize_learned_backward(grad, *args, -128, 127, *grouping, factor)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("zero", ["none", "int32", "float32"])
def test_only_x(isa, scheme, zero):
    x, scale, zero_point, grouping = inputs(scheme, zero)
    scale = scale.detach()
    zero_point = None if zero_point is None else zero_point.detach()
    y = ops.fake_quantize(x, scale, zero_point, -128, 127, *grouping)
    grad = torch.randn_like(y)
    y.backward(grad)
    wanted = reference.fake_quantize_backward(
        grad, x.detach(), scale, zero_point, -128, 127, *grouping
    )
    testing.assert_equal(x.grad, wanted)
    assert 0 < int((wanted == 0).sum()) < wanted.numel()  # some inside, some outside


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_scale(isa, scheme):
    x, scale, zero_point, grouping = inputs(scheme, "int32")
    x = x.detach()
    y = ops.fake_quantize(x, scale, zero_point, -128, 127, *grouping, grad_factor=0.25)
    grad = torch.randn_like(y)
    y.backward(grad)
    _, wanted, _ = reference_gradients(grad, x, scale, zero_point, grouping, 0.25)
    assert scale.grad.shape == scale.shape
    torch.testing.assert_close(scale.grad, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_three(isa, scheme):
    x, scale, zero_point, grouping = inputs(scheme)
    y = ops.fake_quantize(x, scale, zero_point, -128, 127, *grouping, grad_factor=0.25)
    grad = torch.randn_like(y)
    y.backward(grad)
    wanted = reference_gradients(grad, x, scale, zero_point, grouping, 0.25)
    testing.assert_equal(x.grad, wanted[0])
    torch.testing.assert_close(scale.grad, wanted[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(zero_point.grad, wanted[2], rtol=1e-5, atol=1e-5)
    assert bool(scale.grad.any()) and bool(zero_point.grad.any())


def test_learned_gradients_by_hand():
    """scale 0.5, zero point 1, integers [-4, 3]: three inside, one below, one above."""
    x = torch.tensor([0.3, -0.6, 0.75, -9.0, 9.0], requires_grad=True)
    scale, zero_point = torch.tensor(0.5, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    y = ops.fake_quantize(x, scale, zero_point, -4, 3)
    assert y.tolist() == [0.5, -0.5, 1.0, -2.5, 1.0]
    y.backward(torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0]))
    assert x.grad.tolist() == [1.0, 10.0, 100.0, 0.0, 0.0]
    # inside v - x / s: 1 - 0.6, -1 + 1.2, 2 - 1.5; outside -5 and 2
    wanted = 0.4 + 0.2 * 10 + 0.5 * 100 - 5 * 1000 + 2 * 10000
    assert float(scale.grad) == pytest.approx(wanted, rel=1e-6)
    assert float(zero_point.grad) == pytest.approx(-0.5 * (1000 + 10000), rel=1e-6)


def test_scale_and_zero_point_of_other_shapes_get_gradients_of_their_own_shape():
    x = torch.randn(10)
    scale = torch.tensor([[0.1]], requires_grad=True)
    zero_point = torch.tensor([2.0], requires_grad=True)
    ops.fake_quantize(x, scale, zero_point, -128, 127).sum().backward()
    assert scale.grad.shape == (1, 1) and zero_point.grad.shape == (1,)


def test_gradient_layout_follows_x():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = ops.fake_quantize(x, torch.rand(3) + 0.1, None, -127, 127, 1)
    y.backward(torch.ones(2, 3, 4, 5))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(4, 5, requires_grad=True)
    ops.fake_quantize(x, 0.01, None, -127, 127).sum().backward()  # an expanded gradient
    testing.assert_equal(x.grad, (x.detach().div(0.01).round().abs() <= 127).float())


def test_integers_carry_no_gradient():
    q = ops.quantize(torch.randn(4, requires_grad=True), 0.1, None, -127, 127)
    assert not q.requires_grad


def function(x, scale, zero_point, axis, group_size):
    y = ops.fake_quantize(x * 2, scale, zero_point, -128, 127, axis, group_size, grad_factor=0.5)
    return y.sin()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("zero", ["none", "float32"])
def test_compiled_equals_eager(scheme, zero):
    x, scale, zero_point, grouping = inputs(scheme, zero)
    leaves = [v for v in (x, scale, zero_point) if v is not None]
    y = function(x, scale, zero_point, *grouping)
    wanted = torch.autograd.grad(y.sum(), leaves)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    z = compiled(x, scale, zero_point, *grouping)
    testing.assert_equal(z, y)
    for got, exact in zip(torch.autograd.grad(z.sum(), leaves), wanted, strict=True):
        testing.assert_equal(got, exact)


def everything(x, scale):
    low, high = ops.minmax(x, 0)
    counts = ops.histogram(x, torch.full_like(scale, 2), 8, 0)
    q = ops.quantize(x, scale, 3, -8, 7, 0)
    packed = ops.pack_int4(q)
    q = ops.unpack_int4(packed, x.shape[1])
    y = ops.dequantize(q, scale, 3, axis=0)
    z = ops.int8_linear(q, q, scale, None, None, low)
    return y * 2 + high[:, None] + counts.amax(1, keepdim=True), z


def test_inductor_compiles_every_op_in_one_graph():
    x, scale = torch.randn(6, 9), torch.rand(6) + 0.1
    wanted = everything(x, scale)
    for got, exact in zip(torch.compile(everything, fullgraph=True)(x, scale), wanted, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-6, atol=1e-6)


def test_dynamic_shapes_compile_once():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, backend=backend)
    def f(x, scale):
        y = ops.fake_quantize(x, scale, None, -127, 127, 1)
        return y, ops.minmax(x, 1)[0], ops.histogram(x, 4.0, 16)

    scale = torch.rand(6) + 0.1
    for rows in (5, 9, 17):
        x = torch.randn(rows, 6)
        torch._dynamo.mark_dynamic(x, 0)
        y, low, counts = f(x, scale)
        testing.assert_equal(y, ops.fake_quantize(x, scale, None, -127, 127, 1))
        testing.assert_equal(low, x.amin(0))
        testing.assert_equal(counts, ops.histogram(x, 4.0, 16))
    assert len(graphs) == 1


def test_dynamic_convolution_and_groups_compile():
    torch._dynamo.reset()
    weight = torch.randint(-127, 128, (3, 2, 3, 3), dtype=torch.int8)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def f(x):
        q = ops.quantize(x, 0.1, None, -127, 127)
        y = ops.int8_conv2d(q, weight, torch.ones(3), padding=(1, 1), stride=(2, 1))
        return ops.fake_quantize(y.flatten(1), 0.1, None, -7, 7), y.shape

    for size in (6, 8, 11):
        x = torch.randn(2, 2, size, 4)
        torch._dynamo.mark_dynamic(x, 2)
        q = ops.quantize(x, 0.1, None, -127, 127)
        y = ops.int8_conv2d(q, weight, torch.ones(3), padding=(1, 1), stride=(2, 1))
        got, shape = f(x)
        assert shape == y.shape
        testing.assert_equal(got, ops.fake_quantize(y.flatten(1), 0.1, None, -7, 7))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 5)
        self.scale = nn.Parameter(torch.full((5,), 0.01))

    def forward(self, x):
        x = ops.fake_quantize(x, 0.05, 3, 0, 255)
        weight = ops.fake_quantize(self.layer.weight, self.scale, None, -127, 127, 0)
        return nn.functional.linear(x, weight, self.layer.bias)


@pytest.mark.parametrize("dynamic", [False, True])
def test_export_of_a_module(dynamic):
    net, x = Net().eval(), torch.randn(4, 6)
    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=64)}} if dynamic else None
    program = torch.export.export(net, (x,), dynamic_shapes=shapes)
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert targets.count("sparseq.fake_quantize.default") == 2
    batch = torch.randn(9, 6) if dynamic else x
    testing.assert_equal(program.module()(batch), net(batch))
    decomposed = program.run_decompositions()
    testing.assert_equal(decomposed.module()(batch), net(batch))


def test_export_of_integer_ops():
    class Integers(nn.Module):
        def forward(self, x, scale):
            return everything(x, scale)

    x, scale = torch.randn(6, 9), torch.rand(6) + 0.1
    program = torch.export.export(Integers(), (x, scale))
    for got, exact in zip(program.module()(x, scale), everything(x, scale), strict=True):
        testing.assert_equal(got, exact)


def test_autocast():
    """Under autocast a bfloat16 activation is quantised in its own dtype, a weight in float32."""
    net, x = Net(), torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x)
        again = ops.fake_quantize(y, 0.1, None, -127, 127)
    assert y.dtype == again.dtype == torch.bfloat16
    testing.assert_equal(
        again, reference.fake_quantize(y.detach(), torch.tensor(0.1), None, -127, 127)
    )
    again.sum().backward()
    assert net.layer.weight.grad.dtype == net.scale.grad.dtype == torch.float32
    assert bool(net.layer.weight.grad.any()) and bool(net.scale.grad.any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_gradients(dtype):
    x, scale, zero_point, grouping = inputs("channel", dtype=dtype)
    y = ops.fake_quantize(x, scale, zero_point, -128, 127, *grouping)
    grad = torch.randn_like(y)
    y.backward(grad)
    wanted = reference_gradients(grad, x, scale, zero_point, grouping)
    testing.assert_equal(x.grad, wanted[0])
    assert scale.grad.dtype == torch.float32
    torch.testing.assert_close(scale.grad, wanted[1], rtol=1e-5, atol=1e-4)


def test_checkpointing():
    net, x = Net(), torch.randn(4, 6)
    again = copy.deepcopy(net)
    y = net(x)
    y.square().sum().backward()
    z = checkpoint(again, x, use_reentrant=False)
    z.square().sum().backward()
    testing.assert_equal(z, y)
    for (name, a), b in zip(net.named_parameters(), again.parameters(), strict=True):
        testing.assert_equal(b.grad, a.grad, message=name)


def test_forward_saves_no_mask():
    """Backward recomputes from x: nothing but the inputs is kept."""
    x = torch.randn(1000, requires_grad=True)
    scale, saved = torch.tensor(0.02, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.fake_quantize(x, scale, None, -127, 127)
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), scale.data_ptr()}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("zero", ["none", "int32", "float32"])
def test_observed_has_the_gradients_of_fake_quantize(isa, scheme, zero):
    grads, grad = [], torch.randn(8, 6)
    x, scale, zero_point, grouping = inputs(scheme, zero)
    leaves = [t for t in (x, scale, zero_point) if t is not None and t.requires_grad]
    for op in (ops.fake_quantize, ops.fake_quantize_observed):
        y = op(x, scale, zero_point, -128, 127, *grouping, grad_factor=0.25)
        y, *ends = y if isinstance(y, tuple) else (y,)
        assert y.requires_grad and not any(end.requires_grad for end in ends)
        grads.append(torch.autograd.grad(y, leaves, grad))
    for got, wanted in zip(grads[1], grads[0], strict=True):
        testing.assert_equal(got, wanted)


def test_what_is_observed_joins_no_graph():
    x = torch.randn(5, requires_grad=True)
    y, low, high = ops.fake_quantize_observed(x, 0.1, None, -127, 127)
    (y.sum() + low * high * x.sum()).backward()
    testing.assert_equal(x.grad, 1 + (x.detach().min() * x.detach().max()).expand(5))


def test_observed_compiles():
    def step(x, scale):
        y, low, high = ops.fake_quantize_observed(x * 2, scale, None, -128, 127, grad_factor=0.5)
        return y.sin().sum(), low, high

    x, scale = torch.randn(8, 6, requires_grad=True), torch.tensor(0.03, requires_grad=True)
    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        loss, low, high = run(x, scale)
        results.append((loss.detach(), low, high, *torch.autograd.grad(loss, [x, scale])))
    for got, wanted in zip(*results, strict=True):
        testing.assert_equal(got, wanted)
