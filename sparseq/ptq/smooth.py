"""SmoothQuant: outlying channels of an activation moved into the weights that read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.flow.outputs import run_batch
from sparseq.flow.prepare import original_weight
from sparseq.ptq.columns import column_ranges, divide, scaled_columns, scaled_rows, set_weight
from sparseq.ptq.graph import Graph, Readers, Use
from sparseq.spec import Layer

NORMS = (nn.LayerNorm, nn.RMSNorm)
LEAST = 1e-5  # of an activation's or a weight's range


@dataclass(frozen=True)
class Group:
    """Linear layers that share an input, and the norm or linear layer that gives it."""

    source: Use
    readers: Readers


def groups_of(graph: Graph, plan: Mapping[str, Layer]) -> tuple[list[Group], dict[str, str]]:
    """What can be smoothed; and for the other linear layers of the plan, why they cannot."""
    served = {
        use.name: "what it reads comes neither from a norm nor through a ReLU from a linear layer"
        for use in graph.layers()
        if isinstance(use.module, nn.Linear) and use.name in plan and plan[use.name].input
    }
    groups, skipped = [], dict(served)
    for use in graph.layers():
        source = use.module
        if not isinstance(source, (*NORMS, nn.Linear)):
            continue
        obstacle = graph.obstacle(use)
        if isinstance(source, NORMS) and (source.weight is None or len(source.weight.shape) != 1):
            obstacle = "has no weight of one dimension"
        weight: Tensor = source.weight
        readers = obstacle or graph.readers(use, weight.shape[0])
        if isinstance(readers, Readers):
            names = [reader.name for reader in readers.layers]
            linear = all(isinstance(reader.module, nn.Linear) for reader in readers.layers)
            if linear and any(name in served for name in names):
                groups.append(Group(use, readers))
                for name in names:
                    skipped.pop(name, None)
        else:  # whichever layers read it, too
            for reader in graph.read(use):
                if reader.name in skipped:
                    reason = (
                        readers if obstacle else f"is {readers}".replace("is read", "is also read")
                    )
                    skipped[reader.name] = f"its input, of {use.label}, {reason}"
    return groups, skipped


@torch.no_grad()
def smooth(
    graph: Graph,
    model: nn.Module,
    plan: Mapping[str, Layer],
    batches: Iterable[Any],
    alpha: float,
) -> dict[str, str]:
    """Divide each channel of an activation by s and multiply the weights behind by it.

    `s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`, with W_j what all layers of the group multiply
    channel j by. The division goes into the weight and bias of the norm, or the rows of the linear
    layer, that makes the activation: nothing is added to the model, and its function stays.

    Args:
        graph: of the model, whose weights change in place.
        model: in eval mode; run on all batches.
        plan: by layer; groups without a quantised input are left alone.
        batches: as for `calibrate`.
        alpha: how much of the difficulty moves into the weights, in [0, 1].

    Returns:
        By linear layer, why it was left as it is.

    Reference:
        Xiao et al. 2023, SmoothQuant, equation 4.
    """
    groups, skipped = groups_of(graph, plan)
    greatest = _greatest(model, groups, batches) if groups else {}
    for group in groups:
        name, source = group.source.name, group.source.module
        assert source is not None
        readers: list[Any] = [use.module for use in group.readers.layers]
        ranges = [column_ranges(m, m.weight.detach().double()) for m in readers]
        weight = torch.stack(ranges).amax(0)
        activation = greatest[name].double()
        scale = activation.clamp(min=LEAST) ** alpha / weight.clamp(min=LEAST) ** (1 - alpha)
        sound = (activation > LEAST) & (weight > LEAST) & scale.isfinite()
        scale = torch.where(sound, scale, 1.0)
        if isinstance(source, nn.Linear):
            original = original_weight(source).detach().double()
            set_weight(source, scaled_rows(original, 1 / scale))
        else:
            divide(source.weight, scale)
        divide(getattr(source, "bias", None), scale)
        for reader in readers:
            original = original_weight(reader).detach().double()
            set_weight(reader, scaled_columns(reader, original, scale))
    return skipped


def _greatest(model: nn.Module, groups: list[Group], batches: Iterable[Any]) -> dict[str, Tensor]:
    """Each group's greatest magnitude a channel of what its layers read, over all batches."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0] if args else kwargs["input"]
            seen = x.detach().abs().reshape(-1, x.shape[-1]).amax(0)
            found[name] = seen if name not in found else torch.maximum(found[name], seen)

        return hook

    handles = []
    try:
        for group in groups:
            reader = group.readers.layers[0].module
            assert reader is not None
            hook = watch(group.source.name)
            handles.append(reader.register_forward_pre_hook(hook, with_kwargs=True))
        for batch in batches:
            run_batch("ptq", model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
