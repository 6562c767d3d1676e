"""A run of a model that notes for every tensor which of its places belong to which channel.

Each index of each dimension of each parameter and buffer has a number. A tensor has labels: tensors
of such numbers, of its own number of dimensions, one long where they do not tell places apart. What
only moves data around moves its labels alike; what combines tensors unites their numbers (an
element-wise sum, the sum of a product). So residual sums, concatenations, reshapes and windows need
no knowledge of where they stand in a model. What is not known locks what it reads.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparseq.flow.outputs import run_batch
from sparseq.modes import evaluating
from sparseq.structured.classes import Classes, disjoint


def layer_of(name: str) -> str:
    """The layer that a parameter is of, be it behind a parametrisation."""
    owner, parametrised, _ = f".{name}".partition(".parametrizations.")
    return owner[1:] if parametrised else name.rpartition(".")[0]


@dataclass(frozen=True)
class Axis:
    """One dimension of one parameter or buffer.

    Args:
        names: of the parameter, all that it has.
        dim: the dimension.
        ids: the numbers of its indices.
    """

    names: tuple[str, ...]
    dim: int
    ids: Tensor

    @property
    def layer(self) -> str:
        """The layer that it is of, by its first name."""
        return layer_of(self.names[0])


@dataclass(frozen=True)
class Product:
    """A product of the model: multiplications, and the labels that they scale with."""

    macs: int
    labels: tuple[Tensor, ...]


@dataclass
class Notes:
    """What a run told.

    Attributes:
        classes: which numbers are one channel.
        axes: of all parameters that were read.
        outputs: indices into axes of those that make channels.
        inputs: indices into axes of those that read channels.
        products: what it computed.
        norms: (numbers of channels that are normalised together, where), for layer norms.
        groups: the same for group norms of several groups, `[groups, channels]`.
        grids: channels that were laid out along several dimensions.
        heads: numbers along which attention runs, united for each head.
    """

    classes: Classes = field(default_factory=Classes)
    axes: list[Axis] = field(default_factory=list)
    outputs: set[int] = field(default_factory=set)
    inputs: set[int] = field(default_factory=set)
    products: list[Product] = field(default_factory=list)
    norms: list[tuple[Tensor, str]] = field(default_factory=list)
    groups: list[tuple[Tensor, str]] = field(default_factory=list)
    grids: list[Tensor] = field(default_factory=list)
    heads: list[Tensor] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)

    def add_axis(self, names: tuple[str, ...], dim: int, size: int) -> Tensor:
        """Number the indices of a dimension."""
        ids = self.classes.new(size)
        self.axes.append(Axis(names, dim, ids))
        self._starts.append(int(ids[0]))
        return ids

    def axis_at(self, number: int) -> int:
        """The index of the axis that a number belongs to."""
        return bisect.bisect_right(self._starts, number) - 1

    def mark(self, where: set[int], label: Tensor) -> None:
        """Note the axes that a label's numbers belong to."""
        for number in {int(label.reshape(-1)[0]), int(label.reshape(-1)[-1])} - {0}:
            where.add(self.axis_at(number))


class Recorder(TorchDispatchMode):
    """Notes the labels of tensors while a model runs.

    Args:
        model: whose parameters and buffers are followed.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.notes = Notes()
        self.where: list[str] = []
        self._labels: dict[int, list[Tensor]] = {}
        self._pending: dict[int, list[tuple[Tensor, str]]] = {}
        self._alive: list[Tensor] = []  # so that no identity is given out twice
        self._names: dict[int, list[str]] = {}
        named = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in named:
            self._names.setdefault(id(tensor), []).append(name)
        self._handles = []
        for name, module in model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(lambda *_, n=name: self.where.append(n)),
                module.register_forward_hook(lambda *_: self._leave()),
            ]

    def _leave(self) -> None:
        self.where.pop()

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    @property
    def place(self) -> str:
        """The module that runs, for people."""
        return (self.where and self.where[-1]) or "the model"

    def labels(self, tensor: Any) -> list[Tensor]:
        """The labels of a tensor; none of what is no tensor, a scalar or a constant."""
        if not isinstance(tensor, Tensor):
            return []
        for label, reason in self._pending.pop(id(tensor), []):
            self.lock_label(label, reason)
        if id(tensor) not in self._labels:
            names = self._names.get(id(tensor))
            floating = tensor.is_floating_point() or tensor.is_complex()
            made: list[Tensor] = []
            if names is not None and floating:
                for dim, size in enumerate(tensor.shape):
                    if size > 1:
                        ids = self.notes.add_axis(tuple(names), dim, size)
                        shape = [size if d == dim else 1 for d in range(tensor.dim())]
                        made.append(ids.reshape(shape))
            self._labels[id(tensor)] = made
            self._alive.append(tensor)
        return self._labels[id(tensor)]

    def set(self, tensor: Any, labels: Sequence[Tensor]) -> None:
        """Give a tensor labels; those along the same dimension are united."""
        if isinstance(tensor, Tensor):
            self._labels[id(tensor)] = disjoint(self.notes.classes, labels)
            self._alive.append(tensor)

    def lock(self, tensors: Any, reason: str) -> None:
        """Keep every channel that these tensors, or labels of tensors, have."""
        for tensor in tree_leaves(tensors):
            for label in self.labels(tensor):
                self.lock_label(label, reason)

    def lock_if_read(self, tensor: Tensor, label: Tensor, reason: str) -> None:
        """Keep every channel of a label as soon as something reads the tensor."""
        self._pending.setdefault(id(tensor), []).append((label, reason))

    def lock_label(self, label: Tensor, reason: str) -> None:
        """Keep every channel of a label."""
        self.notes.classes.lock(label.reshape(-1), reason)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the function and note what it does to labels."""
        from sparseq.structured.rules import follow

        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        follow(self, function, args, kwargs, result)
        return result


def record(caller: str, model: nn.Module, example: Any) -> Notes:
    """Run a model once, in eval mode and without gradients, and follow its channels.

    Args:
        caller: named in errors.
        model: it gets back the modes it was in.
        example: a tensor, an (input, ...) tuple, or a dict of arguments; one sample will do.

    Returns:
        What the run told.
    """
    recorder = Recorder(model)
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # one opaque function otherwise
        with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), recorder:
            result = run_batch(caller, model, example)
        recorder.lock(result, "the model's result")
    finally:
        recorder.close()
        torch.backends.mha.set_fastpath_enabled(fast)
    return recorder.notes
