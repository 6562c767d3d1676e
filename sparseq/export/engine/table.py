"""An audit's outcome: a row a layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

UNKNOWN = "?"


@dataclass(frozen=True)
class AuditedLayer:
    """One layer of an engine.

    Attributes:
        name: the module's name, or the ONNX node's.
        operation: the engine's operation that computes it; layers on one input may share one.
        kernel: the kernel's name, or "chosen on the device".
        input: type of its input in the engine: "int8", "half", "float".
        weight: type of its weight in the engine.
        output: type of its result.
        integer: whether the model computes it on integers.
        verbatim: whether the model's integers are in the engine, each in its place; None where
            the engine does not show.
        sparse: whether the model's weight is 2:4.
        sparse_kernel: whether a 2:4 kernel runs; None where the engine does not show.
    """

    name: str
    operation: str
    kernel: str
    input: str
    weight: str
    output: str
    integer: bool
    verbatim: bool | None
    sparse: bool
    sparse_kernel: bool | None = None

    @property
    def problem(self) -> str | None:
        """Why the layer does not run as the model has it; None if it does."""
        if not self.integer:
            return None
        if not self.operation:
            return "the engine has no operation of its name"
        if self.input != "int8" or self.weight != "int8":
            return (
                f"it runs on {self.input} inputs and {self.weight} weights; QuantizeLinear and "
                f"DequantizeLinear must stand at its input and at its weight, the weight's scales "
                f"along the output channels"
            )
        if self.verbatim is False:
            return "the weight in the engine is not the file's"
        return None


class EngineAuditError(RuntimeError):
    """A layer of the engine fell back to floating point; `audit` is the whole table."""

    def __init__(self, message: str, audit: EngineAudit) -> None:
        super().__init__(message)
        self.audit = audit


@dataclass(frozen=True)
class EngineAudit:
    """The layers of an engine; as text, a table."""

    layers: tuple[AuditedLayer, ...]

    def problems(self, allow_float: Iterable[str] = ()) -> dict[str, str]:
        """Layer -> why it does not run on integers, but for names that match a pattern."""
        patterns = tuple(allow_float)
        return {
            layer.name: layer.problem
            for layer in self.layers
            if layer.problem and not any(fnmatchcase(layer.name, p) for p in patterns)
        }

    def check(self, allow_float: Iterable[str] = ()) -> None:
        """Raise EngineAuditError, naming the layers, if there are problems."""
        problems = self.problems(allow_float)
        if problems:
            listed = "; ".join(f"layer {name}: {reason}" for name, reason in problems.items())
            raise EngineAuditError(f"audit: {listed}", self)

    def __str__(self) -> str:
        rows = [("layer", "input", "weight", "output", "intact", "2:4", "2:4 kernel", "kernel")]
        for layer in self.layers:
            rows.append(
                (
                    layer.name,
                    layer.input,
                    layer.weight,
                    layer.output,
                    _answer(layer.verbatim),
                    _answer(layer.sparse),
                    _answer(layer.sparse_kernel),
                    layer.kernel if layer.integer else f"{layer.kernel} (float in the model)",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows)
        return "\n".join(line.rstrip() for line in lines)


def _answer(fact: bool | None) -> str:
    return {True: "yes", False: "no", None: UNKNOWN}[fact]
