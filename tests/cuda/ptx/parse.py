"""PTX text to modules, kernels and instructions. What an instruction means is not decided here."""

from __future__ import annotations

import re
from functools import cached_property

from .errors import PtxError
from .syntax import (
    WIDTHS,
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
    Variable,
    Vector,
)

VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak)\s+)*\.(?P<space>shared|global|const|local)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[\w$]+)\s*"
    r"(?P<array>\[(?P<count>\d*)\])?\s*(?:=.*)?$",
    re.S,
)
PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr[^%]*?\s)?([\w$]+)(?:\[(\d+)\])?$"
)
# a .loc takes a line, a label ends with a colon, a lone brace is a scope, the rest ends with ;
STATEMENT = re.compile(
    r"\s*(?:(?P<loc>\.loc\b[^\n]*)|(?P<label>[\w$]+)\s*:|(?P<brace>[{}])"
    r"|(?P<statement>[^;{}]+(?:\{[^{}]*\}[^;{}]*)*);)"
)


def split(text: str) -> list[str]:
    """The parts between commas that no bracket encloses."""
    return [part.strip() for part in re.findall(r"(?:[^,{}\[\]()]|[{\[(][^}\])]*[}\])])+", text)]


def variable(match: re.Match[str]) -> Variable:
    size = WIDTHS[match["type"]] // 8
    if match["array"]:
        size *= int(match["count"] or 0)
    return Variable(int(match["align"] or WIDTHS[match["type"]] // 8), size)


class Module:
    """A PTX file. Kernels are parsed when first asked for."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
        text = re.sub(r"//[^\n]*", "", text)
        files = re.finditer(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M)
        self.files = {int(m[1]): m[2].rpartition("/")[2] for m in files}
        blank = r"^\s*\.(?:file|version|target|address_size)\b.*$"
        self.text = re.sub(blank, "", text, flags=re.M)
        self._entries: dict[str, tuple[str, int, int]] = {}
        self.shared: dict[str, Variable] = {}
        begin = 0
        for m in re.finditer(r"\.(entry|func|section)\b([^{;]*)\{", self.text):
            if m.start() < begin:
                continue
            self._declarations(self.text[begin : m.start()])
            depth, end = 1, m.end()
            for brace in re.compile(r"[{}]").finditer(self.text, end):
                depth += 1 if brace[0] == "{" else -1
                end = brace.end()
                if depth == 0:
                    break
            if m[1] == "entry":
                name = re.match(r"\s*([\w$]+)", m[2])
                if name is None:
                    raise PtxError(f"no kernel name in {m[0]!r}")
                self._entries[name[1]] = (m[2], m.end(), end - 1)
            begin = end
        self._declarations(self.text[begin:])
        self._kernels: dict[str, Kernel] = {}

    def _declarations(self, text: str) -> None:
        for statement in text.split(";"):
            m = VARIABLE.match(statement.strip())
            if m and m["space"] == "shared":
                self.shared[m["name"]] = variable(m)
            # .global and .const variables are refused where one is used: see symbols

    @property
    def names(self) -> list[str]:
        """Of all kernels."""
        return list(self._entries)

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name."""
        if name not in self._kernels:
            if name not in self._entries:
                raise PtxError(f"no kernel {name}")
            self._kernels[name] = KernelParser(self, name, *self._entries[name]).kernel
        return self._kernels[name]

    @cached_property
    def line_starts(self) -> list[int]:
        """Where each line begins."""
        return [0, *(m.end() for m in re.finditer("\n", self.text))]


class KernelParser:
    """Parses one .entry of a module."""

    def __init__(self, module: Module, name: str, signature: str, begin: int, end: int) -> None:
        self.module, self.kernel = module, Kernel(name)
        self.scopes: list[dict[str, tuple[int, int]]] = [{}]  # name: scope's number, width
        self.opened = 0
        self.numbers = [0]
        self.source = ""
        self._signature(signature)
        self._body(begin, end)

    def _signature(self, text: str) -> None:
        kernel, offset = self.kernel, 0
        inside = re.search(r"\((.*?)\)", text, re.S)
        for part in split(inside[1]) if inside else ():
            m = PARAMETER.match(" ".join(part.split()))
            if m is None:
                raise PtxError(f"{kernel.name}: parameter {part!r}")
            size = WIDTHS[m[2]] // 8
            align, size = int(m[1] or size), size * int(m[4] or 1)
            offset = -(-offset // align) * align
            kernel.parameters.append((m[3], offset, size))
            offset += size
        kernel.parameter_bytes = offset
        m = re.search(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", text)
        if m:
            kernel.max_threads = int(m[1]) * int(m[2] or 1) * int(m[3] or 1)

    def _body(self, begin: int, end: int) -> None:
        text, kernel, position = self.module.text, self.kernel, begin
        line, starts = 1 + text.count("\n", 0, begin), self.module.line_starts
        while m := STATEMENT.match(text, position, end):
            position = m.end()
            while line < len(starts) and starts[line] <= m.start(m.lastgroup):
                line += 1
            if m["loc"]:
                self._location(m["loc"])
            elif m["label"]:
                kernel.labels[m["label"]] = len(kernel.instructions)
            elif m["brace"] == "{":
                self.opened += 1
                self.scopes.append({})
                self.numbers.append(self.opened)
            elif m["brace"]:
                self.scopes.pop()
                self.numbers.pop()
            else:
                self._statement(" ".join(m["statement"].split()), line)
        if text[position:end].strip():
            raise PtxError(f"{kernel.name}: cannot parse {text[position:end].strip()[:80]!r}")

    def _location(self, text: str) -> None:
        places = re.findall(r"(?:\.loc|inlined_at)\s+(\d+)\s+(\d+)", text)
        names = [f"{self.module.files.get(int(f), '?')}:{line}" for f, line in places]
        self.source = " in ".join(names)

    def _statement(self, text: str, line: int) -> None:
        if text.startswith(".reg"):
            m = re.match(r"\.reg\s*\.(\w+)\s+(.*)$", text)
            if m is None or m[1] not in WIDTHS:
                raise PtxError(f"{self.kernel.name}: {text!r}")
            for name in split(m[2]):
                many = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name)
                names = [f"{many[1]}{k}" for k in range(int(many[2]))] if many else [name]
                self.scopes[-1].update(dict.fromkeys(names, (self.numbers[-1], WIDTHS[m[1]])))
            return
        if m := VARIABLE.match(text):
            if m["space"] in ("shared", "local"):
                getattr(self.kernel, m["space"])[m["name"]] = variable(m)
                return
            raise PtxError(f"{self.kernel.name}: {text!r} is not modelled")
        if text.startswith(".pragma"):
            return
        if text.startswith("."):
            raise PtxError(f"{self.kernel.name}: {text!r} is not modelled")
        self._instruction(text, line)

    def _instruction(self, text: str, line: int) -> None:
        m = re.match(r"(?:@(!?)(%?[\w$]+)\s+)?([\w.:]+)\s*(.*)$", text)
        if m is None:
            raise PtxError(f"{self.kernel.name}: cannot parse {text!r} (PTX line {line})")
        predicate = self._operand(m[2]) if m[2] else None
        operands = [self._operand(part) for part in split(m[4])]
        made = Instruction(text, line, self.source, m[3], operands, None, m[1] == "!")
        if isinstance(predicate, Register):
            made.predicate = predicate
        elif predicate is not None:
            raise PtxError(f"{self.kernel.name}: predicate of {made}")
        self.kernel.instructions.append(made)

    def _register(self, text: str) -> Register | None:
        for scope in reversed(self.scopes):
            if text in scope:
                number, width = scope[text]
                return Register(f"{text}@{number}" if number else text, width)
        return None

    def _operand(self, text: str) -> Operand:
        if text[0] == "{":
            return Vector(tuple(self._operand(part) for part in split(text[1:-1])))
        if text[0] == "[":
            m = re.fullmatch(r"\[\s*([%\w$.]+)\s*(?:\+?\s*(-?\s*\w+))?\s*\]", text)
            if m is None:
                raise PtxError(f"{self.kernel.name}: address {text}")
            return Address(self._operand(m[1]), int((m[2] or "0").replace(" ", ""), 0))
        if "|" in text:
            first, second = text.split("|")
            return Pair(self._operand(first.strip()), self._operand(second.strip()))
        if text[0] == "!":
            register = self._register(text[1:].strip())
            if register is None:
                raise PtxError(f"{self.kernel.name}: operand {text!r}")
            return Negated(register)
        if register := self._register(text):
            return register
        if text == "_":
            return Sink()
        if text[0] == "%":
            return Special(text)
        if m := re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", text):
            return FloatImmediate(32 if m[1] in "fF" else 64, int(m[2], 16))
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            return Immediate(int(text.rstrip("U"), 0))
        if m := re.fullmatch(r"([\w$]+)(?:\+(\d+))?", text):
            return Symbol(m[1], int(m[2] or 0))
        raise PtxError(f"{self.kernel.name}: operand {text!r}")
