"""Scratch copies of an ONNX graph, in memory, with inner tensors opened up."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sparseq.export.require import require


def load_model(path: str | os.PathLike[str], caller: str = "verify") -> Any:
    """The ModelProto in a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not an ONNX model with the tensors "input" and "output".
    """
    onnx = require("onnx")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{caller}: path must name a file, got {str(path)!r}")
    try:
        proto = onnx.load_model_from_string(Path(path).read_bytes())
        onnx.checker.check_model(proto)
    except Exception as error:  # protobuf's and onnx's errors share no base class
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{caller}: {str(path)!r} is not a sound ONNX file: {reason}") from error
    names = {i.name for i in proto.graph.input}, {o.name for o in proto.graph.output}
    if names != ({"input"}, {"output"}):
        raise ValueError(
            f"{caller}: the file must have one tensor 'input' and one 'output', got {names}"
        )
    return proto


def forced_name(tensor: str) -> str:
    """What the graph input is called that stands in for a tensor."""
    return f"{tensor}.forced"


def expose(proto: Any, forced: Collection[str], shown: Collection[str]) -> Any:
    """A copy whose `forced` tensors are graph inputs to their readers, `shown` ones outputs.

    A tensor may be both: then the output is what the graph computes, the input what its readers
    see.
    """
    onnx = require("onnx")
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    known = {value.name: value for value in graph.value_info}
    for name in shown:
        graph.output.append(onnx.ValueInfoProto(name=name))
        if name in known:
            graph.output[-1].CopyFrom(known[name])
    for name in forced:
        value = graph.input.add()
        value.CopyFrom(known[name])
        value.name = forced_name(name)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in forced:
                node.input[index] = forced_name(name)
    return copy


def session(
    proto: Any,
    caller: str = "verify",
    *,
    optimise: bool = True,
    optimised_path: Path | None = None,
) -> Any:
    """An ONNX Runtime session on the CPU.

    Args:
        proto: the model.
        caller: what error messages begin with.
        optimise: let ONNX Runtime optimise the graph.
        optimised_path: where it shall write the graph that it made.

    Raises:
        ValueError: ONNX Runtime does not take the model.
    """
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only: warnings go to the user's terminal
    if not optimise:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimised_path is not None:
        options.optimized_model_filepath = str(optimised_path)
    try:
        return runtime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ValueError(f"{caller}: ONNX Runtime does not take the file: {error}") from error
