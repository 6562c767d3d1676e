"""Adds nodes and initialisers to an onnx_ir graph, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseq.export.require import require

HALVES = (10, 16)  # FLOAT16, BFLOAT16


class Nodes:
    """A place in a graph, before some node, where new nodes go.

    Values are onnx_ir's; the class is a `translate.Builder` too.

    Args:
        graph: of onnx_ir, changed in place.
    """

    def __init__(self, graph: Any) -> None:
        self.ir = require("onnx_ir")
        self.graph = graph
        self.before: Any = None
        self.taken = set(graph.initializers)
        for node in graph:
            self.taken.update(value.name for value in node.outputs)
        self.taken.update(value.name for value in graph.inputs)

    def at(self, node: Any) -> None:
        """New nodes go before this one from now on."""
        self.before = node

    def add(self, kind: str, inputs: list[Any], name: str, **attributes: Any) -> Any:
        """Add a node; returns its one output, called `name`."""
        held = self.ir.convenience.convert_attributes(attributes)
        node = self.ir.Node("", kind, inputs, held, name=name)
        self.graph.insert_before(self.before, node)
        node.outputs[0].name = self.unique(name)
        return node.outputs[0]

    def unique(self, name: str) -> str:
        """The name, with a number where it is taken."""
        wanted, count = name, 0
        while name in self.taken:
            count += 1
            name = f"{wanted}.{count}"
        self.taken.add(name)
        return name

    def constant(self, name: str, values: Tensor | np.ndarray[Any, Any], kind: Any = None) -> Any:
        """The initialiser of this name, made on first use."""
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
        if kind is not None:
            array = array.astype(kind.numpy())
        tensor = self.ir.tensor(array, dtype=kind, name=name)
        value = self.ir.Value(
            name=name,
            type=self.ir.TensorType(tensor.dtype),
            shape=self.ir.Shape(array.shape),
            const_value=tensor,
        )
        self.graph.initializers.add(value)
        self.taken.add(name)
        return value

    def ints(self, values: list[int]) -> Any:
        """An int64 initialiser; equal ones are one."""
        text = "_".join(str(v).replace("-", "minus") for v in values)
        return self.constant(f"sparseq.ints.{text}", torch.tensor(values))

    def cast(self, value: Any, kind: str, name: str) -> Any:
        """Cast to a type of onnx_ir's DataType."""
        return self.add("Cast", [value], name, to=int(self.ir.DataType[kind]))

    def source(self, value: Any) -> tuple[str, Any] | None:
        """Kind and first input of the node that makes value; None for inputs of the graph."""
        node = value.producer()
        return None if node is None else (node.op_type, node.inputs[0] if node.inputs else None)

    def replace(self, old: Any, new: Any) -> None:
        """Let every reader of old, outputs of the graph included, read new."""
        if old.is_graph_output():
            new.shape, new.type = old.shape, old.type
            new.name, old.name = old.name, f"{old.name}.replaced"
        self.ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
