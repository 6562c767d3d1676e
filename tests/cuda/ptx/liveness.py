"""Which registers are still read after each instruction, so that others need not be kept."""

from __future__ import annotations

from collections.abc import Sequence


def live_before(
    reads: Sequence[set[str]], kills: Sequence[set[str]], successors: Sequence[tuple[int, ...]]
) -> list[frozenset[str]]:
    """For each instruction and the end: registers whose values from before it are read later.

    `kills` are the registers that an instruction overwrites in all threads that execute it.
    """
    names = sorted(set().union(*reads)) if reads else []
    bit = {name: 1 << k for k, name in enumerate(names)}
    use = [sum(bit[n] for n in r) for r in reads]
    keep = [~sum(bit[n] for n in k if n in bit) for k in kills]
    live = [0] * (len(use) + 1)
    changed = True
    while changed:
        changed = False
        for k in range(len(use) - 1, -1, -1):
            after = 0
            for s in successors[k]:
                after |= live[s]
            now = use[k] | after & keep[k]
            if now != live[k]:
                live[k], changed = now, True
    known: dict[int, frozenset[str]] = {}
    for mask in live:
        if mask not in known:
            known[mask] = frozenset(n for n in names if mask & bit[n])
    return [known[mask] for mask in live]
