"""Structure: channels that go for real, or change places, on a dependency graph of one run."""

from sparseq.structured.graph import ChannelGraph, Group
from sparseq.structured.prune import prune_channels
from sparseq.structured.report import ChannelReport, Pruned

__all__ = ["ChannelGraph", "ChannelReport", "Group", "Pruned", "prune_channels"]
