"""`Lowered`: a converted model that runs as programs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sparseq import ops
from sparseq.lower.assemble import Assembled, assemble
from sparseq.lower.trace import Differs, Traced, trace
from sparseq.nn import SparseQuantLayer


class Lowered(nn.Module):
    """A converted model as programs of `sparseq::network`, with torch between them.

    Its submodules, parameters and buffers are those of the layerwise model, under the same names: a
    state dict of either fits both. The programs are derived from them: again whenever layers take
    another weight or state, or come back to the CPU. Where they do not serve (another device or
    dtype, other arguments than one tensor, training mode) the layerwise model runs.

    Attributes:
        source: the layerwise model.
        shape, dtype: of the example that it was traced with.
    """

    source: nn.Module

    def __init__(
        self,
        source: nn.Module,
        traced: Traced,
        example: Tensor,
        assembled: Assembled | None = None,
    ) -> None:
        super().__init__()
        self.__dict__["source"] = source  # not a child: its children are ours
        for held in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[held] = source.__dict__[held]
        self.training = source.training
        self._traced = traced
        self.shape, self.dtype = tuple(example.shape), example.dtype
        self._layers = [m for m in source.modules() if isinstance(m, SparseQuantLayer)]
        self._derived = (self._revision(), assembled)
        self.register_load_state_dict_post_hook(lambda module, keys: module.derive())  # type: ignore[no-untyped-call]
        if assembled is None:
            self.derive()

    def _revision(self) -> int:
        return sum([layer.revision for layer in self._layers])

    def derive(self) -> None:
        """Make the programs anew of the layers as they are."""
        revision = self._revision()
        serves = _on_cpu(self.source) and not self.training
        found = assemble(self._traced, self.source) if serves else None
        self._derived = (revision, None if isinstance(found, str) else found)

    @property
    def assembled(self) -> Assembled | None:
        """The programs in use; None where the layerwise model runs."""
        if self._derived[0] != self._revision():
            self.derive()
        return self._derived[1]

    def forward(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the layerwise model, but for the rounding of what stays on integers."""
        assembled = self.assembled
        if assembled is not None and not args and not kwargs and self._takes(x):
            try:
                return assembled.module(x)
            except Differs:
                pass
        return self.source(*args, **kwargs) if x is None else self.source(x, *args, **kwargs)

    def _takes(self, x: Any) -> bool:
        alike = isinstance(x, Tensor) and x.dtype == self.dtype and x.dim() == len(self.shape)
        return bool(alike and x.device.type == "cpu" and 0 not in x.shape)

    def train(self, mode: bool = True) -> Lowered:
        """Programs are for evaluation: in training mode the layerwise model runs."""
        self.source.train(mode)
        changed, self.training = self.training != mode, mode
        if changed:
            self.derive()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Lowered:
        self.source._apply(fn, recurse)
        self.derive()
        return self

    def _save_to_state_dict(self, *args: Any) -> None:
        self.source._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.source._load_from_state_dict(*args)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "source":
                raise
            return getattr(self.source, name)

    def __getitem__(self, index: Any) -> nn.Module:
        """A child, where the model is a container."""
        return self.source[index]  # type: ignore[index]

    def __deepcopy__(self, memo: dict[int, Any]) -> Lowered:
        example = torch.empty(self.shape, dtype=self.dtype, device="meta")
        copied = Lowered(copy.deepcopy(self.source, memo), self._traced, example)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a lowered model cannot be pickled: save it with sparseq.save(model, path) and read it "
            "with sparseq.load(path, model), or pickle its state_dict()"
        )


def _on_cpu(model: nn.Module) -> bool:
    return all(t.device.type == "cpu" for t in (*model.parameters(), *model.buffers()))


def layerwise(model: nn.Module) -> nn.Module:
    """The model of layers behind a lowered one; any other as it is."""
    return model.source if isinstance(model, Lowered) else model


def lower(model: nn.Module, example: Tensor) -> nn.Module:
    """A converted model as programs, or as it was, with the reason in `sparseq_unlowered`.

    Args:
        model: converted, in eval mode; becomes the result's `source`.
        example: an input; of images two are enough.
    """
    example = example[:2] if example.dim() == 4 else example
    if not any(isinstance(m, SparseQuantLayer) for m in model.modules()):
        return model
    if example.device.type != "cpu" or not _on_cpu(model):
        reason = "programs run on CPUs"
    elif 0 in example.shape:
        reason = "its example is empty"
    else:
        traced = trace(model, example)
        ops.empty_cache()  # of the values that tracing made
        if isinstance(traced, Traced):
            found = assemble(traced, model)
            if not isinstance(found, str):
                return Lowered(model, traced, example, found)
            reason = found
        else:
            reason = traced
    model.sparseq_unlowered = f"runs layer by layer: {reason}"  # type: ignore[assignment]
    return model
