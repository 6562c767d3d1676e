"""Which products and quantisers meet, so that ONNX Runtime makes one integer kernel of them."""

from __future__ import annotations

import math
from typing import Any

from sparseq.export.activation import Grid, Range, grid_of
from sparseq.export.nodes import Nodes
from sparseq.export.trace import DOMAIN
from sparseq.nn import SparseQuantLayer

Joined = tuple[list[Any], Range]  # the opaque layers that read a result, and what it is cut to

# what ONNX Runtime moves Q/DQ through, so that a product and the quantiser behind it still meet
_TRANSPARENT = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")


def _bounds(node: Any) -> Range | None:
    """The range that a node cuts its input to, if that is all it does."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return None
    found = [-math.inf, math.inf]
    for place, value in enumerate(node.inputs[1:]):
        if value is not None:
            if value.const_value is None:
                return None
            found[place] = float(value.const_value.numpy())
    return found[0], found[1]


def join(nodes: Nodes, output: Any, layers: dict[str, SparseQuantLayer]) -> Joined | None:
    """Whether a product's result goes into one quantiser and nowhere else.

    If so, cuts on the way (ReLU, ReLU6) are taken out of the graph: rounding to a grid and cutting
    commute, so the quantiser's reader cuts the integers instead, where it does not do so anyway.
    """
    value, cuts, (low, high) = output, [], (-math.inf, math.inf)
    while True:
        uses = list(value.uses())
        if value.is_graph_output() or not uses:
            return None
        grids = {_grid_read(node, layers) for node, _ in uses}
        if None not in grids:
            break
        node, index = uses[0]
        if len(uses) > 1 or index > 0 or len(node.outputs) > 1:
            return None
        cut = _bounds(node)
        if cut is not None:
            low, high = (min(max(end, cut[0]), cut[1]) for end in (low, high))
            cuts.append(node)
        elif node.op_type not in _TRANSPARENT:
            return None
        value = node.outputs[0]
    if len(grids) > 1:
        return None
    readers = [node for node, _ in uses]
    for node in cuts:
        nodes.replace(node.outputs[0], node.inputs[0])
        nodes.graph.remove(node, safe=True)
    return readers, (low, high)


def _grid_read(node: Any, layers: dict[str, SparseQuantLayer]) -> Grid | None:
    """The fixed grid that a layer quantises its input on, if node is one."""
    if node.domain != DOMAIN:
        return None
    layer = layers[node.attributes["name"].value]
    return None if layer.input_scale is None else grid_of(layer)
