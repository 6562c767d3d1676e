"""From a float model to a deployed one: prepare, calibrate, convert, explain, save, load."""

from sparseq.flow.calibrate import calibrate
from sparseq.flow.convert import convert
from sparseq.flow.explain import Explanation, explain
from sparseq.flow.prepare import prepare
from sparseq.flow.reestimate import reestimate_batch_norms
from sparseq.flow.storage import load, save

__all__ = [
    "Explanation",
    "calibrate",
    "convert",
    "explain",
    "load",
    "prepare",
    "reestimate_batch_norms",
    "save",
]
