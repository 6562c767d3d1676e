"""What a CPU user would run instead, for one linear layer or convolution, at its best settings.

Every peer takes float32 and returns float32 and quantises inside, as ours does; where a peer can
also take and return bytes, that form is listed too ("bytes"). Activations have one static scale,
weights one per output channel, over the same full 8-bit ranges.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Peer = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """One layer and one input of it."""

    layer: nn.Linear | nn.Conv2d
    x: Tensor
    threads: int = 2

    @property
    def convolution(self) -> bool:
        return isinstance(self.layer, nn.Conv2d)


def torch_float(work: Work) -> dict[str, Peer]:
    """torch's float32; a convolution in both memory formats."""
    layer, x = work.layer, work.x
    if not work.convolution:
        return {"torch float32": lambda: layer(x)}
    last = nn.Conv2d.__new__(nn.Conv2d)
    last.__dict__ = {**layer.__dict__, "_parameters": dict(layer._parameters)}
    last._parameters["weight"] = nn.Parameter(
        layer.weight.detach().to(memory_format=torch.channels_last), requires_grad=False
    )
    first = layer
    x_first, x_last = x.contiguous(), x.contiguous(memory_format=torch.channels_last)
    return {
        "torch float32": lambda: first(x_first),
        "torch float32 channels_last": lambda: last(x_last),
    }


def fbgemm(work: Work) -> dict[str, Peer]:
    """torch's fbgemm: static on bytes, static with quantise and dequantise, and dynamic."""
    layer, x = work.layer, work.x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what torch users have
        torch.backends.quantized.engine = "fbgemm"
        weight = layer.weight.detach()
        scale = weight.flatten(1).abs().amax(1) / 127
        zero = torch.zeros(len(scale), dtype=torch.long)
        q = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
        x_scale = float(x.max() - x.min()) / 255
        x_zero = round(float(-x.min()) / x_scale)
        bias = layer.bias.detach() if layer.bias is not None else None
        if work.convolution:
            x = x.contiguous(memory_format=torch.channels_last)
            args = (list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups)
            packed = torch.ops.quantized.conv2d_prepack(q, bias, *args)
            call = torch.ops.quantized.conv2d
        else:
            packed = torch.ops.quantized.linear_prepack(q, bias)
            call = torch.ops.quantized.linear
        x_q = torch.quantize_per_tensor(x, x_scale, x_zero, torch.quint8)
    y_scale, quantize = float(layer(x).abs().max()) / 128, torch.quantize_per_tensor
    peers: dict[str, Peer] = {
        "fbgemm, bytes": lambda: call(x_q, packed, y_scale, 128),
        "fbgemm": lambda: call(
            quantize(x, x_scale, x_zero, torch.quint8), packed, y_scale, 128
        ).dequantize(),
    }
    if not work.convolution:
        peers["fbgemm dynamic"] = lambda: torch.ops.quantized.linear_dynamic(x, packed, True)
    return peers


def _file(work: Work, folder: str) -> str:
    path = f"{folder}/float.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            work.layer,
            (work.x,),
            path,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            opset_version=17,
        )
    return path


def _session(path: str, threads: int):  # type: ignore[no-untyped-def]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _bound(session, x: np.ndarray) -> Peer:  # type: ignore[no-untyped-def]
    """A call that copies nothing in or out."""
    import onnxruntime

    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding)


def onnx_runtime(work: Work) -> dict[str, Peer]:
    """ONNX Runtime: its own static quantiser, u8 and s8 activations, and bytes to bytes."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([{"x": work.x.numpy()}] * 2)

        def get_next(self):  # type: ignore[no-untyped-def]
            return next(self.feeds, None)

    peers: dict[str, Peer] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = _file(work, folder)
        quant_pre_process(path, path, skip_symbolic_shape=True)
        logging.getLogger().setLevel(logging.ERROR)
        for name, kind in (("u8s8", QuantType.QUInt8), ("s8s8", QuantType.QInt8)):
            out = f"{folder}/{name}.onnx"
            quantize_static(
                path,
                out,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=kind,
                weight_type=QuantType.QInt8,
            )
            peers[f"ONNX Runtime {name}"] = _bound(_session(out, work.threads), work.x.numpy())
        # bytes in, bytes out: the first QuantizeLinear and the last DequantizeLinear cut off
        model = onnx.load(f"{folder}/u8s8.onnx")
        graph = model.graph
        first = next(n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "x")
        last = next(n for n in graph.node if n.op_type == "DequantizeLinear" and n.output[0] == "y")
        for node in graph.node:
            node.input[:] = ["x" if i == first.output[0] else i for i in node.input]
            node.output[:] = ["y" if o == last.input[0] else o for o in node.output]
        graph.node.remove(first)
        graph.node.remove(last)
        for value in (graph.input[0], graph.output[0]):
            value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
        out = f"{folder}/bytes.onnx"
        onnx.save(model, out)
        x = (work.x.numpy() * 20 + 128).clip(0, 255).astype(np.uint8)
        peers["ONNX Runtime u8s8, bytes"] = _bound(_session(out, work.threads), x)
    return peers


def openvino(work: Work) -> dict[str, Peer]:
    """OpenVINO's INT8 through NNCF."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nncf
        import openvino as ov
    nncf.set_log_level(logging.ERROR)
    core, x = ov.Core(), work.x.numpy()
    config = {
        "INFERENCE_NUM_THREADS": work.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    with tempfile.TemporaryDirectory() as folder:
        model = core.read_model(_file(work, folder))
        with open(os.devnull, "w") as quiet:
            with redirect_stdout(quiet), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                quantised = nncf.quantize(model, nncf.Dataset([x, x]), subset_size=2)
        request = core.compile_model(quantised, "CPU", config).create_infer_request()
    request.infer([x])
    tensor = ov.Tensor(x, shared_memory=True)
    request.set_input_tensor(tensor)
    return {"OpenVINO INT8": request.infer}


def all_peers(work: Work) -> dict[str, Peer]:
    """Every peer that is installed here."""
    return {**torch_float(work), **fbgemm(work), **onnx_runtime(work), **openvino(work)}
