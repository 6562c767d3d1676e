"""Makes a PyTorch model smaller and faster: INT8, INT4, 2:4 sparsity, pruning, distillation.

In short::

    plan = Plan({"*": Layer(weight=Quant(axis=0), input=Quant(symmetric=False))})
    prepare(model, plan)                    # in place; weights still float
    calibrate(model, batches)               # post-training quantisation is done here
    ...                                     # or train on in your own loop: QAT
    fast = convert(model)                   # integer kernels
    export.onnx(model, example, "m.onnx")
"""

from sparseq import analysis, bench, distill, export, migrate, nn, ops, quant, sparse, structured
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
from sparseq.spec import NM, Block, Channels, Layer, Plan, Quant, Unstructured
from sparseq.structured import (
    ChannelGraph,
    ChannelReport,
    PermutationReport,
    permute_channels,
    prune_channels,
)

__version__ = "0.1.0"

__all__ = [
    "NM",
    "AdaRound",
    "Block",
    "Budget",
    "ChannelGraph",
    "ChannelReport",
    "Channels",
    "Diagnosis",
    "Explanation",
    "Found",
    "Layer",
    "PTQReport",
    "PermutationReport",
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
    "permute_channels",
    "prepare",
    "prune_channels",
    "ptq",
    "quant",
    "reestimate_batch_norms",
    "save",
    "search",
    "sensitivity",
    "sparse",
    "structured",
]
