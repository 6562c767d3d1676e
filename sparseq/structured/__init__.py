"""Structure: channels that go for real, or change places, on a dependency graph of one run."""

from sparseq.structured.graph import ChannelGraph, Group
from sparseq.structured.permute import PermutationReport, Permuted, permute_channels
from sparseq.structured.prune import prune_channels
from sparseq.structured.report import ChannelReport, Pruned
from sparseq.structured.search import Order, search_order

__all__ = [
    "ChannelGraph",
    "ChannelReport",
    "Group",
    "Order",
    "PermutationReport",
    "Permuted",
    "Pruned",
    "permute_channels",
    "prune_channels",
    "search_order",
]
