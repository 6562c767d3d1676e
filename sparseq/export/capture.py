"""What the model itself computes: each layer's integer input and its output."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor, nn

from sparseq.export.view import quantised_by_rows, quantised_layers
from sparseq.nn import SparseQuantLayer

Array = np.ndarray[Any, Any]


@dataclass
class Captured:
    """One run: integer inputs and float outputs by call (`name`, then `name@1`), and the result."""

    inputs: dict[str, Array] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)
    result: Array = field(default_factory=lambda: np.zeros(0))


class Capture:
    """Runs a copy of the model with hooks on its integer layers; a context manager.

    Args:
        model: converted, or float.
        calls: the calls that the file knows of.

    Raises:
        ValueError: a call of a layer that the model does not have.
    """

    def __init__(self, model: nn.Module, calls: list[str]) -> None:
        self.model = copy.deepcopy(model).cpu().eval()
        self.layers = quantised_layers(self.model)
        strangers = [call for call in calls if call.partition("@")[0] not in self.layers]
        if strangers:
            raise ValueError(
                "verify: the file is of another model: this one has no integer layer "
                f"{strangers[0]}"
            )
        self.handles: list[Any] = []
        self.record = Captured()
        self.count: Counter[str] = Counter()

    def __enter__(self) -> Capture:
        """Hang the hooks."""
        for name, layer in self.layers.items():
            self.handles.append(layer.register_forward_hook(partial(self._note, name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()

    def __call__(self, x: Tensor) -> Captured:
        """Run the model on one batch."""
        self.record, self.count = Captured(), Counter()
        result = self.model(x.detach().cpu())
        if not isinstance(result, Tensor):
            raise TypeError(f"verify: the model must return a tensor, got {type(result).__name__}")
        self.record.result = result.float().numpy()
        return self.record

    def _note(self, name: str, layer: SparseQuantLayer, args: Any, output: Tensor) -> None:
        calls = self.count[name]
        self.count[name] += 1
        call = f"{name}@{calls}" if calls else name
        if layer.input_spec is not None:
            q = layer.quantize_input(args[0])[0]
            q = q.reshape(-1, q.shape[-1]) if quantised_by_rows(layer) else q
            self.record.inputs[call] = q.numpy()
        # a copy: an in-place activation behind the layer would write into it
        self.record.outputs[call] = output.float().clone().numpy()
