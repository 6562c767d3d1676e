"""Which layers a plan's sparsity left dense, and why."""

from __future__ import annotations

from torch import nn

from sparseq.flow.prepare import SERVED, layers_of, sparsity_refusal, transform_of
from sparseq.sparse import Mask
from sparseq.spec import NM, Layer

UNPLANNED = "no sparsity in the plan"
UNSERVED = f"a plan serves {SERVED} only"
_UNSERVED = (nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose3d, nn.RNNBase, nn.RNNCellBase,
             nn.Bilinear, nn.EmbeddingBag)  # fmt: skip


def unserved_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Torch's layers with weights that no plan can serve, by name."""
    shapeless = nn.modules.lazy.LazyModuleMixin
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _UNSERVED) and not isinstance(module, shapeless)
    }


def _all_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {**layers_of(model, converted=True), **unserved_layers(model)}


def dense_layers(model: nn.Module) -> dict[str, str]:
    """By layer why all of its weights are kept; nothing where no layer shall be sparse.

    Args:
        model: prepared; or converted, which remembers.
    """
    layers = _all_layers(model)
    held = {
        name: str(layer.sparseq_dense)
        for name, layer in layers.items()
        if hasattr(layer, "sparseq_dense")
    }
    plans: dict[str, Layer] = {
        name: layer.sparseq_layer  # type: ignore[misc]
        for name, layer in layers.items()
        if hasattr(layer, "sparseq_layer")
    }
    if all(plan.sparsity is None for plan in plans.values()):
        return held
    for name, layer in layers.items():
        if name not in held:
            reason = _reason(layer, plans.get(name, Layer()))
            if reason is not None:
                held[name] = reason
    return held


def _reason(layer: nn.Module, plan: Layer) -> str | None:
    if isinstance(layer, _UNSERVED):
        return UNSERVED
    spec = plan.sparsity
    if spec is None:
        return UNPLANNED
    refusal = sparsity_refusal(layer, spec)
    if refusal is not None:
        return refusal
    mask: Mask | None = transform_of(layer, Mask)
    if mask is None or not bool(mask.mask.all()):
        return None  # a converted layer says what it has to say itself
    if mask.needs_data and not mask.settled:
        return (
            f"not ranked yet: criterion {spec.criterion!r} needs sparse.score, and update_masks "
            "or a PruningSchedule"
        )
    if spec.sparsity == 0:
        return "sparsity 0 in the plan"
    if isinstance(spec, NM) or spec.scope == "global":
        return "ranked with the other layers, it kept all of its weights"
    return f"{spec.sparsity:.2%} of its {mask.mask.numel()} weights are none"


def remember(model: nn.Module) -> None:
    """Let layers say after their conversion why they are dense."""
    layers = _all_layers(model)
    for name, reason in dense_layers(model).items():
        layers[name].sparseq_dense = reason  # type: ignore[assignment]
