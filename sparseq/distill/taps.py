"""What named layers of a network gave in its last forward pass."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside of DistributedDataParallel and torch.compile, whose layers have its names.

    Raises:
        ValueError: DataParallel, whose replicas run layers of their own.
    """
    while True:
        if isinstance(network, nn.DataParallel):
            raise ValueError(
                "distill: networks must not be nn.DataParallel, whose replicas hide their "
                "features: use DistributedDataParallel"
            )
        if isinstance(network, DistributedDataParallel):
            network = network.module
        elif isinstance(getattr(network, "_orig_mod", None), nn.Module):
            network = network._orig_mod  # type: ignore[assignment]
        else:
            return network


def run(network: nn.Module, inputs: Any) -> Any:
    """Call a network on a tensor, on a tuple's elements, or on a mapping's arguments by name."""
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, tuple) else network(inputs)


def answers_of(output: Any) -> Tensor:
    """The logits that a network gave: a tensor, or an object that has them by this name.

    Raises:
        TypeError: it is neither.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise TypeError(
            "distill: a teacher must give logits, or an object that has them as `logits`, "
            f"got {type(output).__name__}"
        )
    return logits


def unknown_names(network: nn.Module, names: Iterable[str], whose: str) -> list[str]:
    """A phrase for each name that no layer has, with those that it may have meant."""
    known = list(dict(network.named_modules(remove_duplicate=False)))
    found = []
    for name in dict.fromkeys(names):
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.5)
            found.append(
                f"{whose}'s {name!r} (near: {', '.join(map(repr, near))})"
                if near
                else f"{whose}'s {name!r} (nothing near; it has {', '.join(known[1:6])}, ...)"
            )
    return found


class _Start:
    """Before the network runs: what its last pass left is forgotten."""

    def __init__(self, network: nn.Module, found: dict[str, list[Tensor]]) -> None:
        self.network, self.found = network, found

    def __call__(self, module: nn.Module, args: Any) -> None:
        if module is self.network and not _repeated():
            self.found.clear()

    def __reduce__(self) -> Any:
        return _nothing, ()


class _Note:
    """After a layer ran: a copy of what it gave, which an in-place ReLU behind it cannot alter."""

    def __init__(self, layer: nn.Module, name: str, found: dict[str, list[Tensor]]) -> None:
        self.layer, self.name, self.found = layer, name, found

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is self.layer and not _repeated():
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if not isinstance(first, Tensor):
                raise TypeError(
                    f"distill: layer {self.name!r} must give a tensor, or a tuple that starts with "
                    f"one, got {type(output).__name__}"
                )
            self.found.setdefault(self.name, []).append(first.clone())

    def __reduce__(self) -> Any:  # of a deep copy and of a pickle
        return _nothing, ()


class _Nothing:
    """A hook's place in a copy of the network: a copy's features are nobody's."""

    def __call__(self, *args: Any) -> None:
        return None


def _nothing() -> _Nothing:
    return _Nothing()


def _repeated() -> bool:
    """Whether this is gradient checkpointing's second pass: one inside of a backward pass."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1


class Taps:
    """Forward hooks on named layers, until `close`.

    Args:
        network: as `unwrapped` gives it; compiled ones must be tapped before their first call.
        names: of its layers.
        whose: "student" or "teacher", for messages.
    """

    def __init__(self, network: nn.Module, names: Iterable[str], whose: str) -> None:
        self.whose = whose
        self.names = list(dict.fromkeys(names))
        self._found: dict[str, list[Tensor]] = {}
        self._handles = [network.register_forward_pre_hook(_Start(network, self._found))]
        for name in self.names:
            layer = network.get_submodule(name)
            self._handles.append(layer.register_forward_hook(_Note(layer, name, self._found)))
        self.open = True

    def take(self) -> dict[str, Tensor]:
        """The features by name, once: they are forgotten here.

        Raises:
            RuntimeError: a layer ran not exactly once in the last forward pass, or `close` was
                called.
        """
        if not self.open:
            raise RuntimeError("Loss: its hooks were removed by close(): make a new one")
        found = {name: self._found.get(name, []) for name in self.names}
        self._found.clear()
        for name, outputs in found.items():
            if not outputs:
                raise RuntimeError(
                    f"Loss: the {self.whose}'s {name!r} has not run since the last call: run the "
                    "student, hooks and all, before each call of the loss"
                )
            if len(outputs) > 1:
                raise RuntimeError(
                    f"Loss: the {self.whose}'s {name!r} ran {len(outputs)} times in one forward "
                    "pass: name layers that run once"
                )
        return {name: outputs[0] for name, outputs in found.items()}

    def close(self) -> None:
        """Remove the hooks and what they hold."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._found.clear()
        self.open = False
