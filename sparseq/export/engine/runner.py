"""`export.Engine`: runs a TensorRT engine on torch tensors."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from sparseq.export.engine.runtime import find_runtime

_RTX = b"vtrt"  # what plans of TensorRT-RTX begin with
_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Port:
    """An input or output of an engine.

    Attributes:
        name: as in the ONNX file.
        dtype: torch's.
        shape: -1 where a size is open.
        least: of an input, the smallest shape that the engine takes.
        most: of an input, the largest.
    """

    name: str
    dtype: torch.dtype
    shape: Shape
    least: Shape = ()
    most: Shape = ()

    def check(self, x: object, device: torch.device) -> Tensor:
        """Return x if it may go in, or raise TypeError or ValueError."""
        if not isinstance(x, Tensor):
            got = type(x).__name__
            raise TypeError(f"Engine: input {self.name!r} must be a tensor, got {got}")
        if x.dtype != self.dtype:
            raise TypeError(f"Engine: input {self.name!r} must be {self.dtype}, got {x.dtype}")
        if x.device.type != device.type or (device.index is not None and x.device != device):
            raise ValueError(f"Engine: input {self.name!r} must be on {device}, got {x.device}")
        sizes = zip(x.shape, self.least, self.most, strict=False)
        if x.dim() != len(self.shape) or not all(low <= n <= high for n, low, high in sizes):
            wanted = ", ".join(
                str(low) if low == high else f"{low} to {high}"
                for low, high in zip(self.least, self.most, strict=True)
            )
            raise ValueError(
                f"Engine: input {self.name!r} must have the shape ({wanted}), got {tuple(x.shape)}"
            )
        return x.contiguous()


class Engine:
    """A TensorRT engine as a function of tensors; a context manager that frees it at the end.

    Runs on torch's current stream and does not wait for the result, like torch's own operators.
    One engine object is for one thread at a time: give each thread its own.

    Args:
        path: what `tensorrt` wrote, for this GPU.
        cuda_graph: record the launches of each input shape when it comes first, and replay them.
            This saves the CPU's time for launches; inputs are copied, and each shape keeps its
            buffers.
        device: the CUDA device; None takes torch's current one.
        runtime: "tensorrt" or "tensorrt_rtx"; None tells by the file.

    Attributes:
        inputs: name -> Port.
        outputs: name -> Port.

    Raises:
        FileNotFoundError: no such file.
        RuntimeError: there is no CUDA device, or the engine is of another version or GPU.
        ModuleNotFoundError: TensorRT is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        cuda_graph: bool = False,
        device: str | torch.device | None = None,
        runtime: str | None = None,
    ) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"Engine: path must be a file, got {str(path)!r}")
        data = Path(path).read_bytes()
        if runtime is None and data.startswith(_RTX):
            runtime = "tensorrt_rtx"
        trt = importlib.import_module(find_runtime(runtime, "export.Engine"))
        self.device = self._find_device(device)
        messages: list[str] = []
        self._logger = _make_logger(trt, messages)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            reason = messages[-1] if messages else f"{trt.__name__} gives no reason"
            raise RuntimeError(
                f"Engine: {trt.__name__} {trt.__version__} cannot load {str(path)!r} on this GPU: "
                f"{reason}"
            )
        self._context: Any = self._engine.create_execution_context()
        if self._context is None:
            reason = messages[-1] if messages else "no reason given"
            raise RuntimeError(f"Engine: no memory or kernels to run {str(path)!r}: {reason}")
        ports = [_port(trt, self._engine, i) for i in range(self._engine.num_io_tensors)]
        self.inputs = {port.name: port for port, is_input in ports if is_input}
        self.outputs = {port.name: port for port, is_input in ports if not is_input}
        self.cuda_graph = cuda_graph
        self._graphs: dict[tuple[Shape, ...], _Recorded] = {}

    def _find_device(self, device: str | torch.device | None) -> torch.device:
        if not torch.cuda.is_available():
            raise RuntimeError("Engine: running an engine needs a CUDA device, and torch sees none")
        if device is None:
            return torch.device("cuda", torch.cuda.current_device())
        found = torch.device(device)
        if found.type != "cuda":
            raise ValueError(f"Engine: device must be a CUDA device, got {found}")
        return found

    def __enter__(self) -> Engine:
        """The engine itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Free it."""
        self.close()

    def close(self) -> None:
        """Free the engine's memory; it cannot run afterwards."""
        self._graphs.clear()
        self._context = self._engine = self._runtime = None  # in this order

    def __call__(self, *args: Tensor, **named: Tensor) -> Tensor | dict[str, Tensor]:
        """Run on inputs by position or by name.

        Returns:
            The output, or, where there are several, name -> tensor.

        Raises:
            ValueError: other inputs than the engine's, or a shape out of its range.
            TypeError: an input of another type.
            RuntimeError: TensorRT reports an error, or the engine is closed.
        """
        if self._context is None:
            raise RuntimeError("Engine: it is closed")
        given = dict(zip(self.inputs, args, strict=False)) | named
        count = len(args) + len(named)
        if set(given) != set(self.inputs) or count != len(self.inputs):
            raise ValueError(
                f"Engine: takes the inputs {list(self.inputs)}, got {len(args)} by position and "
                f"{list(named)}"
            )
        inputs = {name: port.check(given[name], self.device) for name, port in self.inputs.items()}
        if self.cuda_graph:
            results = self._replay(inputs)
        else:
            results = self._allocate(inputs)
            self._enqueue(inputs, results)
        return next(iter(results.values())) if len(results) == 1 else results

    def _allocate(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tell the shapes, and make the outputs that follow from them."""
        for name, x in inputs.items():
            if not self._context.set_input_shape(name, tuple(x.shape)):
                raise RuntimeError(f"Engine: TensorRT refuses {tuple(x.shape)} for input {name!r}")
        results = {}
        for name, port in self.outputs.items():
            shape = tuple(self._context.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                raise RuntimeError(f"Engine: the shape of output {name!r} depends on the values")
            results[name] = torch.empty(shape, dtype=port.dtype, device=self.device)
        return results

    def _enqueue(self, inputs: dict[str, Tensor], results: dict[str, Tensor]) -> None:
        for name, x in (inputs | results).items():
            self._context.set_tensor_address(name, x.data_ptr())
        if not self._context.execute_async_v3(self._stream()):
            raise RuntimeError("Engine: TensorRT did not run; its log tells why")

    def _stream(self) -> int:
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    def _replay(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        key = tuple(tuple(x.shape) for x in inputs.values())
        if key not in self._graphs:
            fixed = {name: x.clone() for name, x in inputs.items()}
            results = self._allocate(fixed)
            self._enqueue(fixed, results)  # TensorRT sets itself up in the first run of a shape
            replay = self._record(lambda: self._enqueue(fixed, results))
            self._graphs[key] = _Recorded(fixed, results, replay)
        recorded = self._graphs[key]
        for name, x in inputs.items():
            recorded.inputs[name].copy_(x)
        recorded.replay()
        return {name: x.clone() for name, x in recorded.results.items()}

    def _record(self, launches: Callable[[], None]) -> Callable[[], None]:
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launches()
        return graph.replay


@dataclass(frozen=True)
class _Recorded:
    """A recorded graph and the tensors that it reads and writes."""

    inputs: dict[str, Tensor]
    results: dict[str, Tensor]
    replay: Callable[[], None]


def _make_logger(trt: Any, messages: list[str]) -> Any:
    class Keeping(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                messages.append(message)

    return Keeping()


def _port(trt: Any, engine: Any, index: int) -> tuple[Port, bool]:
    """A port, and whether it is an input."""
    name = engine.get_tensor_name(index)
    kind = engine.get_tensor_dtype(name)
    dtype = next((d for n, d in _DTYPES.items() if kind == getattr(trt.DataType, n, None)), None)
    if dtype is None:
        raise RuntimeError(f"Engine: {name!r} is {kind}, which torch has no type for")
    shape = tuple(engine.get_tensor_shape(name))
    if engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT:
        return Port(name, dtype, shape), False
    least, _, most = engine.get_tensor_profile_shape(name, 0)
    return Port(name, dtype, shape, tuple(least), tuple(most)), True
