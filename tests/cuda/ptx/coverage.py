"""Which instructions of each kernel were executed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from .launch import Launch
from .parse import Module
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

    def missing(self, name: str) -> list[str]:
        """The instructions of a kernel that never ran."""
        instructions = self.module.kernel(name).instructions
        covered = self.covered.get(name, np.zeros(len(instructions), bool))
        return [str(i) for i, c in zip(instructions, covered, strict=True) if not c]

    def report(self, exempt: Mapping[str, str], names: Iterable[str] | None = None) -> list[str]:
        """A line for each kernel that did not run completely.

        `exempt` maps patterns of "kernel: instruction" to reasons for which an instruction is left
        out; a pattern that leaves out nothing is reported too.
        """
        lines, used = [], set()
        for name in self.module.names if names is None else names:
            left = []
            for instruction in self.missing(name):
                reasons = {p for p in exempt if re.search(p, f"{name}: {instruction}")}
                used |= reasons
                if not reasons:
                    left.append(instruction)
            if left:
                total = len(self.module.kernel(name).instructions)
                lines.append(f"{name}: {len(left)} of {total} not run, first {left[0]}")
        unused = [p for p in exempt if p not in used]
        return lines + [f"exemption {p!r} applies to nothing" for p in unused]
