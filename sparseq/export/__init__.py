"""Export to ONNX and TensorRT, and the proof that ONNX Runtime gives the same numbers."""

from sparseq.export.compare import Report, VerificationError, verify
from sparseq.export.engine.audit import AuditedLayer, EngineAudit, EngineAuditError, audit
from sparseq.export.engine.build import EngineBuildError, tensorrt
from sparseq.export.engine.runner import Engine
from sparseq.export.engine.trtexec import trtexec_command
from sparseq.export.to_onnx import onnx

__all__ = [
    "AuditedLayer",
    "Engine",
    "EngineAudit",
    "EngineAuditError",
    "EngineBuildError",
    "Report",
    "VerificationError",
    "audit",
    "onnx",
    "tensorrt",
    "trtexec_command",
    "verify",
]
