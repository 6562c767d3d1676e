"""From a converted model to programs: activations stay uint8 between layers."""

from sparseq.lower.assemble import Assembled
from sparseq.lower.module import Lowered, layerwise, lower

__all__ = ["Assembled", "Lowered", "layerwise", "lower"]
