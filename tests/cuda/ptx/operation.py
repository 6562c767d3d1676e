"""One instruction being bound: its operands as functions that read and write the threads'
registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .errors import PtxError
from .forms import Action, lookup
from .syntax import (
    Address,
    FloatImmediate,
    Immediate,
    Instruction,
    Kernel,
    Negated,
    Operand,
    Pair,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)
from .types import FLOAT, UNSIGNED, Array, bits_of, decoder, encoder
from .warps import SPECIAL, Threads

Reader = Callable[[Threads], Array]
Writer = Callable[[Threads, Array], None]


@dataclass
class Operation:
    """An instruction of a kernel, with the fields of the form it matched.

    Handlers take readers and writers from it; what they take is noted for liveness.
    """

    instruction: Instruction
    kernel: Kernel
    symbols: dict[str, int]  # addresses of shared and local variables, offsets of parameters
    fields: dict[str, str | None] = field(default_factory=dict)
    reads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    approximate: bool = False  # PTX only bounds its error

    def bind(self) -> Action:
        """What executes this instruction for the threads it is given."""
        try:
            handler, self.fields = lookup(self.instruction.opcode)
            return handler(self)
        except PtxError as error:
            raise PtxError(f"{self.kernel.name}: {error} at {self.instruction}") from None

    @property
    def operands(self) -> list[Operand]:
        return self.instruction.operands

    def expect(self, *counts: int) -> None:
        """Refuses another number of operands."""
        if len(self.operands) not in counts:
            raise PtxError(f"{len(self.operands)} operands")

    def get(self, name: str, otherwise: str = "") -> str:
        """A field of the form, or what stands for its absence."""
        return self.fields.get(name) or otherwise

    def has(self, modifier: str) -> bool:
        """Whether .modifier is there."""
        return modifier in self.instruction.opcode.split(".")[1:]

    def constant(self, index: int) -> int:
        """An operand that must be an integer constant."""
        operand = self.operands[index]
        if not isinstance(operand, Immediate):
            raise PtxError(f"operand {index} must be a constant")
        return operand.value

    def items(self, index: int, count: int) -> list[Operand]:
        """The elements of a vector operand, or the one that stands alone."""
        operand = self.operands[index]
        items = list(operand.items) if isinstance(operand, Vector) else [operand]
        if len(items) != count:
            raise PtxError(f"operand {index} has {len(items)} registers, not {count}")
        return items

    def read(self, operand: int | Operand, type_name: str, wide: bool = False) -> Reader:
        """Values of a source; a register wider than the type is read only where `wide` says so."""
        if isinstance(operand, int):
            operand = self.operands[operand]
        bits = bits_of(type_name)
        if isinstance(operand, (Register, Special)):
            register = self._source(operand)
            if register.width > bits and not wide:
                raise PtxError(f"a {register.width}-bit register read as .{type_name}")
            return self._register(register.name, register.width, type_name)
        if isinstance(operand, Negated):
            name = operand.register.name
            self.reads.add(name)
            return lambda threads: ~threads.read(name)
        value = self._constant(operand, type_name, bits)
        return lambda threads: value

    def _source(self, operand: Register | Special) -> Register:
        if isinstance(operand, Special):
            if operand.name not in SPECIAL:
                raise PtxError(f"special register {operand.name} is not modelled")
            return Register(operand.name, 32)
        self.reads.add(operand.name)
        return operand

    def _register(self, name: str, width: int, type_name: str) -> Reader:
        if bits_of(type_name) == width and type_name[0] in "bu" and type_name in PLAIN:
            return lambda threads: threads.read(name)
        decode = decoder(type_name, width)
        return lambda threads: decode(threads.read(name))

    def _constant(self, operand: Operand, type_name: str, bits: int) -> Array:
        if isinstance(operand, FloatImmediate):
            number = UNSIGNED[operand.width](operand.bits)
            if operand.width != bits:
                if type_name[0] != "f":
                    raise PtxError(f"a {operand.width}-bit constant as .{type_name}")
                number = number.view(FLOAT[operand.width]).astype(FLOAT[bits]).view(UNSIGNED[bits])
        elif isinstance(operand, Immediate):
            if type_name == "pred":
                return np.bool_(operand.value)  # type: ignore[return-value]
            if type_name[0] == "f" and type_name != "f16x2":
                raise PtxError(f"an integer constant as .{type_name}")
            number = UNSIGNED[bits](operand.value & ((1 << bits) - 1))
        elif isinstance(operand, Symbol):
            if operand.name not in self.symbols:
                raise PtxError(f"variable {operand.name} is not modelled")
            number = UNSIGNED[bits](self.symbols[operand.name] + operand.offset)
        else:
            raise PtxError(f"operand {operand} cannot be read")
        return decoder(type_name, bits)(number)

    def write(self, operand: int | Operand, type_name: str, wide: bool = False) -> Writer:
        """Stores values of a type in a destination; in a wider one only where `wide` says so."""
        if isinstance(operand, int):
            operand = self.operands[operand]
        if isinstance(operand, Sink):
            return lambda threads, value: None
        if not isinstance(operand, Register):
            raise PtxError(f"operand {operand} cannot be written")
        if operand.width > bits_of(type_name) and not wide:
            raise PtxError(f".{type_name} written to a {operand.width}-bit register")
        name = operand.name
        self.writes.add(name)
        if type_name == "pred" and operand.width == 1:
            return lambda threads, value: threads.write(name, value)
        encode = encoder(type_name, operand.width)
        return lambda threads, value: threads.write(name, encode(value))

    def write_pair(self, index: int, first: str, second: str) -> tuple[Writer, Writer | None]:
        """Two destinations a|b, of which the second may be missing."""
        operand = self.operands[index]
        if isinstance(operand, Pair):
            return self.write(operand.first, first), self.write(operand.second, second)
        return self.write(index, first), None

    def address(self, index: int) -> Reader:
        """The address that [base + offset] names, as int64."""
        operand = self.operands[index]
        if not isinstance(operand, Address):
            raise PtxError(f"operand {index} must be an address")
        base, offset = operand.base, np.int64(operand.offset)
        wide = isinstance(base, Register) and base.width == 64
        read = self.read(base, "u64" if wide or not isinstance(base, Register) else "u32")

        def address(threads: Threads) -> Array:
            value = read(threads).astype(np.int64)
            return value + offset if offset else value

        return address


PLAIN = {"b8", "b16", "b32", "b64", "u8", "u16", "u32", "u64"}
