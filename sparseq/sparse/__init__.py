"""Sparsity: criteria, masks, schedules in the user's loop, lottery tickets, torch's 2:4 layout."""

from sparseq.sparse.callbacks import lightning_callback, transformers_callback
from sparseq.sparse.criteria import Criterion
from sparseq.sparse.layout import SwapChannels, swap_channels
from sparseq.sparse.lottery import Lottery, LotteryRow, lottery
from sparseq.sparse.mask import Mask, magnitude_masks, nm_mask, serves
from sparseq.sparse.schedule import PruningSchedule
from sparseq.sparse.score import Movement, score
from sparseq.sparse.semi_structured import from_torch_24, semi_structured, to_torch_24
from sparseq.sparse.update import freeze_masks, masks_of, named_masks, update_masks

__all__ = [
    "Criterion",
    "Lottery",
    "LotteryRow",
    "Mask",
    "Movement",
    "PruningSchedule",
    "SwapChannels",
    "freeze_masks",
    "from_torch_24",
    "lightning_callback",
    "lottery",
    "magnitude_masks",
    "masks_of",
    "named_masks",
    "nm_mask",
    "score",
    "semi_structured",
    "serves",
    "swap_channels",
    "to_torch_24",
    "transformers_callback",
    "update_masks",
]
