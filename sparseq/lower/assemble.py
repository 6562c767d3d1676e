"""The whole model again: programs, and what runs in torch between them."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparseq.lower.build import build
from sparseq.lower.split import Split, split
from sparseq.lower.trace import SOURCE, Traced
from sparseq.lower.units import Fusion
from sparseq.nn import SparseQuantLayer
from sparseq.program import Program

# what only asks or picks, and costs nothing worth a word
_SMALL = {"getitem", "getattr", "size", "holds", "_assert", "unflatten"}


class Segment(nn.Module):
    """One program with its constants: from float32 tensors to a list of them."""

    def __init__(self, program: Program, constants: list[Tensor]) -> None:
        super().__init__()
        self.text = program.to_json()
        for number, value in enumerate(constants):
            self.register_buffer(f"constant{number}", value, persistent=False)
        self.constants = constants

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """`sparseq::network`."""
        return torch.ops.sparseq.network.default(self.text, self.constants, list(inputs))


@dataclass(frozen=True)
class Assembled:
    """A lowered model.

    Args:
        module: takes and returns what the model does.
        programs: in the order in which they run.
        placed: by layer, the program and what it is fused with.
        reasons: by layer, why it is in none.
        between: what runs in torch between programs, why, and how often.
    """

    module: fx.GraphModule
    programs: tuple[Program, ...]
    placed: dict[str, str]
    reasons: dict[str, str]
    between: dict[tuple[str, str], int]


def _layer_name(target: object) -> str:
    return str(target).removeprefix(SOURCE).removeprefix(".")


def _segments(
    found: Split, root: nn.Module
) -> tuple[dict[int, Fusion], list[Program], dict[str, str]]:
    """Builds each stage's program into the root."""
    fusions: dict[int, Fusion] = {}
    programs: list[Program] = []
    placed: dict[str, str] = {}
    for stage in sorted({found.stage[n] for n in found.steps}):
        fusion = fusions[stage] = Fusion(found, stage)
        program, constants, layers = build(fusion)
        programs.append(program)
        root.add_module(f"program{stage}", Segment(program, constants))
        for name, fused in layers:
            line = f"in program {len(programs)} {fused}"
            placed[name] = f"{placed[name]}; {line}" if name in placed else line
    return fusions, programs, placed


def _graph(found: Split, fusions: dict[int, Fusion]) -> fx.Graph:
    """Each program, then the torch nodes that wait for it."""
    graph = fx.Graph()
    made: dict[fx.Node, Any] = {}

    def torch_nodes(stage: int) -> None:
        for node in found.outside:
            if found.stage[node] != stage:
                continue
            if node in found.sizes:
                at = found.sizes[node]
                if isinstance(at, int):
                    made[node] = at
                else:
                    made[node] = graph.call_method("size", (made[at[0]], at[1]))
            elif node.op == "output":
                graph.output(fx.map_arg(node.args[0], made.__getitem__))
            else:
                made[node] = graph.node_copy(node, made.__getitem__)

    torch_nodes(0)
    for stage in range(1, max(found.stage.values()) + 1):
        fusion = fusions.get(stage)
        if fusion is not None:
            inputs = tuple(made[node] for node, _ in fusion.inputs)
            results = graph.call_module(f"program{stage}", inputs)
            for number, (node, _) in enumerate(fusion.outputs):
                made[node] = graph.call_function(operator.getitem, (results, number))
        torch_nodes(stage)
    return graph


def _between(found: Split, root: nn.Module) -> dict[tuple[str, str], int]:
    """What else runs in torch, with its reason."""
    seen: Counter[tuple[str, str]] = Counter()
    for node in found.outside:
        if node.op not in ("call_function", "call_method", "call_module") or node in found.sizes:
            continue
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            if isinstance(module, SparseQuantLayer):
                continue  # has a row of its own
            name = type(module).__name__
        reason = found.reasons.get(node)
        if reason is not None and name not in _SMALL and "shape" in node.meta:
            seen[name, reason] += 1
    return dict(seen)


def assemble(traced: Traced, source: nn.Module) -> Assembled | str:
    """Lower a traced model as its layers are now, or say why nothing of it can be.

    Args:
        traced: its graph.
        source: the layerwise model, on the CPU.
    """
    root = traced.root(source)
    found = split(traced, root)
    reasons = {
        _layer_name(node.target): found.reasons[node]
        for node in found.outside
        if node.op == "call_module"
        and isinstance(root.get_submodule(str(node.target)), SparseQuantLayer)
    }
    if not found.steps:
        why = sorted(set(reasons.values()))
        return "; ".join(why) or "it has no integer layer"
    fusions, programs, placed = _segments(found, root)
    graph = _graph(found, fusions)
    module = fx.GraphModule(root, graph)
    return Assembled(module.eval(), tuple(programs), placed, reasons, _between(found, root))
