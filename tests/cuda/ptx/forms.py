"""The table of instructions: which opcodes, modifiers and types exist, and who executes them.

A form is written as in the PTX ISA's syntax lines: `add[.sat].s32`, `add.<type:u16|u32>`. What
stands in [] may be left out; <name:a|b> is one of the alternatives, which the handler finds in its
fields. An opcode that matches no form is an error: nothing is passed over.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from .errors import PtxError

if TYPE_CHECKING:
    from .operation import Operation
    from .warps import Threads

Action = Callable[["Threads"], None]
Handler = Callable[["Operation"], Action]

INTEGERS = "u16|u32|u64|s16|s32|s64"
BITS = "b16|b32|b64"


@dataclass(frozen=True)
class Form:
    """One accepted spelling of an opcode."""

    text: str
    pattern: re.Pattern[str]
    handler: Handler


TABLE: dict[str, list[Form]] = defaultdict(list)


def compiled(form: str) -> re.Pattern[str]:
    """The form as a regular expression over a full opcode."""
    parts = []
    for token in re.split(r"(<\w+:[^>]*>|\[|\])", form):
        if token == "[":
            parts.append("(?:")
        elif token == "]":
            parts.append(")?")
        elif token.startswith("<"):
            name, _, choices = token[1:-1].partition(":")
            parts.append(f"(?P<{name}>{'|'.join(map(re.escape, choices.split('|')))})")
        else:
            parts.append(re.escape(token))
    return re.compile("".join(parts))


def instruction(*forms: str) -> Callable[[Handler], Handler]:
    """Registers a handler: it gets an instruction once and returns what to do each time."""

    def register(handler: Handler) -> Handler:
        for form in forms:
            root = re.match(r"\w+", form)
            assert root is not None
            TABLE[root[0]].append(Form(form, compiled(form), handler))
        return handler

    return register


@cache
def lookup(opcode: str) -> tuple[Handler, dict[str, str | None]]:
    """The handler of a full opcode and the form's fields."""
    forms = TABLE.get(opcode.partition(".")[0])
    if not forms:
        raise PtxError(f"unknown instruction {opcode}")
    for form in forms:
        if m := form.pattern.fullmatch(opcode):
            return form.handler, m.groupdict()
    known = "; ".join(form.text for form in forms)
    raise PtxError(f"unknown modifier, type or rounding in {opcode}; known: {known}")
