"""A network whose layers can be exchanged, and that repeats what an exchange leaves as it was."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from sparseq.batches import Batch, output_of
from sparseq.flow.convert import set_module
from sparseq.lower import layerwise

Listener = Callable[[str, Any, Any, Tensor], None]


class Slot(nn.Module):
    """Stands where a module stood and calls whichever module it holds.

    Attributes:
        held: the module.
        queue: results to give instead of calling it, the earliest call's first.
        listener: told of every call.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.name, self.held = name, module
        self.queue: deque[Tensor] = deque()
        self.listener: Listener | None = None

    def __getattr__(self, name: str) -> Any:
        """What the slot lacks is asked of the module: models look at their layers' attributes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("held"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module; a repeated result is a copy, which the model may write into."""
        if self.queue:
            return self.queue.popleft().clone()
        result = self.held(*args, **kwargs)
        if self.listener is not None:
            self.listener(self.name, args, kwargs, result)
        return result


class Network:
    """A copy of a model in eval mode with slots in place of some modules.

    Args:
        caller: what error messages begin with.
        model: not changed.
        layers: names of layers, whose results are repeated.
        others: names of other modules to exchange (batch norms).
    """

    def __init__(
        self, caller: str, model: nn.Module, layers: Iterable[str], others: Iterable[str]
    ) -> None:
        self.caller = caller
        self.root = copy.deepcopy(layerwise(model)).eval()
        self.slots: dict[str, Slot] = {}
        self.layers = list(layers)
        for name in (*self.layers, *others):
            slot = Slot(name, self.root.get_submodule(name))
            self.root = set_module(self.root, name, slot.eval())
            self.slots[name] = slot
        self.tape: list[tuple[str, Tensor]] = []
        self.recorded: Tensor | None = None

    def held(self, name: str) -> nn.Module:
        """The module in a slot."""
        return self.slots[name].held

    def run(self, batch: Batch) -> Tensor:
        """The output for a batch."""
        return output_of(self.caller, self.root(*batch.args, **batch.kwargs))

    def record(self, batch: Batch, listener: Listener | None = None) -> Tensor:
        """The output for a batch; keeps what each layer gave, for `exchanged`.

        Args:
            batch: what goes in.
            listener: also told of each layer's call: name, arguments, keyword arguments, result.
        """
        self.tape = []

        def note(name: str, args: Any, kwargs: Any, result: Tensor) -> None:
            self.tape.append((name, result.clone()))
            if listener is not None:
                listener(name, args, kwargs, result)

        for name in self.layers:
            self.slots[name].listener = note
        try:
            self.recorded = self.run(batch)
        finally:
            for name in self.layers:
                self.slots[name].listener = None
        return self.recorded

    def exchanged(self, batch: Batch, modules: dict[str, nn.Module]) -> Tensor:
        """The output with other modules in some slots.

        What the layers called before the first of them give is taken from the recording of the same
        batch; where none of them was called, so is the output.

        Args:
            batch: the batch that was recorded last.
            modules: by name of the slot.
        """
        assert self.recorded is not None
        calls = [name for name, _ in self.tape]
        first = min((calls.index(name) for name in modules if name in calls), default=None)
        if first is None:
            return self.recorded
        before = {name: self.slots[name].held for name in modules}
        for name, result in self.tape[:first]:
            self.slots[name].queue.append(result)
        try:
            for name, module in modules.items():
                self.slots[name].held = module
            return self.run(batch)
        finally:
            for name, module in before.items():
                self.slots[name].held = module
            for slot in self.slots.values():
                slot.queue.clear()
