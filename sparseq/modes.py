"""Training and evaluation mode of a model's modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode for as long as the block lasts; then each module as it was.

    What was attached meanwhile goes with the module that it was attached to.

    Args:
        model: any.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        with suppress(NotImplementedError):  # an exported graph has the mode that it was made in
            model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
            for child in module.children():
                if child not in modes:
                    child.train(training)
