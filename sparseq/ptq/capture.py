"""What one layer reads or gives on a batch, without running the model beyond it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sparseq.flow.outputs import float_leaves, run_batch


class _Reached(Exception):
    """Ends a run where the rest of it is not needed."""


def _run(model: nn.Module, batch: Any, handle: Any) -> None:
    try:
        run_batch("ptq", model, batch)
    except _Reached:
        pass
    finally:
        handle.remove()


def layer_inputs(model: nn.Module, batch: Any, name: str, calls: int) -> list[Tensor]:
    """What a layer computes on in its calls, behind its input's fake-quantiser."""
    found: list[Tensor] = []

    def hook(layer: nn.Module, args: Any, kwargs: Any) -> None:
        found.append((args[0] if args else kwargs["input"]).detach())
        if len(found) == calls:
            raise _Reached

    layer = model.get_submodule(name)
    _run(model, batch, layer.register_forward_pre_hook(hook, with_kwargs=True))
    return found


def layer_results(model: nn.Module, batch: Any, name: str, calls: int) -> list[Tensor]:
    """What a layer gives in its calls."""
    found: list[Tensor] = []

    def hook(layer: nn.Module, args: Any, output: Any) -> None:
        found.append(float_leaves(output)[0].detach())
        if len(found) == calls:
            raise _Reached

    _run(model, batch, model.get_submodule(name).register_forward_hook(hook))
    return found
