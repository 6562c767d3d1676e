"""Which nodes run in which program, and which in torch between them.

Stage s is program s and the torch nodes that wait for it: a step that reads a torch node of stage s
is of stage s + 1 at least, so that no program waits for itself.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from sparseq.lower.forms import PORTS
from sparseq.lower.read import Reader
from sparseq.lower.step import ALIAS, Operand, Step
from sparseq.lower.trace import Traced, holds
from sparseq.program import value_shape

_ASSERTS = (torch._assert, torch._check)
Size = int | tuple[fx.Node, int]  # a number, or another tensor's


@dataclass
class Split:
    """The graph in stages.

    Args:
        steps: of the programs.
        stage: of every live node.
        exports: which results leave a program, by its stage.
        outside: live nodes that run in torch, in order.
        sizes: where the size of a step's result is to be asked for instead.
        reasons: why a node is no step.
    """

    steps: dict[fx.Node, Step]
    reasons: dict[fx.Node, str]
    stage: dict[fx.Node, int] = field(default_factory=dict)
    exports: dict[int, list[fx.Node]] = field(default_factory=dict)
    outside: list[fx.Node] = field(default_factory=list)
    sizes: dict[fx.Node, Size] = field(default_factory=dict)

    def joined(self, node: fx.Node, operand: Operand) -> bool:
        """Whether a step reads an operand inside of its own program."""
        return operand.inside and self.stage[node] == self.stage[operand.node]

    def crossings(self, node: fx.Node) -> Iterator[fx.Node]:
        """What a live node reads from outside of its program."""
        if node in self.steps:
            yield from (o.node for o in self.steps[node].inputs if not self.joined(node, o))
        else:
            yield from self.dependencies(node)

    def dependencies(self, node: fx.Node) -> list[fx.Node]:
        """What must be there first."""
        if node in self.steps:
            return [o.node for o in self.steps[node].inputs]
        if node in self.sizes:
            size = self.sizes[node]
            return [] if isinstance(size, int) else [size[0]]
        return list(node.all_input_nodes)


def split(traced: Traced, root: nn.Module) -> Split:
    """Read the graph, and again without what does not pay or cannot leave, until all fits."""
    kept: dict[fx.Node, str] = {}
    while True:
        reader = Reader(traced, root, kept)
        found = Split(reader.steps, reader.reasons)
        _answer_sizes(found, traced.graph)
        _stage(found, traced.graph)
        more = _misfits(found) or _without_layers(found)
        if not more:
            return found
        kept |= more


def _size_query(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The tensor and the dimension whose size a node is."""
    at = node.args[0] if node.args else None
    if not isinstance(at, fx.Node) or not all(isinstance(a, int) for a in node.args[1:2]):
        return None
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        return at, node.args[1]  # type: ignore[return-value]
    if node.target is not operator.getitem or not at.args or not isinstance(at.args[0], fx.Node):
        return None
    shape = at.target is getattr and at.args[1] == "shape"
    if not shape and not (at.op == "call_method" and at.target == "size" and len(at.args) == 1):
        return None
    return at.args[0], node.args[1]  # type: ignore[return-value]


def _answer_sizes(found: Split, graph: fx.Graph) -> None:
    """Sizes of results from what the programs read, so that no result leaves for its size."""
    for node in graph.nodes:
        query = _size_query(node)
        if query is None or query[0] not in found.steps or node in found.steps:
            continue
        at, letter = query[0], found.steps[query[0]].form[query[1]]
        while letter != "C" and at in found.steps:
            step = found.steps[at]
            same = step.op in (ALIAS, "map", "add", "mul", "layer_norm", "concat", "attention")
            same = same or (step.op == "conv" and "L" in step.form)
            first = step.inputs[0]
            if letter not in first.form or not (same or letter == "N"):
                break
            at, form = first.node, first.form
        if letter == "C":
            found.sizes[node] = found.steps[query[0]].shape[3]
        elif at not in found.steps:
            found.sizes[node] = (at, form.index(letter))


def _live(found: Split, graph: fx.Graph) -> set[fx.Node]:
    """What the results need, and the checks that need no step's result."""
    free: set[fx.Node] = set()  # depends on no step
    pending: list[fx.Node] = []
    for node in graph.nodes:
        if node not in found.steps and all(n in free for n in found.dependencies(node)):
            free.add(node)
        if node.op == "output" or node.target is holds:
            pending.append(node)
        elif node.target in _ASSERTS and node in free:
            pending.append(node)
    live: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node not in live:
            live.add(node)
            pending += found.dependencies(node)
    return live


def _stage(found: Split, graph: fx.Graph) -> None:
    live = _live(found, graph)
    found.steps = {n: s for n, s in found.steps.items() if n in live}
    stage = found.stage
    for node in graph.nodes:
        if node not in live and node.op != "placeholder":
            continue
        if node in found.steps:
            inputs = found.steps[node].inputs
            stage[node] = max(stage[o.node] + (not o.inside) for o in inputs)
        else:
            stage[node] = max((stage[n] for n in found.dependencies(node)), default=0)
            found.outside.append(node)
    crossing = {n for node in stage for n in found.crossings(node) if n in found.steps}
    for node in found.steps:
        if node in crossing:
            found.exports.setdefault(stage[node], []).append(node)


def _misfits(found: Split) -> dict[fx.Node, str]:
    """Views that nothing else of their program makes, or that leave in a form without a name."""
    more: dict[fx.Node, str] = {}
    for node in (n for nodes in found.exports.values() for n in nodes):
        step = found.steps[node]
        at, first = node, step
        while first.op == ALIAS and found.joined(at, first.inputs[0]):
            at = first.inputs[0].node
            first = found.steps[at]
        if step.form not in PORTS or first.op == ALIAS:
            more[node] = "it only names dimensions"
    for node, step in found.steps.items():
        for operand in step.inputs:
            if found.joined(node, operand) or operand.node in more:
                continue
            entered = value_shape(PORTS[operand.form], operand.node.meta["shape"])
            if entered != operand.shape:
                more[node] = "its operands differ in shape"
    return more


def _without_layers(found: Split) -> dict[fx.Node, str]:
    """Steps that no integer layer of their program is joined with."""
    group: dict[fx.Node, list[fx.Node]] = {}
    for node, step in found.steps.items():
        group[node] = [node]
        for operand in step.inputs:
            if not found.joined(node, operand) or group[operand.node] is group[node]:
                continue
            small, large = sorted((group[operand.node], group[node]), key=len)
            large += small
            for member in small:
                group[member] = large
    idle = "no integer layer beside it"
    return {
        node: idle
        for node, members in group.items()
        if all(found.steps[m].op != "conv" for m in members)
    }
