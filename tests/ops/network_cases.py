"""Programs made at random, with constants and inputs that fit them."""

from dataclasses import replace
from typing import NamedTuple

import torch
from hypothesis import strategies as st

from sparseq import ops
from sparseq.program import (
    ACTIVATIONS,
    OPS,
    Grid,
    Instruction,
    Program,
    result_shape,
    shapes,
    tensor_shape,
    windows,
)

SPECIAL = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-40, 3e38])


class Case(NamedTuple):
    program: Program
    constants: list
    inputs: list


def float32(value):
    return torch.tensor(value).item()


@st.composite
def grids(draw):
    low, high = sorted(draw(st.sets(st.integers(0, 255), min_size=2, max_size=2)))
    if draw(st.booleans()):
        low, high = 0, 255
    scale = draw(st.sampled_from([0.01, 0.0371, 2**-4, 0.3]))
    return Grid(float32(scale), draw(st.integers(low, high)), low, high)


class Maker:
    """Draws instructions one after the other; knows the shape and grid of each value."""

    def __init__(self, draw):
        self.draw = draw
        self.random = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
        self.special = draw(st.integers(0, 4)) == 0
        self.forms, self.inputs, self.constants, self.instructions = [], [], [], []
        self.found, self.grids = [], []

    def whole(self, least, most):
        return self.draw(st.integers(least, most))

    def of(self, values):
        return self.draw(st.sampled_from(list(values)))

    def floats(self, *shape, scale=1.0):
        return torch.randn(*shape, generator=self.random) * scale

    def add_input(self, form, shape):
        x = self.floats(*tensor_shape(form, shape), scale=3.0)
        if self.special and x.numel():
            place = torch.randint(x.numel(), (len(SPECIAL),), generator=self.random)
            x.view(-1)[place] = SPECIAL
        if form == "image" and self.draw(st.booleans()):
            x = x.contiguous(memory_format=torch.channels_last)
        self.forms.append(form)
        self.inputs.append(x)
        self.found.append(shape)
        self.grids.append(None)

    def keep(self, *tensors):
        self.constants += tensors
        return tuple(range(len(self.constants) - len(tensors), len(self.constants)))

    def append(self, i):
        if "activation" in OPS[i.op][2] and self.draw(st.booleans()):
            i = replace(i, attributes={**i.attributes, "activation": self.of(ACTIVATIONS)})
        if i.op == "pad" and self.draw(st.booleans()):
            i = replace(i, grid=self.grids[i.inputs[0]])
        elif i.grid is None and self.whole(0, 3):
            i = replace(i, grid=self.draw(grids()))
        weight = self.constants[i.constants[0]].shape if i.op == "conv" else None
        self.instructions.append(i)
        self.found.append(result_shape(i, [self.found[v] for v in i.inputs], weight))
        self.grids.append(i.grid)

    def window(self, sizes, least=1, pool=True):
        """Kernel, stride, padding and dilation that fit sizes."""
        kernel, stride, dilation = ([self.whole(1, most) for _ in sizes] for most in (4, 3, 2))
        kernel = [max(k, least) for k in kernel]
        padding = []
        for d, size in enumerate(sizes):
            padding.append(self.whole(0, kernel[d] // 2 if pool else 2))
            if windows(size, kernel[d], 1, padding[d], dilation[d], False) < 1:
                kernel[d], padding[d] = 1, 0
        return {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}

    def affine(self, v):
        c = self.found[v][3]
        return self.keep(self.floats(c), self.floats(c)) if self.draw(st.booleans()) else ()

    def map(self, v):
        self.append(Instruction("map", (v,), None, self.affine(v)))

    def layer_norm(self, v):
        attributes = {"eps": self.of([1e-5, 1e-3, 0.5])}
        self.append(Instruction("layer_norm", (v,), None, self.affine(v), attributes))

    def conv(self, v):
        if self.grids[v] is None:
            self.append(Instruction("map", (v,), self.draw(grids())))
            v = len(self.found) - 1
        _, height, width, c = self.found[v]
        columns = self.of([k for k in (1, 2, 3) if k <= width])
        if self.draw(st.booleans()):  # as in a residual block
            columns, kernel = 1, [self.of([1, 3]), self.of([1, 3])]
            window = {"padding": [k // 2 for k in kernel]}
            outputs, groups = c, self.of([1, c])
        else:
            window = self.window((height, width - columns + 1), pool=False)
            kernel = window.pop("kernel")
            if columns > 1:
                kernel[1] = 1
            groups = self.of([g for g in range(1, c + 1) if c * columns % g == 0])
            outputs = groups * self.whole(1, 20 // groups or 1)
        depth = c * columns // groups
        weight = torch.randint(-128, 128, (outputs, depth, *kernel), generator=self.random)
        weight = weight.to(torch.int8)
        if self.draw(st.booleans()):
            weight = weight * ops.mask_24(weight.float())
        scale = 0.1 / (weight[0].numel() ** 0.5 * 74)
        multiplier = torch.rand(outputs, generator=self.random) * scale
        bias = [self.floats(outputs)] if self.draw(st.booleans()) else []
        constants = self.keep(weight, ops.int8_tiles(weight, groups), multiplier, *bias)
        attributes = {**window, "groups": groups, "columns": columns}
        i = Instruction("conv", (v,), None, constants, attributes)
        result = result_shape(i, [self.found[v]], weight.shape)
        residuals = [r for r, shape in enumerate(self.found) if shape == result]
        if residuals and self.draw(st.booleans()):
            i = replace(i, inputs=(v, self.of(residuals)))
        self.append(i)

    def max_pool(self, v):
        window = self.window(self.found[v][1:3])
        self.append(
            Instruction("max_pool", (v,), None, (), {**window, "ceil": self.whole(0, 1) > 0})
        )

    def avg_pool(self, v):
        window = self.window(self.found[v][1:3])
        for d, size in enumerate(self.found[v][1:3]):
            if size + 2 * window["padding"][d] < window["kernel"][d]:
                window["kernel"][d], window["padding"][d] = 1, 0
        del window["dilation"]
        flags = {"ceil": self.whole(0, 1) > 0, "include_pad": self.whole(0, 1) > 0}
        attributes = {**window, **flags, "divisor": self.of([0, 0, 1, 5])}
        self.append(Instruction("avg_pool", (v,), None, (), attributes))

    def adaptive(self, v):
        size = self.of([[1, 1], [self.whole(1, 8), self.whole(1, 8)]])
        self.append(Instruction("adaptive", (v,), None, (), {"size": size}))

    def pad(self, v):
        self.append(
            Instruction("pad", (v,), None, (), {"around": [self.whole(0, 2) for _ in "tblr"]})
        )

    def binary(self, op, v):
        n, h, w, c = self.found[v]
        fit = [
            y
            for y, (n2, h2, w2, c2) in enumerate(self.found)
            if c2 == c and n2 in (1, n) and (h2, w2) in ((1, 1), (h, w))
        ]
        if self.draw(st.booleans()) and (h, w) != (1, 1):  # as squeeze and excitation does
            self.append(Instruction("adaptive", (v,), None, (), {"size": [1, 1]}))
            fit = [len(self.found) - 1]
        elif self.draw(st.booleans()):
            fit = [y for y in fit if self.found[y] != self.found[v]] or fit
        self.append(Instruction(op, (v, self.of(fit))))

    def add(self, v):
        self.binary("add", v)

    def mul(self, v):
        self.binary("mul", v)

    def concat(self, v):
        fit = [y for y, shape in enumerate(self.found) if shape[:3] == self.found[v][:3]]
        others = [self.of(fit) for _ in range(self.whole(0, 2))]
        self.append(Instruction("concat", (v, *others)))

    def attention(self, v):
        n = self.found[v][0]
        if self.grids[v] is not None:
            self.append(Instruction("map", (v,)))
            self.instructions[-1] = replace(self.instructions[-1], grid=None)
            self.grids[-1] = None
            v = len(self.found) - 1
        fit = [y for y, s in enumerate(self.found) if s[0] == n and self.grids[y] is None]
        key = self.of(fit)
        values = [y for y in fit if self.found[y][1:3] == self.found[key][1:3]]
        read = (v, key, self.of(values))
        most = min(self.found[y][3] for y in read)
        heads = self.of([1, 2, 3, 4])
        width = heads * self.whole(1, most // heads) if heads <= most else most
        heads = heads if heads <= most else 1
        first = [self.whole(0, self.found[y][3] - width) for y in read]
        attributes = {"heads": heads, "width": width, "scale": self.of([0.25, 1.0, -0.5])}
        attributes |= {"causal": self.draw(st.booleans()), "first": first}
        self.append(Instruction("attention", read, None, (), attributes))

    def case(self):
        last = len(self.found) - 1
        outputs = []
        for v in {last, self.whole(0, last), self.whole(0, last)}:
            flat = ["vector"] if self.found[v][1:3] == (1, 1) else []
            outputs.append((v, self.of(["image", "pixels", "rows", *flat])))
        program = Program(tuple(self.forms), tuple(self.instructions), tuple(outputs))
        given, kept = ([t.shape for t in tensors] for tensors in (self.inputs, self.constants))
        assert shapes(program, given, kept) == self.found
        return Case(program, self.constants, self.inputs)


@st.composite
def cases(draw, op=None):
    """A program of a few instructions; or of one op, and of what it needs."""
    maker = Maker(draw)
    channels = maker.of([1, 3, 4, 8, 16, 17, 20, 33])
    images = maker.of([1, 1, 2, 3, 0])
    height, width = maker.whole(1, 9), maker.whole(1, 9)
    maker.add_input("image", (images, height, width, channels))
    if draw(st.booleans()):
        form = maker.of(["pixels", "pixels", "rows", "vector"])
        if form != "pixels":
            height, width = 1, maker.whole(1, 9) if form == "rows" else 1
        images = maker.of([images, 1])  # which a sum or product repeats
        maker.add_input(form, (images, height, width, maker.of([channels, channels, 5])))
    for _ in range(maker.whole(1, 8) if op is None else 1):
        if draw(st.booleans()):
            maker.map(len(maker.found) - 1)
        getattr(maker, op or maker.of(OPS))(maker.whole(0, len(maker.found) - 1))
    return maker.case()


def small_network():
    """A stem on a grid, a residual block, and a classifier: what a lowered model is like."""
    grid = Grid(2**-5, 100)
    weight = torch.randint(-128, 128, (8, 3, 3, 3), dtype=torch.int8)
    block = torch.randint(-128, 128, (8, 8, 3, 3), dtype=torch.int8)
    head = torch.randint(-128, 128, (5, 8, 1, 1), dtype=torch.int8)
    constants = []
    for w in (weight, block, head):
        constants += [w, ops.int8_tiles(w), torch.rand(len(w)) / 5000, torch.randn(len(w))]
    same = {"padding": [1, 1], "activation": "relu"}
    instructions = (
        Instruction("map", (0,), grid),
        Instruction("conv", (1,), grid, (0, 1, 2, 3), {**same, "stride": [2, 2]}),
        Instruction("conv", (2, 2), grid, (4, 5, 6, 7), same),
        Instruction("adaptive", (3,), grid, (), {"size": [1, 1]}),
        Instruction("conv", (4,), None, (8, 9, 10, 11)),
    )
    program = Program(("image",), instructions, ((5, "vector"), (3, "image")))
    return Case(program, constants, [torch.randn(2, 3, 9, 11)])
