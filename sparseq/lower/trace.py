"""A model's graph, traced with torch.fx beside one run of the model.

Each proxy knows the value it stands for, so that `x.dim()`, `len(x.shape)` and unpacked shapes are
plain Python, and what depends on sizes (`if x.shape[1] != n`) is decided as in the example, with a
node that raises `Differs` in a call where it would be decided otherwise.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparseq.lower.hollow import hollow_call, hollow_layer
from sparseq.nn import INTEGER_LAYERS, SparseQuantLayer

SOURCE = "source"  # the model's name in the traced root
MOST_OPAQUE = 16  # modules that cannot be traced, before the whole model counts as such
_PLAIN = {"ndim", "dtype", "device", "layout", "is_nested", "is_cuda", "is_cpu", "is_sparse",
          "is_quantized", "is_mkldnn", "requires_grad"}  # fmt: skip
_METHODS = {"dim", "ndimension", "is_floating_point", "is_complex", "get_device"}
_IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


class Differs(Exception):
    """A call in which the model would go another way than in the example."""


def holds(value: Any, expected: bool) -> None:
    """Raise `Differs` where a condition is not as it was in the example."""
    if bool(value) != expected:
        raise Differs


class Root(nn.Module):
    """The model as the only child, so that its forward is traced with one argument."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: Tensor) -> Any:
        """The model's result."""
        return self.source(x)


@dataclass(frozen=True)
class Traced:
    """A graph whose nodes have `meta["shape"]` and `meta["dtype"]`, or `meta["known"]`: a number.

    Args:
        graph: torch.fx's; shared by copies, never changed.
        constants: tensors that the forward made, by the name that the graph gives them.
        opaque: why a module was not looked into, by its name.
    """

    graph: fx.Graph
    constants: dict[str, Tensor] = field(default_factory=dict)
    opaque: dict[str, str] = field(default_factory=dict)

    def root(self, source: nn.Module) -> nn.Module:
        """What the graph's names refer to."""
        root = Root(source)
        for name, value in self.constants.items():
            root.register_buffer(name, value, persistent=False)
        return root


class _Known(fx.Proxy):
    """A proxy that knows its value in the example."""

    def __getattr__(self, name: str) -> Any:
        known = self.node.meta.get("known")
        if isinstance(known, Tensor) and name in _PLAIN | _METHODS:
            return getattr(known, name)
        if not name.startswith("__") and not callable(getattr(known, name, len)):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def __len__(self) -> int:
        known = self.node.meta["known"]
        if isinstance(known, Tensor):
            return super().__len__()
        return len(known)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, example: Tensor, opaque: dict[str, str], hollow: bool) -> None:
        super().__init__()
        self._example, self._opaque, self._hollow = example, opaque, hollow
        self._running = False  # a leaf runs on values
        self.failed = ""  # the innermost module in which tracing failed

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, (SparseQuantLayer, *INTEGER_LAYERS)) or name in self._opaque:
            return True
        if isinstance(module, nn.MultiheadAttention):
            return True
        return _is_torchs(module) and not module._modules and not isinstance(module, nn.Sequential)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Known(node, self)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        if kind == "get_attr":  # a tensor among the arguments becomes one without a proxy
            node.meta["known"] = self._value(node)
        return node

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        proxy = super().create_proxy(*args, **kwargs)
        proxy.node.meta["known"] = self._value(proxy.node)
        return proxy

    def _value(self, node: fx.Node) -> Any:
        self._running = True
        try:
            return self._run(node)
        finally:
            self._running = False

    def _run(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["known"])
        if node.op == "placeholder":
            return self._example
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        call: Callable[..., Any]
        if node.op == "call_module":
            call = module = self.root.get_submodule(str(node.target))
            if module._parameters or module._buffers or module._modules:
                if self._hollow and (isinstance(module, SparseQuantLayer) or _is_torchs(module)):
                    return hollow_layer(module, args, kwargs)
                return call(*args, **kwargs)
        elif node.op == "call_method":
            call = getattr(type(args[0]), str(node.target))
        else:
            assert callable(node.target)
            call = node.target
        return hollow_call(call, args, kwargs) if self._hollow else call(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if self._running:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        known = obj.node.meta["known"]
        if isinstance(known, (tuple, list)):
            items: Any = obj
            return iter([items[i] for i in range(len(known))])
        return super().iter(obj)

    def to_bool(self, obj: fx.Proxy) -> bool:
        known = obj.node.meta["known"]
        if isinstance(known, Tensor):
            return super().to_bool(obj)
        a = obj.node.args
        if obj.node.target in (operator.eq, operator.ne) and _same(a[0], a[1]):
            return bool(known)
        self.create_node("call_function", holds, (obj.node, bool(known)), {})
        return bool(known)


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _same(a: Any, b: Any) -> bool:
    """Whether two expressions of sizes are one."""
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return bool(type(a) is type(b) and a == b)
    if a is b:
        return True
    plain = a.target in (getattr, operator.getitem) or (a.op, a.target) == ("call_method", "size")
    alike = plain and (a.op, a.target, a.kwargs) == (b.op, b.target, b.kwargs)
    return alike and len(a.args) == len(b.args) and all(map(_same, a.args, b.args))


def in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node writes into its first argument."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.op not in ("call_function", "call_method") or not node.args:
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return (
        node.target in _IN_PLACE
        or (name.endswith("_") and not name.endswith("__"))
        or bool(node.kwargs.get("inplace"))
        or (name in ("relu", "relu6") and len(node.args) > 1 and bool(node.args[1]))
    )


def _settle_writes(graph: fx.Graph, root: nn.Module) -> None:
    """Whoever reads a tensor after it was written into reads the writing node's result."""
    for node in list(graph.nodes):
        module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not in_place(node, module) or not isinstance(node.args[0], fx.Node):
            continue
        written, later = node.args[0], node.next
        shared = written.op in ("placeholder", "get_attr") or len(written.users) > 1
        while later.op != "root":
            later.replace_input_with(written, node)
            later = later.next
        if shared:  # what read it before may run after
            with graph.inserting_before(node):
                copied = graph.call_method("clone", (written,))
            copied.meta = dict(written.meta)
            node.replace_input_with(written, copied)


def _strip(graph: fx.Graph) -> None:
    """Shapes instead of tensors."""
    for node in graph.nodes:
        known = node.meta.pop("known", None)
        node.meta.clear()
        if isinstance(known, Tensor):
            node.meta.update(shape=tuple(known.shape), dtype=known.dtype)
        elif isinstance(known, (bool, int, float)):
            node.meta["known"] = known


@torch.no_grad()
def trace(model: nn.Module, example: Tensor) -> Traced | str:
    """The model's graph, or why there is none.

    A module whose forward cannot be traced becomes one node of the graph.

    Args:
        model: in eval mode.
        example: what the model is run on, once or more; not changed.
    """
    opaque: dict[str, str] = {}
    hollow = True
    while True:
        root, tracer = Root(model), _Tracer(example.clone(), opaque, hollow)
        try:
            graph = tracer.trace(root)
            break
        except Exception as error:  # the model's own forward may raise anything
            if hollow:  # perhaps for want of values
                hollow = False
                continue
            first = (str(error).strip().splitlines() or [""])[0]
            reason = f"torch.fx cannot trace it ({type(error).__name__}: {first})"
            last = len(opaque) == MOST_OPAQUE or tracer.failed in opaque
            if tracer.failed in ("", SOURCE) or last:
                return reason
            opaque[tracer.failed] = reason
    graph.lint()
    _settle_writes(graph, root)
    _strip(graph)
    constants = {n: v for n, v in vars(root).items() if n.startswith("_tensor_constant")} | dict(
        root._buffers
    )
    kept = {n: v for n, v in constants.items() if isinstance(v, Tensor)}
    return Traced(graph, kept, opaque)
