"""Quantisation: observers, the fake-quantising transform, and freezing."""

from sparseq.quant.cast import Cast
from sparseq.quant.dynamic import DynamicQuantize
from sparseq.quant.fake_quantize import FakeQuantize
from sparseq.quant.fit import fitted_range, range_of_values
from sparseq.quant.grid import range_to_grid
from sparseq.quant.histogram import HistogramObserver
from sparseq.quant.observer import Observer
from sparseq.quant.schedule import (
    Schedule,
    freeze_batch_norms,
    freeze_observers,
    is_frozen,
    unfreeze_batch_norms,
)

__all__ = [
    "Cast",
    "DynamicQuantize",
    "FakeQuantize",
    "HistogramObserver",
    "Observer",
    "Schedule",
    "fitted_range",
    "freeze_batch_norms",
    "freeze_observers",
    "is_frozen",
    "range_of_values",
    "range_to_grid",
    "unfreeze_batch_norms",
]
