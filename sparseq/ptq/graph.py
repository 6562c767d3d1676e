"""Who reads which tensor: recorded while the model runs on one batch.

Unlike a trace by torch.fx this needs no symbolic run, so that models with control flow of their own
(most transformers) are served, and it sees inside torch's TransformerEncoderLayer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from sparseq.flow.outputs import run_batch

Key = tuple[int, int]  # identity and version of a tensor: what is changed in place is another one

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# f(s x) = s f(x) for s > 0, element by element
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout2d)
# the same channel by channel, where channels are dimension 1
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_FUNCTIONS = {"relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "dropout", "clone",
              "contiguous", "detach"}  # fmt: skip
_POOL_FUNCTIONS = {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d",
                   "dropout2d"}  # fmt: skip

# what looks at a tensor's form, not at its values
_FORM = {"size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_complex",
         "is_floating_point", "is_contiguous", "element_size", "get_device", "data_ptr", "__len__",
         "has_names", "is_signed", "is_inference", "is_conj", "is_neg"}  # fmt: skip


@dataclass(frozen=True)
class Use:
    """One call of a module or function: what went in, what came out.

    Args:
        label: for people.
        name: the module's, or the function's.
        module: the module, or None for a function.
        inputs: the tensors that it was given.
        outputs: the tensors that it gave.
        dims: dimensions of the first output.
        arguments: of a function, those that are not tensors.
    """

    label: str
    name: str
    module: Any  # nn.Module | None, of whichever kind
    inputs: tuple[Key, ...]
    outputs: tuple[Key, ...]
    dims: int
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Readers:
    """Layers that alone read what a module gives, through what keeps its channels apart.

    Args:
        layers: those layers' calls.
        repeat: how many of their inputs belong to a channel: more than 1 behind a flatten.
    """

    layers: tuple[Use, ...]
    repeat: int = 1


class Graph:
    """Calls in their order, and who reads what.

    Args:
        model: run once, in the mode that it is in.
        batch: what to run it on.
        caller: named in errors.
    """

    def __init__(self, model: nn.Module, batch: Any, caller: str = "ptq") -> None:
        recorder = _Recorder(model)
        with torch.no_grad(), recorder:
            try:
                result = run_batch(caller, model, batch)
            finally:
                recorder.close()
        end = recorder.keys(result)
        self.uses = [*recorder.uses, Use("the model's result", "", None, end, (), 0)]
        self.calls = Counter(use.name for use in self.uses if use.module is not None)
        self._readers: dict[Key, list[Use]] = defaultdict(list)
        for use in self.uses:
            for key in set(use.inputs):
                self._readers[key].append(use)
        held = Counter(id(p) for m in model.modules() for p in m._parameters.values())
        self._shared = {p for p, count in held.items() if count > 1} | recorder.read_directly

    def layers(self) -> list[Use]:
        """The layers' first calls, in the order of execution."""
        found = {use.name: use for use in reversed(self.uses) if use.module is not None}
        return [use for use in self.uses if found.get(use.name) is use]

    def read(self, use: Use) -> list[Use]:
        """What reads a call's output."""
        return self._readers[use.outputs[0]] if use.outputs else []

    def only_reader(self, use: Use) -> Use | None:
        """What reads a call's output, if it is one call."""
        readers = self.read(use)
        return readers[0] if len(readers) == 1 else None

    def batch_norm(self, use: Use) -> Use | None:
        """The batch norm that alone reads a layer's output and runs on stored statistics."""
        reader, layer = self.only_reader(use), use.module
        if reader is None or not isinstance(reader.module, BATCH_NORMS) or self.obstacle(reader):
            return None
        norm = reader.module
        if isinstance(norm, nn.BatchNorm1d) and isinstance(layer, nn.Linear) and use.dims != 2:
            return None  # normalises the second dimension, not the features
        return reader if norm.running_mean is not None and self.calls[use.name] == 1 else None

    def obstacle(self, use: Use) -> str | None:
        """Why a module's parameters cannot be scaled, or None."""
        assert use.module is not None
        if self.calls[use.name] > 1:
            return f"called {self.calls[use.name]} times"
        parameters = list(use.module.parameters())
        if any(id(p) in self._shared for p in parameters):
            return "its parameters are used elsewhere too"
        return None

    def readers(self, use: Use, channels: int) -> Readers | str:
        """The layers that alone read a call's output, or why scaling it cannot be undone there.

        Args:
            use: of a layer or norm.
            channels: how many it has.
        """
        spatial = not isinstance(use.module, (nn.Linear, nn.LayerNorm, nn.RMSNorm))
        at, flattened = use, False
        while True:
            found = self.read(at)
            if not found:
                return "what reads it was not seen"
            if all(isinstance(r.module, LAYERS) and len(r.inputs) == 1 for r in found):
                return self._fitting(found, channels, spatial, flattened)
            if len(found) > 1:
                return "read by " + ", ".join(sorted({r.label for r in found}))
            at = found[0]
            flat = _flattens(at)
            if flat and (spatial or use.dims == 2):
                flattened = flattened or spatial
            elif not _passes(at, spatial and not flattened):
                kind = at.label if at.module is None else type(at.module).__name__
                plain = at.name in ("", "add") or isinstance(at.module, LAYERS)
                return f"read by {kind}" + ("" if plain else ", which does not pass scales on")

    def _fitting(
        self, found: Sequence[Use], channels: int, spatial: bool, flattened: bool
    ) -> Readers | str:
        repeats = set()
        for reader in found:
            layer = reader.module
            obstacle = self.obstacle(reader)
            if obstacle:
                return f"read by {reader.label}: {obstacle}"
            assert isinstance(layer, LAYERS)
            inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
            if isinstance(layer, nn.Linear) == (spatial and not flattened) or inputs % channels:
                return f"read by {reader.label} along another dimension"
            repeats.add(inputs // channels)
        if len(repeats) > 1:
            return "read by layers of different widths"
        return Readers(tuple(found), repeats.pop())


def _flattens(use: Use) -> bool:
    if isinstance(use.module, nn.Flatten):
        return use.module.start_dim == 1 and use.module.end_dim == -1
    return use.name == "flatten" and use.module is None and use.arguments in ((1,), (1, -1))


def _passes(use: Use, spatial: bool) -> bool:
    """Whether a positive factor a channel passes through a call."""
    if use.module is not None:
        return isinstance(use.module, _HOMOGENEOUS + (_POOLS if spatial else ()))
    return use.name in _FUNCTIONS or (spatial and use.name in _POOL_FUNCTIONS)


class _Recorder(TorchFunctionMode):
    """Notes each function, and each leaf module as a whole."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self.read_directly: set[int] = set()  # parameters that functions outside of leaves take
        self._parameters = {id(p) for p in model.parameters()}
        self._alive: list[Tensor] = []  # so that no identity is given out twice
        self._pending: list[tuple[Key, ...]] = []
        self._handles: list[Any] = []
        for name, module in model.named_modules():
            if name and ".parametrizations." not in f".{name}." and _leaf(module):
                self._handles += [
                    module.register_forward_pre_hook(self._enter, with_kwargs=True),
                    module.register_forward_hook(self._leave(name), with_kwargs=True),
                ]
            elif not name and _leaf(module):
                raise ValueError("ptq: model must hold layers, got a single layer: wrap it")

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def keys(self, values: Any) -> tuple[Key, ...]:
        tensors = [t for t in tree_leaves(values) if isinstance(t, Tensor)]
        self._alive += tensors
        return tuple((id(t), 0 if t.is_inference() else t._version) for t in tensors)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        with torch._C.DisableTorchFunction():
            self._pending.append(self.keys((args, kwargs)))

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            with torch._C.DisableTorchFunction():
                inputs = self._pending.pop()
                label = f"{name} ({type(module).__name__.removeprefix('Parametrized')})"
                self._note(label, name, module, inputs, output)

        return hook

    def _note(
        self,
        label: str,
        name: str,
        module: nn.Module | None,
        inputs: tuple[Key, ...],
        output: Any,
        arguments: tuple[Any, ...] = (),
    ) -> None:
        outputs = self.keys(output)
        if outputs and outputs[0] in inputs:  # gave back what it took: nothing happened
            return
        first = next((t for t in tree_leaves(output) if isinstance(t, Tensor)), None)
        dims = 0 if first is None else first.dim()
        self.uses.append(Use(label, name, module, inputs, outputs, dims, arguments))

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", str(function))
        if self._pending or name in _FORM:
            return function(*args, **kwargs)
        inputs = self.keys((args, kwargs))
        output = function(*args, **kwargs)
        if name == "__get__" and not isinstance(output, Tensor):
            return output
        self.read_directly |= {key[0] for key in inputs} & self._parameters
        leaves = tree_leaves((args, kwargs))
        plain = tuple(a for a in leaves if not isinstance(a, Tensor))
        self._note(name, name, None, inputs, output, plain)
        return output


def _leaf(module: nn.Module) -> bool:
    """A module of torch's own with nothing inside but transforms on its parameters."""
    kind = nn.utils.parametrize.type_before_parametrizations(module)
    inside = set(module._modules) - {"parametrizations"}
    return kind.__module__.startswith("torch.nn") and not inside and not _container(module)


def _container(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
