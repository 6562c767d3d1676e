"""Builds one engine in a process of its own, by TensorRT 10 or 11 or TensorRT-RTX.

Run by its path, so that it imports TensorRT and the standard library only. A failed build leaves
state behind in TensorRT that makes the next one fail; a crash of its libraries ends this process,
not the user's.

Standard input: a line of JSON (see `Settings` in build.py), then the ONNX file; the end of the
stream after that means that the user's process is gone. Standard output: lines of JSON, `{"event":
...}`; where one has "bytes", that many follow it. What libraries print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from typing import Any, BinaryIO

_NO_DEVICE = ("CUDA initialization failure", "cudaError", "CUDA driver", "no CUDA-capable device")


class Refused(Exception):
    """TensorRT did not do what was asked; args: kind and details for the error event."""


class Channel:
    """Sends events; TensorRT's threads share it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.lock = stream, threading.Lock()

    def send(self, event: str, payload: Any = b"", **fields: Any) -> None:
        """Write one event, with a payload if there is one."""
        view = memoryview(payload).cast("B")
        line = json.dumps({"event": event, "bytes": view.nbytes, **fields})
        with self.lock:
            self.stream.write(line.encode() + b"\n")
            self.stream.write(view)
            self.stream.flush()


def make_logger(trt: Any, messages: list[str]) -> Any:
    """A logger that keeps warnings and errors."""

    class Keeping(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            kept = trt.ILogger.Severity
            if severity in (kept.INTERNAL_ERROR, kept.ERROR, kept.WARNING):
                messages.append(message.strip())

    return Keeping()


def make_monitor(trt: Any, channel: Channel) -> Any:
    """A progress monitor that sends events."""

    class Sending(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            channel.send("phase", name=phase_name, parent=parent_phase, steps=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            channel.send("step", name=phase_name, step=step)
            return True  # the user's process ends this one when it wants to stop

        def phase_finish(self, phase_name: str) -> None:
            channel.send("finish", name=phase_name)

    return Sending()


def make_network(trt: Any, builder: Any) -> Any:
    """A strongly typed network: types are those of the file, in every version."""
    kinds = getattr(trt, "NetworkDefinitionCreationFlag", None)
    typed = getattr(kinds, "STRONGLY_TYPED", None)  # where it is gone every network is so
    return builder.create_network(0 if typed is None else 1 << int(typed))


def parse(trt: Any, network: Any, logger: Any, model: bytes, path: str) -> Any:
    """Fill the network from the ONNX file; the parser must outlive the build."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse(model, path):
        return parser
    errors = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        errors.append(
            {
                "node": error.node_name() if hasattr(error, "node_name") else "",
                "operator": error.node_operator() if hasattr(error, "node_operator") else "",
                "reason": error.desc(),
            }
        )
    raise Refused("parse", {"errors": errors})


def set_targets(trt: Any, config: Any, settings: dict[str, Any]) -> None:
    """The devices that the engine shall run on."""
    capabilities = settings["compute_capabilities"]
    if capabilities:
        kinds = trt.ComputeCapability
        names = [f"SM{c.replace('.', '')}" for c in capabilities]
        known = [n for n in dir(kinds) if n.startswith("SM")]
        for capability, name in zip(capabilities, names, strict=True):
            if name not in known:
                raise Refused("capability", {"capability": capability, "known": sorted(known)})
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            if config.set_compute_capability(getattr(kinds, name), index) is False:
                raise Refused("capability", {"capability": name, "known": sorted(known)})
    level = settings["hardware_compatibility"]
    if level:
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)


def make_config(trt: Any, builder: Any, network: Any, settings: dict[str, Any]) -> Any:
    """The builder's configuration."""
    config = builder.create_builder_config()
    if settings["workspace"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings["workspace"])
    if settings["sparse"]:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the audit reads it
    set_targets(trt, config, settings)
    if settings["shapes"]:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in settings["shapes"].items():
            profile.set_shape(name, least, usual, most)
        if config.add_optimization_profile(profile) < 0:
            raise Refused("profile", {"shapes": settings["shapes"]})
    return config


def inspect(trt: Any, logger: Any, plan: Any) -> list[Any]:
    """What the inspector tells of each layer of a TensorRT engine."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return []
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers: list[Any] = json.loads(text).get("Layers", [])
    return layers


def build(settings: dict[str, Any], model: bytes, channel: Channel, messages: list[str]) -> None:
    """Build, and send "cache", "layers" and at last "plan"."""
    trt = importlib.import_module(settings["module"])
    channel.send("version", version=str(trt.__version__))
    logger = make_logger(trt, messages)
    builder = trt.Builder(logger)
    network = make_network(trt, builder)
    parser = parse(trt, network, logger, model, settings["onnx"])
    config = make_config(trt, builder, network, settings)
    if settings["progress"] and hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = make_monitor(trt, channel)
    cache = settings["timing_cache"]
    if cache is not None:
        data = b""
        if os.path.isfile(cache):
            with open(cache, "rb") as file:
                data = file.read()
        timing = config.create_timing_cache(data)
        if timing is None or not config.set_timing_cache(timing, False):
            raise Refused("cache", {"path": cache})
    plan = builder.build_serialized_network(network, config)
    del parser
    if plan is None:
        raise Refused("build", {})
    if cache is not None:
        channel.send("cache", config.get_timing_cache().serialize())
    if settings["inspect"]:
        channel.send("layers", json.dumps(inspect(trt, logger, plan)).encode())
    channel.send("plan", plan, messages=messages)


def _end_with_parent(stream: BinaryIO) -> None:
    while stream.read(1 << 16):
        pass
    os._exit(1)


def main() -> int:
    """The process; its exit status is 0 unless it is ended from outside."""
    channel = Channel(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # what TensorRT prints must not get between the events
    incoming = sys.stdin.buffer
    settings = json.loads(incoming.readline())
    model = incoming.read(settings["model_bytes"])
    threading.Thread(target=_end_with_parent, args=(incoming,), daemon=True).start()
    messages: list[str] = []
    try:
        build(settings, model, channel, messages)
    except Refused as refusal:
        kind, details = refusal.args
        channel.send("error", kind=kind, messages=_told(messages), **details)
    except Exception as error:  # whatever the library raises becomes an event
        reason = f"{type(error).__name__}: {error}"
        channel.send("error", kind="other", reason=reason, messages=_told(messages))
    channel.stream.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a daemon thread holds stdin, and TensorRT's own clean-up may need a device


def _told(messages: list[str]) -> list[str]:
    """The messages, without those of a missing GPU where others tell the reason."""
    others = [m for m in messages if not any(word in m for word in _NO_DEVICE)]
    return others or messages


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file: its modules are part of a package
    main()
