"""Runs a model file in a process of its own and tells how much memory that takes.

Started by `measure_memory` as a script: it imports nothing of torch unless the file needs it, so
that a runtime's process holds that runtime only. What it shares with the package, how a runtime
opens a file and how a process' memory is read, is imported from here.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Call = Callable[[], list[Any]]  # one inference; the outputs as arrays
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
POLL_SECONDS = 0.001


def resident(field: str = "VmRSS") -> int | None:
    """Bytes of this process in memory (VmHWM: at most so far); None where the system has no /proc.

    Raises:
        ValueError: the system's /proc lacks the field.
    """
    try:
        text = STATUS.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"resident: {STATUS} has no {field}")


def give_back() -> None:
    """Hand freed memory back to the system, where the C library can."""
    gc.collect()
    if "sparseq._C" in sys.modules:
        sys.modules["sparseq._C"].empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> bool:
    """Let VmHWM begin anew; whether the system allows it."""
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return True


def greatest_ever() -> int | None:
    """The process' greatest resident set since it began, by getrusage; None without that."""
    try:
        resource = importlib.import_module("resource")
    except ModuleNotFoundError:  # Windows
        return None
    most = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return most if sys.platform == "darwin" else most * 1024


@contextlib.contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """Note the greatest resident set while the block runs.

    Yields:
        A dict, with "peak" (bytes) and "method" after the block. Methods: "VmHWM", the kernel's own
        mark, reset before; "sampled" every millisecond; "getrusage", of the whole life so far.

    Raises:
        OSError: the system tells none of them.
    """
    found: dict[str, Any] = {}
    if resident() is not None and reset_peak():
        yield found
        found |= {"peak": resident("VmHWM"), "method": "VmHWM"}
    elif resident() is not None:
        most, done = [resident() or 0], threading.Event()

        def look() -> None:
            while not done.wait(POLL_SECONDS):
                most[0] = max(most[0], resident() or 0)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            done.set()
            thread.join()
        found |= {"peak": max(most[0], resident() or 0), "method": "sampled"}
    else:
        if greatest_ever() is None:
            raise OSError("measure_memory: this system does not tell a process' greatest memory")
        yield found
        found |= {"peak": greatest_ever(), "method": "getrusage"}


def named(given: Any, names: list[str]) -> dict[str, Any]:
    """Arrays by the names that a file gives its inputs, where they came by position.

    Raises:
        ValueError: other inputs than the file's.
    """
    if not isinstance(given, Mapping):
        given = dict(zip(names, given, strict=False)) if len(given) == len(names) else {}
    if set(given) != set(names):
        raise ValueError(f"the file takes the inputs {names}")
    return dict(given)


def open_onnxruntime(path: str, given: Any, threads: int) -> Call:
    """ONNX Runtime with all its graph optimisations; inputs and outputs are bound, not copied.

    Args:
        path: of the ONNX file.
        given: arrays, by position or by name.
        threads: inside an operator; operators run one after another.
    """
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    arrays = named(given, [port.name for port in session.get_inputs()])
    for name, array in arrays.items():
        binding.bind_ortvalue_input(name, runtime.OrtValue.ortvalue_from_numpy(array))
    for port in session.get_outputs():
        binding.bind_output(port.name)

    def call() -> list[Any]:
        session.run_with_iobinding(binding)
        return list(binding.get_outputs())

    call.kept = arrays  # type: ignore[attr-defined]  # the runtime reads these very arrays
    return call


def open_openvino(path: str, given: Any, threads: int) -> Call:
    """OpenVINO, set for latency; what the file has in float32 stays so.

    Args:
        path: of an ONNX file or of OpenVINO's own .xml.
        given: arrays, by position or by name.
        threads: that inference may take.
    """
    runtime = importlib.import_module("openvino")
    core = runtime.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    request = compiled.create_infer_request()
    names = [port.any_name for port in compiled.inputs]
    arrays = named(given, names)
    for index, name in enumerate(names):
        request.set_input_tensor(index, runtime.Tensor(arrays[name], shared_memory=True))
    outputs = range(len(compiled.outputs))

    def call() -> list[Any]:
        request.infer()
        return [request.get_output_tensor(index) for index in outputs]

    call.kept = arrays  # type: ignore[attr-defined]  # the runtime reads these very arrays
    return call


def reason(error: Exception) -> str:
    """The first line of an error that says something; OpenVINO tells places in its source first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((li for li in lines if not li.startswith("Exception from")), repr(error))


RUNTIMES = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}


def _open_torch(request: dict[str, Any], given: Any) -> Callable[[], Call]:
    """What a torch process needs is imported now; the model is read when the result is called."""
    files = importlib.import_module("sparseq.bench.files")
    torch = importlib.import_module("torch")
    torch.set_num_threads(request["threads"])
    by_name = isinstance(given, Mapping)
    tensors = [torch.from_numpy(a) for a in (given.values() if by_name else given)]
    build = files.find_architecture("measure_memory", request["architecture"], request["arguments"])

    def load() -> Call:
        model = files.open_torch("measure_memory", request["path"], build)

        def call() -> list[Any]:
            with torch.inference_mode():
                if by_name:
                    return [model(**dict(zip(given, tensors, strict=True)))]
                return [model(*tensors)]

        return call

    return load


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Open the file, run it, and return idle, before and peak bytes, with the method."""
    import numpy

    with numpy.load(request["inputs"]) as held:
        arrays = [held[name] for name in held.files]
    names = request["names"]
    given: Any = arrays if names is None else dict(zip(names, arrays, strict=True))
    load: Callable[[], Call]
    if request["runtime"] in RUNTIMES:
        importlib.import_module(request["runtime"])
        opened = RUNTIMES[request["runtime"]]
        load = lambda: opened(request["path"], given, request["threads"])  # noqa: E731
    else:
        load = _open_torch(request, given)
    give_back()
    idle = resident()
    call = load()
    give_back()
    before = resident()
    with watched() as found:
        for _ in range(request["calls"]):
            call()
        time.sleep(2 * POLL_SECONDS)
    return {"idle": idle, "before": before, **found}


def main() -> int:
    """Read a request as JSON from stdin; the last line on stdout is the answer."""
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != str(Path(__file__).parent)]
    try:
        answer = measure(json.loads(sys.stdin.read()))
    except Exception as error:
        answer = {"error": reason(error)}
    print("\n" + json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
