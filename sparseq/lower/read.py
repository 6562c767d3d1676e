"""Reads a traced graph: which nodes can be steps of a program, and why the others run in torch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparseq.lower import arithmetic, attention, layers, views, windows
from sparseq.lower.forms import sizes
from sparseq.lower.step import Call, Operand, Refused, Step, entering
from sparseq.lower.trace import SOURCE, Traced, in_place
from sparseq.nn import SparseQuantLayer

Rule = Callable[[Call], Step]
RULES: dict[str, Rule] = {
    **{**layers.RULES, **arithmetic.RULES, **attention.RULES},
    **{**views.RULES, **windows.RULES},
}
# who may define a function of such a name; torch's own may have no module
_HOMES = ("torch", "_operator", "torchvision.ops")


class Reader:
    """Steps and reasons, node by node.

    Args:
        traced: the graph.
        root: what its names refer to.
        kept: nodes that must run in torch, with the reason.
    """

    def __init__(self, traced: Traced, root: nn.Module, kept: Mapping[fx.Node, str]) -> None:
        self.root, self.traced = root, traced
        self.steps: dict[fx.Node, Step] = {}
        self.reasons: dict[fx.Node, str] = {}
        self._constants: dict[fx.Node, Tensor] = {}
        for node in traced.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            if self._is_constant(node):
                continue
            try:
                if node in kept:
                    raise Refused(kept[node])
                self.steps[node] = self._read(node)
            except Refused as refusal:
                self.reasons[node] = str(refusal)

    def module(self, node: fx.Node) -> nn.Module | None:
        """What a node calls."""
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _is_constant(self, node: fx.Node) -> bool:
        """Compute what depends on no input."""
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.root)
        elif node.op in ("call_function", "call_method") and node.all_input_nodes:
            if any(n not in self._constants for n in node.all_input_nodes) or in_place(node, None):
                return False
            known = self._constants
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: known[n])
            if node.op == "call_method":
                value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                assert callable(node.target)
                value = node.target(*args, **kwargs)
        else:
            return False
        if isinstance(value, Tensor):
            self._constants[node] = value.detach()
        return isinstance(value, Tensor)

    def _constant(self, value: Any) -> Tensor | None:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return torch.tensor(float(value))
        return self._constants.get(value) if isinstance(value, fx.Node) else None

    def _operand(self, value: Any, form: str | None = None) -> Operand:
        """An argument in this form, or in the one that it has."""
        if not isinstance(value, fx.Node) or "shape" not in value.meta:
            raise Refused("it takes no tensor there")
        if value in self._constants:
            raise Refused("a constant that is not one value a channel")
        if value.meta["dtype"] != torch.float32:
            raise Refused(f"it reads {str(value.meta['dtype']).removeprefix('torch.')}")
        step = self.steps.get(value)
        if step is not None and form in (None, step.form):
            return Operand(value, step.form, step.shape, True)
        return entering(value, form)

    def _name(self, node: fx.Node) -> str:
        """A node's name for `RULES`; "" where neither torch nor torchvision defines it."""
        module, call = self.module(node), node.target
        if module is not None:
            kind, home = type(module).__name__, type(module).__module__
            return kind if home.startswith(("torch.", "torchvision.ops")) else ""
        kind = call if isinstance(call, str) else getattr(call, "__name__", "")
        home = getattr(call, "__module__", None) or "torch"
        known = node.op != "get_attr" and (isinstance(call, str) or home.startswith(_HOMES))
        return "" if not known else kind if kind.startswith("__") else kind.rstrip("_")

    def _read(self, node: fx.Node) -> Step:
        module, kind = self.module(node), self._name(node)
        rule = RULES.get(kind)
        if isinstance(module, SparseQuantLayer):
            kind = str(node.target).removeprefix(SOURCE).removeprefix(".")
            rule = layers.read_layer
        elif rule is None:
            opaque = self.traced.opaque.get(str(node.target))
            raise Refused(opaque or "a program has no such instruction")
        if node.meta.get("dtype") != torch.float32:
            raise Refused("its result is not float32")
        if not node.args:
            raise Refused("its arguments are not known")
        names = (self._name, self.module)
        call = Call(node, kind, module, self._operand, self._constant, *names)
        step = attention.joined(call, self.steps) or rule(call)
        if sizes(step.form, step.shape) != node.meta["shape"]:
            raise Refused("its result has another shape than its instruction's")
        return step
