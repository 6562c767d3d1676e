"""Export to ONNX, and the proof that ONNX Runtime gives the same numbers."""

from sparseq.export.compare import Report, VerificationError, verify
from sparseq.export.contents import Entry, Inspection, inspect
from sparseq.export.kernels import Kernel, kernels
from sparseq.export.symbolics import available, register_symbolics
from sparseq.export.to_onnx import onnx
from sparseq.export.translate import translations

__all__ = [
    "Entry",
    "Inspection",
    "Kernel",
    "Report",
    "VerificationError",
    "inspect",
    "kernels",
    "onnx",
    "register_symbolics",
    "translations",
    "verify",
]

if available():  # so that torch's own TorchScript exporter takes prepared models, too
    register_symbolics()
