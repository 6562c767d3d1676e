"""Each pattern on its own: what it becomes, and its numbers."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from sparseq import NM, Layer, Plan, Quant, explain
from sparseq.lower import layerwise
from tests.lower.lowering import (
    BOTH,
    Chain,
    assert_all_in_programs,
    fast_of,
    lowered,
    ops_of,
    relative,
    rounded,
)

IMAGE = (2, 8, 7, 9)


def conv(inputs=8, outputs=8, kernel=3, **more):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **more)


def both(net, x, plan=BOTH):
    """The lowered network, its result and the layerwise one."""
    fast = lowered(net, x, plan)
    assert_all_in_programs(fast)
    with torch.inference_mode():
        return fast, fast(x), layerwise(fast)(x)


EXACT = {
    "conv relu conv": (
        Chain(lambda m, x: m.b(m.a(x).relu()), a=conv(), b=conv(stride=2)),
        ["map", "conv", "conv"],
    ),
    "depthwise": (
        nn.Sequential(conv(), nn.ReLU6(), conv(groups=8), nn.ReLU6(), conv(kernel=1)),
        ["map", "conv", "conv", "conv"],
    ),
    "max pool": (
        nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(3, 2, 1, ceil_mode=True), conv()),
        ["map", "conv", "max_pool", "conv"],
    ),
    "padding": (
        nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), conv(), nn.ReLU(), nn.ZeroPad2d(1), conv()),
        ["pad", "conv", "pad", "conv"],
    ),
    "concatenation": (
        Chain(
            lambda m, x: m.c(torch.cat([m.a(x).relu(), m.b(x).relu()], 1)),
            a=conv(outputs=5), b=conv(outputs=3), c=conv(),
        ),
        ["map", "conv", "conv", "concat", "conv"],
    ),
    "flattened image": (
        nn.Sequential(conv(outputs=4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(252, 5)),
        ["map", "conv", "conv"],
    ),
    "linear layers": (
        nn.Sequential(nn.Flatten(), nn.Linear(504, 6), nn.ReLU(), nn.Linear(6, 5)),
        ["map", "conv", "conv"],
    ),
    "pixels": (
        Chain(
            lambda m, x: m.b(m.a(x).permute(0, 2, 3, 1)).relu().permute(0, 3, 1, 2),
            a=conv(), b=nn.Linear(8, 6),
        ),
        ["map", "conv", "conv"],
    ),
    "rows": (
        Chain(
            lambda m, x: m.b(m.a(x).flatten(2).transpose(1, 2)), a=conv(), b=nn.Linear(8, 6)
        ),
        ["map", "conv", "conv"],
    ),
    "reshaped to rows": (
        Chain(
            lambda m, x: m.b(m.a(x).reshape(x.shape[0], 8, -1).permute(0, 2, 1)),
            a=conv(), b=nn.Linear(8, 6),
        ),
        ["map", "conv", "conv"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_patterns_that_round_no_more_than_their_layers(name):
    net, wanted = EXACT[name]
    fast, y, reference = both(net, torch.randn(IMAGE))
    assert ops_of(fast) == wanted
    assert torch.equal(y, reference)


STEMS = [(3, 3, 2, 1), (3, 7, 2, 3), (1, 5, 1, 0), (4, 4, 4, 0), (7, 3, 1, 1)]


@pytest.mark.parametrize(("channels", "kernel", "stride", "padding"), STEMS)
def test_stems_read_lines_as_channels(channels, kernel, stride, padding):
    net = nn.Sequential(nn.Conv2d(channels, 8, kernel, stride, padding), nn.ReLU(), conv())
    fast, y, reference = both(net, torch.randn(2, channels, 17, 22))
    stem = next(i for i in fast.assembled.programs[0].instructions if i.op == "conv")
    assert stem.get("columns") == kernel and ("pad" in ops_of(fast)) == (padding > 0)
    assert torch.equal(y, reference)


def test_wide_or_dilated_first_layers_stay_windows():
    for layer, x in (
        (conv(8), torch.randn(IMAGE)),
        (nn.Conv2d(3, 8, 3, dilation=2), torch.randn(1, 3, 9, 9)),
    ):
        fast, y, reference = both(nn.Sequential(layer, conv()), x)
        assert ops_of(fast) == ["map", "conv", "conv"] and torch.equal(y, reference)


def test_a_residual_is_read_on_its_layers_grid():
    net = Chain(lambda m, x: m.c((m.b(m.a(x).relu()) + x).relu()), a=conv(), b=conv(), c=conv())
    x = torch.randn(IMAGE)
    fast, y, reference = both(net, x)
    assert ops_of(fast) == ["map", "conv", "conv", "conv"]
    assert torch.equal(y, reference)  # x enters as float32: nothing was rounded
    fast = lowered(Block(), x)
    m = layerwise(fast)
    with torch.inference_mode():
        h = m.a(x).relu()
        wanted = m.d((m.c(m.b(h).relu()) + rounded(m.b, h)).relu())
        assert torch.equal(fast(x), wanted)
        assert not torch.equal(wanted, m(x))
    assert explain(fast).rows[2].program == "in program 1 + residual + relu -> u8"


@pytest.mark.parametrize("run", [lambda m, h: m.b(h) + m.s(h), lambda m, h: m.s(h) + m.b(h)])
def test_of_two_convolutions_that_are_added_the_larger_adds_the_pixels_of_the_other(run):
    net = Chain(
        lambda m, x: m.d(run(m, m.a(x)).relu()), a=conv(), b=conv(), s=conv(8, 8, 1), d=conv()
    )
    fast, y, reference = both(net, torch.randn(IMAGE))
    assert ops_of(fast) == ["map", "conv", "conv", "conv", "conv"]
    assert torch.equal(y, reference)
    fused = {row.name: row.program for row in explain(fast).rows}
    assert "residual" in fused["b"] and "residual" not in fused["s"]


class Block(nn.Module):
    """A residual block behind a layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = conv(), conv(), conv(), conv()

    def forward(self, x):
        h = self.a(x).relu()
        y = self.c(self.b(h).relu())
        y += h
        return self.d(y.relu())


def test_a_value_that_leaves_is_not_rounded():
    net = Chain(lambda m, x: (m.b(h := m.a(x).relu()), h), a=conv(), b=conv())
    x = torch.randn(IMAGE)
    fast = lowered(net, x)
    with torch.inference_mode():
        for got, wanted in zip(fast(x), layerwise(fast)(x), strict=True):
            assert torch.equal(got, wanted)


def test_a_value_with_two_grids_is_rounded_to_each():
    net = Chain(lambda m, x: m.b(h := m.a(x)) + m.c(h), a=conv(), b=conv(), c=conv())
    signed = Layer(weight=Quant(axis=0), input=Quant())
    fast, y, reference = both(net, torch.randn(IMAGE), Plan({"*": BOTH, "c": signed}))
    assert ops_of(fast) == ["map", "conv", "map", "conv", "map", "conv"]
    assert torch.equal(y, reference)


ACTIVATIONS = [nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.SiLU(),
               nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.Hardtanh(0.0, 6.0)]  # fmt: skip
FUNCTIONS = {
    "silu": functional.silu,
    "hardswish": functional.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "clamp": lambda x: x.clamp(0, 6),
    "relu in place": lambda x: functional.relu(x, inplace=True),
}


@pytest.mark.parametrize(
    "act", [*ACTIVATIONS, *FUNCTIONS.values()], ids=[*map(str, ACTIVATIONS), *FUNCTIONS]
)
def test_activations_are_part_of_their_layer(act):
    """Within 5e-7 of torch's before rounding; a value on the edge of a step may take the next."""
    module = {"act": act} if isinstance(act, nn.Module) else {}
    net = Chain(lambda m, x: m.b(act(m.a(x))), a=conv(), b=conv(), **module)
    if module:
        net.run = lambda m, x: m.b(m.act(m.a(x)))
    fast, y, reference = both(net, torch.randn(IMAGE))
    assert ops_of(fast) == ["map", "conv", "conv"]
    assert relative(y, reference) < 2e-3


CLOSE = {
    "squeeze and excite": (
        Chain(
            lambda m, x: m.d(
                (h := m.a(x).relu()) * m.c(m.b(h.mean((2, 3), True)).relu()).sigmoid()
            ),
            a=conv(), b=conv(8, 4, 1), c=conv(4, 8, 1), d=conv(),
        ),
        ["map", "conv", "adaptive", "conv", "conv", "mul", "conv"],
    ),
    "norm before its layer": (
        nn.Sequential(
            conv(), nn.BatchNorm2d(8), nn.AvgPool2d(3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), conv()
        ),
        ["map", "conv", "avg_pool", "map", "conv"],
    ),
    "adaptive pool": (
        nn.Sequential(
            conv(), nn.ReLU(), nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(48, 5)
        ),
        ["map", "conv", "adaptive", "conv"],
    ),
    "layer norm of an image": (
        Chain(
            lambda m, x: m.b(m.n(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
            a=conv(), n=nn.LayerNorm(8), b=conv(),
        ),
        ["map", "conv", "layer_norm", "conv"],
    ),
    "layer scale": (
        Chain(
            lambda m, x: m.b(m.a(x) * m.scale),
            a=conv(), b=conv(), scale=nn.Parameter(torch.rand(8, 1, 1)),
        ),
        ["map", "conv", "conv"],
    ),
    "arithmetic with numbers": (
        Chain(lambda m, x: m.b((1 - m.a(x) / 4) * 2 + 0.5), a=conv(), b=conv()),
        ["map", "conv", "conv"],
    ),
    "activation of a sum": (
        Chain(
            lambda m, x: m.c(functional.silu(m.a(x).relu() + m.b(x).relu())),
            a=conv(), b=conv(), c=conv(),
        ),
        ["map", "conv", "conv", "add", "conv"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSE)
def test_patterns_within_a_step_of_their_layers(name):
    """Float32 sums and functions in another order: a value on the edge of a step may differ."""
    net, wanted = CLOSE[name]
    fast, y, reference = both(net, torch.randn(IMAGE))
    assert ops_of(fast) == wanted
    assert relative(y, reference) < 2e-3


def test_24_weights_stay_24():
    from sparseq import ops

    plan = Layer(weight=Quant(axis=0), input=Quant(symmetric=False), sparsity=NM(2, 4))
    net = nn.Sequential(conv(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6))
    fast, _, _ = both(net, torch.randn(IMAGE), plan)
    segment = fast.assembled.module.program1
    tiles = [t for t in segment.constants if t.dtype == torch.uint8]
    assert [ops.tile_kind(t) for t in tiles] == [ops.tile_kind(m.tiles) for m in (fast[0], fast[4])]
    flat = nn.Sequential(conv(), nn.Flatten(), nn.Linear(504, 6))
    fast = lowered(flat, torch.randn(IMAGE), plan)  # 2:4 runs along the flattened pixels
    fast[2].use("int8 2:4")
    assert len(fast.assembled.programs) == 2


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Layer(weight=Quant(axis=0)), "no input quantiser in the plan"),
        (Layer(weight=Quant(axis=0), input=Quant(dynamic=True)), "no fixed grid"),
        (Layer(weight=Quant(axis=0, symmetric=False), input=Quant()), "zero points"),
        (Layer(weight=Quant(axis=0, group_size=36), input=Quant()), "group scales"),
        (Layer(weight=Quant(axis=0, signed=False), input=Quant()), "unsigned"),
    ],
)
def test_what_no_program_takes_says_why(layer, reason):
    net, x = nn.Sequential(conv(), nn.ReLU(), conv(), conv()), torch.randn(IMAGE)
    fast = lowered(net, x, Plan({"*": BOTH, "2": layer}))
    assert reason in explain(fast).rows[1].note and not explain(fast).rows[1].program
    assert [len(p.inputs) for p in fast.assembled.programs] == [1, 1]
    with torch.inference_mode():
        assert torch.equal(fast(x), layerwise(fast)(x))
    alone = fast_of(nn.Sequential(conv()), x, layer)
    assert alone.sparseq_unlowered in explain(alone).notes


def test_what_stays_in_float_is_told():
    net = Chain(
        lambda m, x: m.b(functional.softplus(m.a(x))) + m.c(x), a=conv(), b=conv(),
        c=nn.ConvTranspose2d(8, 8, 3, padding=1),
    )  # fmt: skip
    x = torch.randn(IMAGE)
    fast = lowered(net, x)
    text = str(explain(fast))
    assert "float32 between programs: softplus: a program has no such instruction" in text
    assert "in no program: a program has no ConvTranspose2d" in text
    with torch.inference_mode():
        assert torch.equal(fast(x), layerwise(fast)(x))
