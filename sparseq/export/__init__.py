"""Export to ONNX and TensorRT, and the proof that ONNX Runtime gives the same numbers."""

from sparseq.export.compare import Report, VerificationError, verify
from sparseq.export.contents import Entry, Inspection, inspect
from sparseq.export.engine.audit import AuditedLayer, EngineAudit, EngineAuditError, audit
from sparseq.export.engine.build import EngineBuildError, tensorrt
from sparseq.export.engine.runner import Engine
from sparseq.export.engine.trtexec import trtexec_command
from sparseq.export.kernels import Kernel, kernels
from sparseq.export.symbolics import available, register_symbolics
from sparseq.export.to_onnx import onnx
from sparseq.export.translate import translations

__all__ = [
    "AuditedLayer",
    "Engine",
    "EngineAudit",
    "EngineAuditError",
    "EngineBuildError",
    "Entry",
    "Inspection",
    "Kernel",
    "Report",
    "VerificationError",
    "audit",
    "inspect",
    "kernels",
    "onnx",
    "register_symbolics",
    "tensorrt",
    "translations",
    "trtexec_command",
    "verify",
]

if available():  # so that torch's own TorchScript exporter takes prepared models, too
    register_symbolics()
