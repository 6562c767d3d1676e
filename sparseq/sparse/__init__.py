"""Sparsity: masks by magnitude, N:M masks, schedules in the user's loop, torch's 2:4 layout."""

from sparseq.sparse.layout import SwapChannels, swap_channels
from sparseq.sparse.mask import Mask, magnitude_masks, nm_mask, serves
from sparseq.sparse.schedule import PruningSchedule, masks_of, update_masks
from sparseq.sparse.semi_structured import from_torch_24, semi_structured, to_torch_24

__all__ = [
    "Mask",
    "PruningSchedule",
    "SwapChannels",
    "from_torch_24",
    "magnitude_masks",
    "masks_of",
    "nm_mask",
    "semi_structured",
    "serves",
    "swap_channels",
    "to_torch_24",
    "update_masks",
]
