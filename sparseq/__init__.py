"""Makes a PyTorch model smaller and faster: INT8, INT4, 2:4 sparsity, pruning, distillation.

In short::

    plan = Plan({"*": Layer(weight=Quant(axis=0), input=Quant(symmetric=False))})
    prepare(model, plan)                    # in place; weights still float
    calibrate(model, batches)               # post-training quantisation is done here
    ...                                     # or train on in your own loop: QAT
    fast = convert(model)                   # integer kernels
    export.onnx(model, example, "m.onnx")
"""

from sparseq import analysis, bench, distill, export, migrate, nn, ops, quant, sparse
from sparseq.analysis import Budget, Diagnosis, Found, Sensitivity, diagnose, search, sensitivity
from sparseq.flow import (
    Explanation,
    calibrate,
    convert,
    explain,
    load,
    prepare,
    reestimate_batch_norms,
    save,
)
from sparseq.ptq import AdaRound, PTQReport, ptq
from sparseq.spec import NM, Block, Layer, Plan, Quant, Unstructured

__version__ = "0.1.0"

__all__ = [
    "NM",
    "AdaRound",
    "Block",
    "Budget",
    "Diagnosis",
    "Explanation",
    "Found",
    "Layer",
    "PTQReport",
    "Plan",
    "Quant",
    "Sensitivity",
    "Unstructured",
    "analysis",
    "bench",
    "calibrate",
    "convert",
    "diagnose",
    "distill",
    "explain",
    "export",
    "load",
    "migrate",
    "nn",
    "ops",
    "prepare",
    "ptq",
    "quant",
    "reestimate_batch_norms",
    "save",
    "search",
    "sensitivity",
    "sparse",
]
