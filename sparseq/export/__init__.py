"""Export to ONNX, and the proof that ONNX Runtime gives the same numbers."""

from sparseq.export.compare import Report, VerificationError, verify
from sparseq.export.contents import Entry, Inspection, inspect
from sparseq.export.to_onnx import onnx

__all__ = ["Entry", "Inspection", "Report", "VerificationError", "inspect", "onnx", "verify"]
