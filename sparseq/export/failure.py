"""Why torch could not export a model, in one line: which op, and in which module it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_OP = re.compile(r"OpOverload\(op='([\w.:]+?)'|operator '([\w:]+)'|unrecognized namespace ([\w:]+)")


class _Callers(TorchDispatchMode):
    """Notes in which module an op is called first."""

    def __init__(self, wanted: str, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.wanted = wanted
        self.names = {module: name for name, module in model.named_modules()}
        self.stack: list[str] = []
        self.found: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = f"{func.namespace}::{func._schema.name.partition('::')[2]}"
        if name == self.wanted and self.found is None and self.stack:
            self.found = self.stack[-1]
        return func(*args, **(kwargs or {}))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Know which module is being called."""

        def enter(module: nn.Module, args: Any) -> None:
            self.stack.append(self.names.get(module, ""))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if self.stack:
                self.stack.pop()

        handles = [m.register_forward_pre_hook(enter) for m in self.names]
        handles += [m.register_forward_hook(leave) for m in self.names]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()


def _module_of(op: str, model: nn.Module, example: Tensor) -> str | None:
    """The module that calls the op, by its name in the model; found by running it."""
    callers = _Callers(op, model)
    try:
        with torch.no_grad(), callers.watching():
            model(example)
    except Exception:  # it is only about a better message
        return None
    return callers.found


def reason_of(error: BaseException, model: nn.Module, example: Tensor) -> str:
    """One line about a failed export.

    Args:
        error: torch's.
        model: whose export failed; it is run once to find the op's module.
        example: its input.
    """
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for link in reversed(chain):
        text = str(link)
        missing = "No ONNX function found" in text or "ONNX export failed on an operator" in text
        missing = missing or ("Exporting the operator" in text and "not supported" in text)
        found = _OP.search(text) if missing else None
        if found is not None:
            parts = next(g for g in found.groups() if g).replace("::", ".").split(".")
            op = f"{parts[0]}::{parts[1]}"
            module = _module_of(op, model, example)
            if module is None:
                where = ""
            else:
                where = f" in the module {module}" if module else " in the model itself"
            return f"the op {op}{where} has no ONNX translation"
    return str(chain[-1]).strip().partition("\n")[0]
