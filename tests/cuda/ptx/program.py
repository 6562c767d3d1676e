"""A kernel made ready to run: instructions bound to actions, variables given addresses."""

from __future__ import annotations

import re

from .forms import Action
from .liveness import live_before
from .operation import Operation
from .parse import Module
from .syntax import (
    WIDTHS,
    Address,
    Immediate,
    Instruction,
    Kernel,
    Operand,
    Register,
    Symbol,
    Vector,
)

BRANCHES = {"bra", "ret", "exit", "trap"}
BARRIERS = {"bar", "barrier"}
LOCAL_ALIGN = 16


def registers_of(operand: Operand) -> list[Register]:
    if isinstance(operand, Register):
        return [operand]
    parts = [
        getattr(operand, name)
        for name in ("base", "first", "second", "register")
        if hasattr(operand, name)
    ]
    if isinstance(operand, Vector):
        parts += operand.items
    return [r for part in parts for r in registers_of(part)]


def symbols_of(operand: Operand) -> list[str]:
    if isinstance(operand, Symbol):
        return [operand.name]
    return symbols_of(operand.base) if isinstance(operand, Address) else []


def place(variables: dict[str, tuple[int, int]]) -> tuple[dict[str, int], int]:
    """Offsets for variables of (alignment, size), the strictest first, those of no size last."""
    offsets, end = {}, 0
    for name, (align, size) in sorted(variables.items(), key=lambda v: (not v[1][1], -v[1][0])):
        end = -(-end // align) * align
        offsets[name] = end
        end += size
    return offsets, end


class Step:
    """One instruction, bound."""

    __slots__ = ("action", "instruction", "kind", "negated", "predicate", "target")

    def __init__(self, instruction: Instruction, kernel: Kernel) -> None:
        self.instruction = instruction
        self.predicate = instruction.predicate.name if instruction.predicate else None
        self.negated = instruction.negated
        root = instruction.opcode.partition(".")[0]
        warp_level = instruction.opcode.startswith("bar.warp")
        self.kind = root if root in BRANCHES | BARRIERS and not warp_level else ""
        self.kind = {"barrier": "bar", "exit": "ret", "trap": ""}.get(self.kind, self.kind)
        self.target = -1
        if self.kind == "bra":
            label = instruction.operands[0]
            self.target = kernel.labels.get(label.name, -1) if isinstance(label, Symbol) else -1
        self.action: Action


class Program:
    """What a launch executes."""

    def __init__(self, module: Module, kernel: Kernel) -> None:
        self.kernel = kernel
        named = {n for i in kernel.instructions for o in i.operands for n in symbols_of(o)}
        shared = {n: v for n, v in module.shared.items() if n in named} | kernel.shared
        offsets, end = place({n: (v.align, v.size) for n, v in shared.items()})
        self.static_shared = end
        local, end = place({n: (v.align, v.size) for n, v in kernel.local.items()})
        self.local_bytes = -(-end // LOCAL_ALIGN) * LOCAL_ALIGN
        symbols = offsets | local | {n: offset for n, offset, _ in kernel.parameters}
        self.widths: dict[str, int] = {}
        self.steps: list[Step] = []
        # whose results a device may give with an error that PTX bounds: no bits to compare
        self.approximate: list[Instruction] = []
        reads, kills, successors = [], [], []
        for k, instruction in enumerate(kernel.instructions):
            for operand in (*instruction.operands, instruction.predicate):
                if operand is not None:
                    self.widths |= {r.name: r.width for r in registers_of(operand)}
            step = Step(instruction, kernel)
            operation = Operation(instruction, kernel, symbols)
            step.action = operation.bind()
            self.steps.append(step)
            if operation.approximate:
                self.approximate.append(instruction)
            reads.append(operation.reads | ({step.predicate} if step.predicate else set()))
            kills.append(set() if step.predicate else operation.writes)
            if step.predicate:
                reads[-1] |= operation.writes  # the threads left out keep their values
            follow = () if step.kind == "ret" and not step.predicate else (k + 1,)
            if step.kind == "bra":
                follow = (step.target, *(follow if step.predicate else ()))
            successors.append(follow)
        self.live = live_before(reads, kills, successors)
        self.access = access_width(kernel.instructions)


def access_width(instructions: list[Instruction]) -> dict[str, int]:
    """By space, the bytes of the narrowest access: what the race checker must tell apart."""
    least = {"shared": 16, "global": 16}
    for i in instructions:
        parts = i.opcode.split(".")
        if parts[0] not in ("ld", "st", "atom", "red") or "param" in parts or "local" in parts:
            continue
        size = WIDTHS[parts[-1]] // 8
        for space in least:
            other = "global" if space == "shared" else "shared"
            if not any(p.startswith(other) for p in parts):
                least[space] = min(least[space], size)
    for i in instructions:
        if re.match(r"cp\.async\.c[ag]", i.opcode) and isinstance(i.operands[2], Immediate):
            size = i.operands[2].value
            least["shared"] = min(least["shared"], size)
            # a source size given at run time may end within a granule, which then counts as read
            least["global"] = min(least["global"], size if len(i.operands) == 3 else 4)
    return least
