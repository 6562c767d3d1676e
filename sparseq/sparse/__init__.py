"""Sparsity: masks by magnitude, N:M masks, and schedules that step in the user's loop."""

from sparseq.sparse.mask import Mask, magnitude_masks, nm_mask, serves
from sparseq.sparse.schedule import PruningSchedule, masks_of, update_masks

__all__ = [
    "Mask",
    "PruningSchedule",
    "magnitude_masks",
    "masks_of",
    "nm_mask",
    "serves",
    "update_masks",
]
