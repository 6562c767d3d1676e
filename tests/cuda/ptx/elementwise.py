"""Instructions that compute each thread's result from its own operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .forms import Action
from .operation import Operation
from .types import Array
from .warps import Threads

Function = Callable[..., Array]


def elementwise(
    op: Operation, result: str, sources: Sequence[str], function: Function, wide: bool = False
) -> Action:
    """The action d = function(a, b, ...) for operands of the given types."""
    op.expect(1 + len(sources))
    write = op.write(0, result, wide)
    readers = [op.read(1 + k, name, wide) for k, name in enumerate(sources)]
    if len(readers) == 1:
        (one,) = readers

        def unary(threads: Threads) -> None:
            write(threads, function(one(threads)))

        return unary
    if len(readers) == 2:
        first, second = readers

        def binary(threads: Threads) -> None:
            write(threads, function(first(threads), second(threads)))

        return binary

    def general(threads: Threads) -> None:
        write(threads, function(*[read(threads) for read in readers]))

    return general
