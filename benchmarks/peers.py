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

from sparseq.bench.child import open_onnxruntime, open_openvino

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


def float_onnx(model: nn.Module, x: Tensor, path: str) -> None:
    """The network as ONNX with the input "x" and the output "y", sizes fixed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (x,),
            path,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            opset_version=17,
        )


def static_int8(source: str, out: str, batches: list[np.ndarray], kind: str = "QUInt8") -> None:
    """ONNX Runtime's own static quantiser: QDQ, weights with a scale a channel."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = onnx.load(source).graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([{name: batch} for batch in batches])

        def get_next(self):  # type: ignore[no-untyped-def]
            return next(self.feeds, None)

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        prepared = f"{folder}/prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType[kind],
            weight_type=QuantType.QInt8,
        )
    root.setLevel(level)


def nncf_int8(source: str, batches: list[np.ndarray], transformer: bool = False):  # type: ignore[no-untyped-def]
    """OpenVINO's model of an ONNX file after NNCF's post-training quantisation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nncf
        import openvino as ov
    nncf.set_log_level(logging.ERROR)
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    with open(os.devnull, "w") as quiet:
        with redirect_stdout(quiet), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return nncf.quantize(
                ov.Core().read_model(source),
                nncf.Dataset(batches),
                subset_size=len(batches),
                model_type=kind,
            )


def onnx_runtime(work: Work) -> dict[str, Peer]:
    """ONNX Runtime: its own static quantiser, u8 and s8 activations, and bytes to bytes."""
    import onnx

    peers: dict[str, Peer] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/float.onnx"
        float_onnx(work.layer, work.x, path)
        for name, kind in (("u8s8", "QUInt8"), ("s8s8", "QInt8")):
            out = f"{folder}/{name}.onnx"
            static_int8(path, out, [work.x.numpy()] * 2, kind)
            peers[f"ONNX Runtime {name}"] = open_onnxruntime(out, [work.x.numpy()], work.threads)
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
        peers["ONNX Runtime u8s8, bytes"] = open_onnxruntime(out, [x], work.threads)
    return peers


def openvino(work: Work) -> dict[str, Peer]:
    """OpenVINO's INT8 through NNCF."""
    import openvino as ov

    x = work.x.numpy()
    with tempfile.TemporaryDirectory() as folder:
        float_onnx(work.layer, work.x, f"{folder}/float.onnx")
        path = f"{folder}/int8.xml"
        ov.save_model(nncf_int8(f"{folder}/float.onnx", [x, x]), path, compress_to_fp16=False)
        return {"OpenVINO INT8": open_openvino(path, [x], work.threads)}


def all_peers(work: Work) -> dict[str, Peer]:
    """Every peer that is installed here."""
    return {**torch_float(work), **fbgemm(work), **onnx_runtime(work), **openvino(work)}
