"""Post-training quantisation beyond `calibrate`: equalisation, SmoothQuant, AdaRound, biases."""

from sparseq.ptq.adaround import AdaRound, Rounding
from sparseq.ptq.report import PTQReport, Step
from sparseq.ptq.run import ptq

__all__ = ["AdaRound", "PTQReport", "Rounding", "Step", "ptq"]
