"""Stands in for TensorRT 10 and 11: the names that each version's bindings have, and no others.

Names are those of python/src/infer/*.cpp and python/src/parsers/pyOnnx.cpp of NVIDIA's open source
releases 10.16 and 11.1. FAKE_TENSORRT is a JSON object: "version"; "log", a file for the calls;
"fail", what goes wrong; "float", an ONNX node that runs in float32. "Engines" double their input.
"""

import ctypes
import json
import os
import sys

_CONFIG = json.loads(os.environ["FAKE_TENSORRT"])
__version__ = _CONFIG["version"]
_IS_10 = __version__.startswith("10.")
_FAIL = _CONFIG.get("fail")


def _log(*call):
    with open(_CONFIG["log"], "a") as file:
        print(json.dumps(call), file=file)


class _Value:
    def __init__(self, kind, name, value):
        self.kind, self.name, self.value = kind, name, value

    def __int__(self):
        return self.value

    def __repr__(self):
        return f"{self.kind}.{self.name}"


def _enum(kind, *names):
    return type(kind, (), {name: _Value(kind, name, index) for index, name in enumerate(names)})


_FLAGS = ("DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "TF32", "SPARSE_WEIGHTS")
_FLAGS_10 = ("FP16", "BF16", "INT8", "FP8", "OBEY_PRECISION_CONSTRAINTS")
BuilderFlag = _enum("BuilderFlag", *(_FLAGS_10 if _IS_10 else ()), *_FLAGS)
NetworkDefinitionCreationFlag = _enum(
    "NetworkDefinitionCreationFlag", *(("EXPLICIT_BATCH",) if _IS_10 else ()), "STRONGLY_TYPED"
)
MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE", "DLA_MANAGED_SRAM", "TACTIC_SHARED_MEMORY")
ProfilingVerbosity = _enum("ProfilingVerbosity", "LAYER_NAMES_ONLY", "DETAILED", "NONE")
HardwareCompatibilityLevel = _enum(
    "HardwareCompatibilityLevel", "NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"
)
LayerInformationFormat = _enum("LayerInformationFormat", "ONELINE", "JSON")
TensorIOMode = _enum("TensorIOMode", "NONE", "INPUT", "OUTPUT")
DataType = _enum("DataType", "FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16")


class ILogger:
    Severity = _enum("Severity", "INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")


class IProgressMonitor:
    pass


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags=0):
        names = [
            v.name
            for v in vars(NetworkDefinitionCreationFlag).values()
            if isinstance(v, _Value) and flags >> v.value & 1
        ]
        _log("create_network", names)
        return INetworkDefinition()

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        _log("build_serialized_network")
        monitor = vars(config).get("progress_monitor")
        if monitor is not None:
            monitor.phase_start("Building Engine", None, 2)
            assert monitor.step_complete("Building Engine", 0)
            monitor.phase_finish("Building Engine")
        if _FAIL == "crash":
            print("a message of a library", file=sys.stderr, flush=True)
            os.kill(os.getpid(), 11)
        if _FAIL == "build":
            self.logger.log(ILogger.Severity.ERROR, "out of tactics")
            return None
        plan = {"sparse": "SPARSE_WEIGHTS" in config.names, "nodes": network.nodes}
        plan |= {"profiles": [p.shapes for p in config.profiles], "inputs": network.inputs}
        return b"ftrt" + json.dumps(plan).encode()


class INetworkDefinition:
    nodes, inputs = (), ()


class OnnxParser:
    def __init__(self, network, logger):
        self.network = network

    def parse(self, model, path=None):
        import onnx

        assert os.path.isabs(path)
        if _FAIL == "parse":
            return False
        graph = onnx.load_model_from_string(model).graph
        kinds = ("Conv", "Gemm", "MatMul")
        self.network.nodes = [n.name for n in graph.node if n.op_type in kinds]
        self.network.inputs = [
            [i.name, [d.dim_value or -1 for d in i.type.tensor_type.shape.dim]] for i in graph.input
        ]
        return True

    num_errors = 1

    def get_error(self, index):
        return ParserError()


class ParserError:
    def desc(self):
        return "Assertion failed: the axis is beyond all bounds\nmore of it"

    def node_name(self):
        return "blocks.1.conv1.product"

    def node_operator(self):
        return "Conv"


class IOptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        self.shapes[input] = [list(min), list(opt), list(max)]


class IBuilderConfig:
    def __init__(self):
        self.names, self.profiles = [], []

    def __setattr__(self, name, value):
        known = {"names", "profiles", "profiling_verbosity", "hardware_compatibility_level"}
        if name not in known | {"progress_monitor"}:
            raise AttributeError(name)  # no int8_calibrator, no num_compute_capabilities
        if isinstance(value, _Value):
            _log(name, value.name)
        super().__setattr__(name, value)

    def set_flag(self, flag):
        _log("set_flag", flag.name)
        self.names.append(flag.name)

    def set_memory_pool_limit(self, pool, pool_size):
        _log("set_memory_pool_limit", pool.name, pool_size)

    def add_optimization_profile(self, profile):
        _log("add_optimization_profile", profile.shapes)
        self.profiles.append(profile)
        return -1 if _FAIL == "profile" else len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache):
        _log("create_timing_cache", serialized_timing_cache.decode())
        return ITimingCache()

    def set_timing_cache(self, cache, ignore_mismatch):
        _log("set_timing_cache", ignore_mismatch)
        return _FAIL != "cache"

    def get_timing_cache(self):
        return ITimingCache()


class ITimingCache:
    def serialize(self):
        return b"measured"


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        if _FAIL == "load" or not bytes(serialized_engine).startswith(b"ftrt"):
            self.logger.log(ILogger.Severity.ERROR, "the engine is of another version")
            return None
        return ICudaEngine(json.loads(bytes(serialized_engine)[4:]))


class ICudaEngine:
    num_io_tensors = 2

    def __init__(self, plan):
        self.plan = plan
        ((self.input, self.shape),) = plan["inputs"]
        fixed = {self.input: [self.shape] * 3}
        self.profile = (plan["profiles"] or [fixed])[0][self.input]

    def get_tensor_name(self, index):
        return (self.input, "output")[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == self.input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType.FP8 if _FAIL == "dtype" else DataType.FLOAT

    def get_tensor_shape(self, name):
        return tuple(self.shape)

    def get_tensor_profile_shape(self, name, profile_index):
        return [tuple(shape) for shape in self.profile]

    def create_execution_context(self):
        return None if _FAIL == "context" else IExecutionContext(self)

    def create_engine_inspector(self):
        return EngineInspector(self.plan)


class IExecutionContext:
    def __init__(self, engine):
        self.engine, self.addresses, self.runs = engine, {}, []

    def set_input_shape(self, name, shape):
        self.shape = shape
        return _FAIL != "shape"

    def get_tensor_shape(self, name):
        return (-1,) if _FAIL == "values" else self.shape

    def set_tensor_address(self, name, memory):
        self.addresses[name] = memory

    def execute_async_v3(self, stream_handle):
        self.runs.append(stream_handle)
        count = 1
        for size in self.shape:
            count *= size
        source, target = (
            (ctypes.c_float * count).from_address(self.addresses[name])
            for name in (self.engine.input, "output")
        )
        for index in range(count):
            target[index] = 2 * source[index]
        return _FAIL != "run"


class EngineInspector:
    def __init__(self, plan):
        self.plan = plan

    def get_engine_information(self, format):
        assert format is LayerInformationFormat.JSON
        layers = [self.layer(node) for node in self.plan["nodes"]]
        layers.append({"Name": "Reformat", "LayerType": "Reformat", "Metadata": ""})
        return json.dumps({"Layers": layers, "Bindings" if _IS_10 else "I/O Tensors": []})

    def layer(self, node):
        wide = node == _CONFIG.get("float")

        def tensor(kind):
            if _IS_10:
                words = {"Int8": "Thirty-two wide channel vectorized row major Int8 format"}
                return [
                    {"Name": "t", "Format/Datatype": words.get(kind, f"Row major {kind} format")}
                ]
            return [{"Name": "t", "Format": "Row major linear", "DataType": kind}]

        single = "FP32" if _IS_10 else "Float"
        sparse = "sparse_" if self.plan["sparse"] and not wide else ""
        return {
            "Name": f"{node} + relu",
            "LayerType": "CaskConvolution",
            "ParameterType": "Convolution",
            "Inputs": tensor(single if wide else "Int8"),
            "Outputs": tensor(single if wide else "Int8"),
            "Weights": {"Type": "Float" if wide else "Int8", "Count": 9216},
            "TacticName": f"sm80_xmma_fprop_{sparse}conv_interleaved_i8i8_i8i32_f32",
            "Metadata": f"[ONNX Layer: {node}]\u001e[ONNX Layer: relu]",
        }
