"""What a node of the graph is in a program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from sparseq.lower.forms import BY_RANK, PORTS
from sparseq.nn import SparseQuantLayer
from sparseq.program import Shape, value_shape

ALIAS = "alias"  # the same value, in another form


class Refused(Exception):
    """Why a node runs in torch."""


@dataclass(frozen=True)
class Operand:
    """A tensor as a step reads it.

    Args:
        node: whose result it is.
        form: how its dimensions lie, see `sparseq.lower.forms`.
        shape: the value's, in the example.
        inside: it comes from a step; else from outside of the program, or in another form.
    """

    node: fx.Node
    form: str
    shape: Shape
    inside: bool


@dataclass(frozen=True)
class Step:
    """An instruction, or an alias.

    Args:
        op: of `sparseq.program.OPS`, or ALIAS.
        inputs: what it reads.
        form: of its result.
        shape: of its result, in the example.
        attributes: the instruction's.
        constants: of map scale and shift, of layer_norm weight and bias; or nothing.
        layer: of conv.
        name: the layer's.
    """

    op: str
    inputs: tuple[Operand, ...]
    form: str
    shape: Shape
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: tuple[Tensor, ...] = ()
    layer: SparseQuantLayer | None = None
    name: str = ""


@dataclass(frozen=True)
class Call:
    """A node with its arguments by position and name, a module's settings among them.

    Args:
        node: of the graph.
        name: the function's, without a trailing "_"; a module's class.
        module: the module, or None.
        operand: says how an argument is read, in a form or in the one that it has.
        constant: a tensor that depends on no input, or None.
        name_of: any node's name; "" where neither torch nor torchvision defines it.
        module_of: what a node calls, if that is a module.
    """

    node: fx.Node
    name: str
    module: nn.Module | None
    operand: Callable[..., Operand]
    constant: Callable[[Any], Tensor | None]
    name_of: Callable[[fx.Node], str]
    module_of: Callable[[fx.Node], nn.Module | None]

    @property
    def args(self) -> tuple[Any, ...]:
        """Of the node, by position."""
        return self.node.args

    @property
    def kwargs(self) -> dict[str, Any]:
        """Of the node, by name."""
        return self.node.kwargs

    def bind(self, *names: str, **defaults: Any) -> dict[str, Any]:
        """Arguments by name; of a module its attributes, and the first argument."""
        if self.module is not None:
            found = {n: getattr(self.module, n) for n in (*names[1:], *defaults)}
            return {names[0]: self.args[0], **found}
        order = (*names, *defaults)
        given = dict(zip(order, self.args, strict=False)) | self.kwargs
        unknown = set(given) - set(order)
        if unknown or len(self.args) > len(order) or set(names) - set(given):
            raise Refused("its arguments are not known")
        return defaults | given


def pair(value: Any, what: str) -> list[int]:
    """One number or two, as two."""
    found = [value, value] if isinstance(value, int) else list(value)
    found = found * 2 if len(found) == 1 else found
    if len(found) != 2 or not all(isinstance(v, int) for v in found):
        raise Refused(f"{what} is not constant")
    return found


def entering(node: fx.Node, form: str | None) -> Operand:
    """A tensor from outside, in a form or in the usual one of its dimensions."""
    shape: tuple[int, ...] = node.meta.get("shape", ())
    form = form or BY_RANK.get(len(shape), "")
    if len(form) != len(shape) or form not in PORTS:
        raise Refused(f"{len(shape)} dimensions have no form")
    if 0 in shape:
        raise Refused("it is empty")
    return Operand(node, form, value_shape(PORTS[form], shape), False)
