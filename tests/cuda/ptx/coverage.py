"""Which instructions of each kernel were executed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from .launch import Launch
from .parse import Module
from .program import BRANCHES
from .types import Array


class Coverage:
    """Adds up launches."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.covered: dict[str, Array] = {}

    def add(self, launch: Launch) -> None:
        name = launch.program.kernel.name
        seen = self.covered.setdefault(name, np.zeros_like(launch.covered))
        seen |= launch.covered

    def missing(self, name: str) -> list[list[str]]:
        """The instructions of a kernel that never ran, block by block of straight code."""
        kernel = self.module.kernel(name)
        covered = self.covered.get(name, np.zeros(len(kernel.instructions), bool))
        starts, blocks = set(kernel.labels.values()), [[]]
        for k, instruction in enumerate(kernel.instructions):
            if k in starts:
                blocks.append([])
            if not covered[k]:
                blocks[-1].append(str(instruction))
            if instruction.opcode.partition(".")[0] in BRANCHES:
                blocks.append([])
        return [block for block in blocks if block]

    def report(self, exempt: Mapping[str, str]) -> list[str]:
        """See `report`."""
        return report([self], exempt)


def report(parts: Iterable[Coverage], exempt: Mapping[str, str]) -> list[str]:
    """A line for each block of straight code, of any of the modules, that did not run completely.

    `exempt` maps patterns to reasons: a block is left out where one is found in the kernel's name,
    a colon and the instructions that did not run. A pattern that leaves out nothing is reported
    too.
    """
    lines, used = [], set()
    for part in parts:
        for name in part.module.names:
            for block in part.missing(name):
                text = f"{name}: " + " ".join(block)
                reasons = {p for p in exempt if re.search(p, text)}
                used |= reasons
                if not reasons:
                    lines.append(f"{name}: {len(block)} instructions not run from {block[0]} on")
    unused = [p for p in exempt if p not in used]
    return lines + [f"exemption {p!r} applies to nothing" for p in unused]
