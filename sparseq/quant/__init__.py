"""Quantisation: observers, the fake-quantising transform, and freezing."""

from torch import nn

from sparseq.quant.fake_quantize import FakeQuantize
from sparseq.quant.observer import Observer, range_to_grid

__all__ = ["FakeQuantize", "Observer", "freeze_observers", "range_to_grid"]


def freeze_observers(model: nn.Module) -> None:
    """Keep every input's grid as it is for the rest of training; weights' grids go on following."""
    for module in model.modules():
        if isinstance(module, FakeQuantize) and not module.follow:
            module.freeze()
