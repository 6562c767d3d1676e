"""What an exporter leaves in a graph beside the model: paths of source files, odd names."""

from __future__ import annotations

from typing import Any

from sparseq.export.require import require


def clean(model: Any, rename: bool) -> None:
    """Take an exporter's traces out of an onnx_ir model, in place.

    Args:
        model: traced.
        rename: also make the TorchScript exporter's names and shapes plain: its
            "/features/features.0/Relu_output_0" becomes "features.features.0.Relu_output_0", and
            what it guessed of shapes is left to onnx's shape inference.
    """
    graph = model.graph
    if rename:
        passes = require("onnx_ir").passes.common
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        passes.IdentityEliminationPass()(model)
        require("onnxscript").optimizer.optimize(model)
        _plain_names(graph)
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()


def _plain_names(graph: Any) -> None:
    taken = {value.name for value in (*graph.inputs, *graph.outputs)}

    def plain(name: str) -> str:
        wanted = name.replace("onnx::", "").strip("/").replace("/", ".").replace("::", ".")
        found, count = wanted, 0
        while found in taken:
            count += 1
            found = f"{wanted}.{count}"
        taken.add(found)
        return found

    for value in list(graph.initializers.values()):
        value.name = plain(value.name)
    for node in graph:
        node.name = (node.name or node.op_type).strip("/").replace("/", ".")
        for value in node.outputs:
            if value.name and not value.is_graph_output():
                value.name = plain(value.name)
