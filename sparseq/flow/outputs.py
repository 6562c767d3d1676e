"""What layers give while a model runs: for comparing two models layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def run_batch(caller: str, model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch: a tensor, an (input, ...) tuple, or a dict of arguments.

    Raises:
        TypeError: a batch of another type.
    """
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, dict):
        return model(**batch)
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
        return model(batch[0])
    raise TypeError(
        f"{caller}: a batch must be a tensor, a (tensor, ...) tuple or a dict of arguments, "
        f"got {type(batch).__name__}"
    )


def float_leaves(result: Any) -> list[Tensor]:
    """The floating-point tensors of what a module gives, be it a tensor, tuple or dict of them."""
    leaves = tree_leaves(result)
    return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]


@contextmanager
def layer_outputs(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what layers give, for as long as the block lasts.

    Args:
        model: any; its hooks are gone after the block.
        names: of its submodules.

    Yields:
        By name, the detached outputs in the order of the calls; clear the lists between batches.

    Raises:
        AttributeError: no such submodule.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(outputs: list[Tensor]) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # a copy: the model may go on in place (a ReLU, a residual sum)
            outputs.extend(t.detach().clone() for t in float_leaves(output))

        return hook

    handles = []
    try:
        for name, outputs in found.items():
            handles.append(model.get_submodule(name).register_forward_hook(keep(outputs)))
        yield found
    finally:
        for handle in handles:
            handle.remove()
