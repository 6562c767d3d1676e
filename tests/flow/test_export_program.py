"""A converted model as a program: torch.export, torch.compile, AOTInductor; the same numbers."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Quant, testing

INT8 = Layer(weight=Quant(axis=0), input=Quant(symmetric=False))
SPARSE = Layer(weight=Quant(axis=0), input=Quant(symmetric=False), sparsity=NM(2, 4))
INT4 = Layer(weight=Quant(bits=4, axis=0, group_size=8))


class Network(nn.Module):
    """Convolutions with a depthwise one and a residual, and linear layers of every kind."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.sparse = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 32)
        self.packed = nn.Linear(32, 12)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = torch.nn.functional.relu(self.sparse(self.depthwise(x).relu()) + x)
        return self.packed(self.fc(x.mean((2, 3))).relu())


@pytest.fixture(scope="module")
def fast():
    torch.manual_seed(0)
    plan = Plan({"*": INT8, "sparse": SPARSE, "packed": INT4})
    model = sparseq.prepare(Network(), plan)
    sparseq.calibrate(model, [torch.randn(8, 3, 9, 7)])
    return sparseq.convert(model)


@pytest.fixture(scope="module")
def program(fast):
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        return torch.export.export(fast, (torch.randn(2, 3, 9, 7),), dynamic_shapes=({0: batch},))


def inputs(count):
    return torch.randn(count, 3, 9, 7, generator=torch.Generator().manual_seed(count))


def test_the_kinds_of_layers(fast):
    kernels = {name: m.kernel for name, m in fast.named_modules() if hasattr(m, "kernel")}
    assert kernels == {
        "stem": "int8",
        "depthwise": "int8 depthwise",
        "sparse": "int8 2:4",
        "fc": "int8",
        "packed": "int4",
    }


@pytest.mark.parametrize("count", [1, 2, 7])
def test_exported_program(fast, program, count):
    testing.assert_equal(program.module()(inputs(count)), fast(inputs(count)))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    ops = {f"sparseq.{name}.default" for name in ("int8_conv2d", "int8_linear", "int4_linear")}
    assert ops <= called


SCRIPT = """
import sys, torch, sparseq
program = torch.export.load(sys.argv[1])
x, wanted = torch.load(sys.argv[2], weights_only=True)
assert torch.equal(program.module()(x), wanted)
"""


def test_a_saved_program_runs_in_another_process(fast, program, tmp_path):
    """The other process runs on a lowered ISA: the tiles in the file are not for it."""
    torch.export.save(program, tmp_path / "model.pt2")
    torch.save((inputs(3), fast(inputs(3))), tmp_path / "data.pt")
    command = [sys.executable, "-c", SCRIPT, tmp_path / "model.pt2", tmp_path / "data.pt"]
    for environment in ({}, {"SPARSEQ_ISA": "scalar"}):
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
        assert done.returncode == 0, done.stderr[-2000:]


def test_rows_on_their_own_ranges():
    torch.manual_seed(0)
    linear = nn.Linear(24, 10)
    # in a container: torch 2.14 cannot export a root module whose buffers are None
    layer = nn.Sequential(sparseq.nn.SparseQuantLinear.from_float(linear))
    x = torch.randn(5, 24)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (x[:2],), dynamic_shapes=({0: batch},))
    testing.assert_equal(program.module()(x), layer(x))


def test_compiled(fast):
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        testing.assert_equal(compiled(inputs(2)), fast(inputs(2)))


@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_aot_inductor(fast, program, tmp_path):
    """Integer layers bit for bit; inductor's float code in between may add in another order."""
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "m.pt2"))
    loaded = torch._inductor.aoti_load_package(path)
    for count in (1, 2, 7):
        wanted = fast(inputs(count))
        greatest = float(wanted.abs().max())  # inductor may add the floats in another order
        torch.testing.assert_close(loaded(inputs(count)), wanted, rtol=0, atol=1e-5 * greatest)
