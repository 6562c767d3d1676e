"""What `prune_channels` did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pruned:
    """One coupled set of channels.

    Attributes:
        producers: layers that make them.
        consumers: layers that read them.
        before: how many there were.
        after: how many there are.
        width: indices of a layer's dimension to a channel: an attention head's features, or one.
        reason: why none went, or None.
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    before: int
    after: int
    width: int
    reason: str | None


@dataclass(frozen=True)
class ChannelReport:
    """Coupled sets, and what is left. It prints itself.

    Attributes:
        groups: in the order of the run.
        macs: multiplications for the example, before and after.
        parameters: how many, before and after.
    """

    groups: tuple[Pruned, ...]
    macs: tuple[int, int]
    parameters: tuple[int, int]

    @property
    def pruned(self) -> tuple[Pruned, ...]:
        """The sets that lost channels."""
        return tuple(group for group in self.groups if group.after < group.before)

    @property
    def kept(self) -> tuple[Pruned, ...]:
        """The sets that lost none, each with its reason."""
        return tuple(group for group in self.groups if group.after == group.before)

    def __str__(self) -> str:
        """A line a set, then totals."""
        lines = []
        for group in self.groups:
            names = group.producers or group.consumers
            shown = ", ".join(names[:2]) + (f" (+{len(names) - 2})" if len(names) > 2 else "")
            unit = f" x {group.width}" if group.width > 1 else ""
            count = f"{group.before} -> {group.after}{unit}"
            lines.append(f"{shown}: " + (count if group.reason is None else
                                         f"{group.before}{unit} kept: {group.reason}"))  # fmt: skip
        for name, (before, after) in (("MACs", self.macs), ("parameters", self.parameters)):
            share = after / before if before else 1.0
            lines.append(f"{name}: {before:,} -> {after:,} ({share:.1%})")
        return "\n".join(lines)
