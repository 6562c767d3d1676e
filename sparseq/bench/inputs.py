"""An example input, and a model while it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sparseq import modes

Example = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def tensors_of(caller: str, example: object) -> list[Tensor]:
    """The tensors of an example, in order.

    Raises:
        TypeError: it is no tensor, sequence or mapping of tensors.
        ValueError: it holds no image.
    """
    values: list[Any]
    if isinstance(example, Tensor):
        values = [example]
    elif isinstance(example, Mapping):
        values = list(example.values())
    elif isinstance(example, Sequence):
        values = list(example)
    else:
        values = []
    if not values or not all(isinstance(value, Tensor) for value in values):
        raise TypeError(
            f"{caller}: example must be a tensor, or a sequence or mapping of tensors, got "
            f"{type(example).__name__}"
        )
    first = values[0]
    if first.dim() == 0 or first.shape[0] == 0:
        raise ValueError(f"{caller}: example must hold an image, got shape {tuple(first.shape)}")
    return values


def call_with(model: Callable[..., Any], example: Example) -> Any:
    """Run a model on an example: a mapping by name, a sequence by position."""
    if isinstance(example, Tensor):
        return model(example)
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example)


def mapped(example: Example, change: Callable[[Tensor], Tensor]) -> Example:
    """The example with each tensor changed."""
    if isinstance(example, Tensor):
        return change(example)
    if isinstance(example, Mapping):
        return {name: change(value) for name, value in example.items()}
    return [change(value) for value in example]


def of_batch(example: Example, batch: int) -> Example:
    """The example's own images, repeated or cut to another batch size."""

    def sized(x: Tensor) -> Tensor:
        times = -(-batch // x.shape[0])
        return x.repeat(times, *[1] * (x.dim() - 1))[:batch].contiguous()

    return mapped(example, sized)


@contextmanager
def threads_set(count: int | None) -> Iterator[None]:
    """Torch's number of threads for as long as the block lasts; None leaves it."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def evaluating(model: object) -> AbstractContextManager[None]:
    """`modes.evaluating` of a model; nothing of what is none."""
    return modes.evaluating(model) if isinstance(model, nn.Module) else nullcontext()


def waiting(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The call, and on a GPU the wait until its work is done."""
    if device.type != "cuda":
        return call

    def timed() -> Any:
        result = call()
        torch.cuda.synchronize(device)
        return result

    return timed
