"""When a QAT run starts to quantise, and what it freezes towards its end."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparseq.quant.fake_quantize import FakeQuantize


def freeze_observers(model: nn.Module) -> None:
    """Keep every input's grid as it is for the rest of training; weights' grids go on following."""
    for module in model.modules():
        if isinstance(module, FakeQuantize) and not module.follow:
            module.freeze()


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms of a model that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _stay(norm: nn.Module, arguments: Any) -> None:
    norm.training = False


def is_frozen(norm: nn.Module) -> bool:
    """Whether `freeze_batch_norms` holds for a batch norm."""
    return _stay in norm._forward_pre_hooks.values()


def freeze_batch_norms(model: nn.Module) -> None:
    """Make every batch norm use its running statistics and keep them, whatever `train()` says.

    What is trained then is what `convert` folds. Weight and bias go on learning.
    """
    for norm in batch_norms(model):
        if not is_frozen(norm):
            norm.register_forward_pre_hook(_stay)
        norm.eval()


def unfreeze_batch_norms(model: nn.Module) -> None:
    """Undo `freeze_batch_norms`: each batch norm is in its model's mode again."""
    for norm in batch_norms(model):
        for key, hook in list(norm._forward_pre_hooks.items()):
            if hook is _stay:
                del norm._forward_pre_hooks[key]
        norm.train(model.training)


class Schedule:
    """Starts fake-quantisation, freezes observers and freezes batch norms at given steps.

    Call `step()` at each epoch's (or batch's) beginning, the first time too. A usual run quantises
    from the start, freezes the observers after two thirds, the batch norms near the end
    (Krishnamoorthi 2018, section 4; Nagel et al. 2021, section 5).

    Args:
        model: prepared.
        quantize: the step that starts fake-quantisation; the observers look from the first on.
        observers: the step that freezes the inputs' grids; None for never.
        batch_norms: the step that freezes the batch norms; None for never.

    Raises:
        ValueError: a step that is negative.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        quantize: int = 0,
        observers: int | None = None,
        batch_norms: int | None = None,
    ) -> None:
        steps = {"quantize": quantize, "observers": observers, "batch_norms": batch_norms}
        for name, value in steps.items():
            if value is not None and value < 0:
                raise ValueError(f"Schedule: {name} must be at least 0, got {value}")
        self.model = model
        self.quantize, self.observers, self.batch_norms = quantize, observers, batch_norms
        self.count = 0

    def step(self) -> None:
        """One more epoch (or batch) begins."""
        self.count += 1
        self._apply()

    def _apply(self) -> None:
        now = self.count - 1
        for module in self.model.modules():
            if isinstance(module, FakeQuantize):
                module.enabled = now >= self.quantize
        if self.observers is not None and now >= self.observers:
            freeze_observers(self.model)
        if self.batch_norms is not None and now >= self.batch_norms:
            freeze_batch_norms(self.model)

    def state_dict(self) -> dict[str, int]:
        """How far it is, for a checkpoint."""
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken: the model is put into that state too."""
        self.count = int(state["count"])
        if self.count:
            self._apply()
