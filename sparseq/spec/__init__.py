"""What to do with which layer: frozen dataclasses, checked on construction, to JSON and back."""

from sparseq.spec.channels import Channels
from sparseq.spec.layer import DTYPES, Layer
from sparseq.spec.plan import Plan
from sparseq.spec.quant import LEARNED, OBSERVERS, RANGE_OBSERVERS, Quant
from sparseq.spec.sparsity import CRITERIA, FROM_DATA, NM, Block, Sparsity, Unstructured

__all__ = [
    "CRITERIA",
    "DTYPES",
    "FROM_DATA",
    "LEARNED",
    "NM",
    "OBSERVERS",
    "RANGE_OBSERVERS",
    "Block",
    "Channels",
    "Layer",
    "Plan",
    "Quant",
    "Sparsity",
    "Unstructured",
]
