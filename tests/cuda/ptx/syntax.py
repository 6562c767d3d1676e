"""What PTX text is parsed to: modules' variables, kernels, instructions and their operands."""

from __future__ import annotations

from dataclasses import dataclass, field

WIDTHS = {"pred": 1, "f16x2": 32, "bf16x2": 32, "bf16": 16}
WIDTHS |= {f"{kind}{width}": width for kind in "bsu" for width in (8, 16, 32, 64)}
WIDTHS |= {f"f{width}": width for width in (16, 32, 64)}


@dataclass(frozen=True, slots=True)
class Register:
    """A declared register; the name is unique in its kernel."""

    name: str
    width: int


@dataclass(frozen=True, slots=True)
class Negated:
    """A predicate register, inverted."""

    register: Register


@dataclass(frozen=True, slots=True)
class Immediate:
    """An integer constant."""

    value: int


@dataclass(frozen=True, slots=True)
class FloatImmediate:
    """The bits of a float constant."""

    width: int
    bits: int


@dataclass(frozen=True, slots=True)
class Special:
    """A special register, with its axis: %tid.x."""

    name: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """A variable, parameter or label, and a distance from it."""

    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """[base + offset]."""

    base: Operand
    offset: int


@dataclass(frozen=True, slots=True)
class Vector:
    """{a, b, ...}."""

    items: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """a|b: two destinations."""

    first: Operand
    second: Operand


@dataclass(frozen=True, slots=True)
class Sink:
    """_: a destination that is thrown away."""


Operand = (
    Register
    | Negated
    | Immediate
    | FloatImmediate
    | Special
    | Symbol
    | Address
    | Vector
    | Pair
    | Sink
)


@dataclass(slots=True)
class Instruction:
    """One instruction: its full opcode with modifiers, and where it comes from."""

    text: str
    line: int  # of the PTX
    source: str  # "file:line", innermost first where inlined; empty where unknown
    opcode: str
    operands: list[Operand]
    predicate: Register | None = None
    negated: bool = False

    def __str__(self) -> str:
        return f"`{self.text}` (PTX line {self.line}{', ' if self.source else ''}{self.source})"


@dataclass(frozen=True, slots=True)
class Variable:
    """Memory that a kernel or module declares; no size where it is given at launch."""

    align: int
    size: int


@dataclass(slots=True)
class Kernel:
    """One .entry."""

    name: str
    parameters: list[tuple[str, int, int]] = field(default_factory=list)  # name, offset, size
    parameter_bytes: int = 0
    max_threads: int | None = None
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    shared: dict[str, Variable] = field(default_factory=dict)
    local: dict[str, Variable] = field(default_factory=dict)
