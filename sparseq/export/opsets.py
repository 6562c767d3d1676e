"""One graph in another version of ONNX's operators.

Torch's exporters and onnxscript's converter reach from 17 (TorchScript) or 18 (dynamo) to 25. The
rest is done here, node by node, by comparing the two versions' schemas: where they agree, nothing
has to change; what does not is rewritten or refused by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparseq.export.require import require

OPSETS = range(17, 28)  # ONNX Runtime 1.32 has no QuantizeLinear of 28
CONVERTED = 25  # as far as onnxscript's converter goes


def to_opset(model: Any, opset: int) -> None:
    """Convert an onnx_ir model in place.

    Args:
        model: whose nodes all are ONNX's own, or of a domain that has one version.
        opset: the version wanted.

    Raises:
        ValueError: an operator that this version has not, or has with another meaning.
    """
    current = model.opset_imports[""]
    between = min(opset, CONVERTED)
    if current < between:
        require("onnxscript").version_converter.convert_version(model, target_version=between)
        current = model.opset_imports[""]
    if current == opset:
        return
    for node in list(model.graph.all_nodes()):
        if node.domain == "":
            _restamp(model.graph, node, current, opset)
        node.version = None
    model.opset_imports[""] = opset


def _restamp(graph: Any, node: Any, old: int, new: int) -> None:
    """Make one node valid in the new version."""
    if new < old:
        rewrite = _OLDER.get(node.op_type)
        if rewrite is not None:
            rewrite(graph, node, new)
    defs = require("onnx").defs
    before = defs.get_schema(node.op_type, old)
    try:
        after = defs.get_schema(node.op_type, new)
    except defs.SchemaError:
        raise ValueError(
            f"export.onnx: opset {new} has no operator {node.op_type}, which the model needs"
        ) from None
    if after.since_version != before.since_version and not _takes(after, before, node):
        raise ValueError(
            f"export.onnx: {node.op_type} means something else in opset {new} than in {old}, "
            "which torch's exporter writes"
        )


def _takes(after: Any, before: Any, node: Any) -> bool:
    """Whether a node that is valid in one version is so in the other, with the same meaning.

    Versions that differ in nothing but the types that they allow have the same meaning.
    """
    attributes = set(node.attributes)
    if not attributes <= set(after.attributes) or len(node.inputs) > after.max_input:
        return False
    names = [p.name for p in after.inputs[: len(node.inputs)]]
    if names != [p.name for p in before.inputs[: len(node.inputs)]]:
        return False
    new = set(after.attributes) - set(before.attributes)
    return not any(after.attributes[name].required for name in new)


def _axes_as_attribute(graph: Any, node: Any, opset: int) -> None:
    """Reduce* took their axes as an attribute up to 17 (ReduceSum up to 12)."""
    _without_defaults("noop_with_empty_axes")(graph, node, opset)
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return
    held = node.inputs[1].const_value
    if held is None:
        raise ValueError(
            f"export.onnx: opset {opset} takes constant axes for {node.op_type} only, "
            "which the model computes"
        )
    ir = require("onnx_ir")
    axes = [int(a) for a in np.atleast_1d(held.numpy())]
    node.attributes.add(ir.AttrInt64s("axes", axes))
    node.resize_inputs(1)


def _without_num_outputs(graph: Any, node: Any, opset: int) -> None:
    """Split has num_outputs from 18 on; equal parts are what it does without it, too."""
    if "num_outputs" not in node.attributes:
        return
    axis = node.attributes["axis"].value if "axis" in node.attributes else 0
    shape = node.inputs[0].shape
    length = None if shape is None else shape[axis]
    if not isinstance(length, int) or length % len(node.outputs):
        raise ValueError(f"export.onnx: opset {opset} cannot split into unequal parts")
    del node.attributes["num_outputs"]


def _without_defaults(*names: str) -> Any:
    """For attributes that came later: leave out those that say what was always so."""
    usual = {"antialias": 0, "keep_aspect_ratio_policy": "stretch", "noop_with_empty_axes": 0}

    def rewrite(graph: Any, node: Any, opset: int) -> None:
        for name in names:
            if name in node.attributes and node.attributes[name].value == usual[name]:
                del node.attributes[name]

    return rewrite


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_OLDER: dict[str, Any] = {f"Reduce{kind}": _axes_as_attribute for kind in _REDUCTIONS}
_OLDER |= {
    "Split": _without_num_outputs,
    "Resize": _without_defaults("antialias", "keep_aspect_ratio_policy"),
}


def oldest_format(opset: int) -> int:
    """The oldest IR version that holds this opset: old runtimes refuse newer files."""
    helper = require("onnx").helper
    return int(helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
