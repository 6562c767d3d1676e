"""Bias correction: the mean error of each output channel taken out of the bias."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sparseq.flow.outputs import run_batch
from sparseq.flow.progress import Progress, tracked
from sparseq.ptq.capture import layer_results
from sparseq.ptq.graph import Graph


def channel_sums(layer: nn.Module, y: Tensor) -> tuple[Tensor, int]:
    """The sum over all but a layer's output channels, float64, and of how many values each."""
    spatial = layer.weight.dim() - 2 if isinstance(layer, _ConvNd) else 0
    values = y.double().movedim(-1 - spatial, -1).reshape(-1, y.shape[-1 - spatial])
    return values.sum(0), values.shape[0]


def _float_means(
    reference: nn.Module, names: list[str], batches: Iterable[Any]
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, output: Tensor) -> None:
            total, count = channel_sums(layer, output.detach())
            sums[name] = sums[name] + total if name in sums else total
            counts[name] = counts.get(name, 0) + count

        return hook

    handles = [reference.get_submodule(n).register_forward_hook(watch(n)) for n in names]
    try:
        for batch in batches:
            run_batch("ptq", reference, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: sums[name] / max(1, counts[name]) for name in sums}


@torch.no_grad()
def correct_biases(
    graph: Graph,
    reference: nn.Module,
    model: nn.Module,
    names: list[str],
    batches: Iterable[Any],
    progress: Progress = False,
) -> dict[str, str]:
    """Subtract each output channel's mean error, `E[y_q] - E[y]`, layer by layer.

    Measured on the data with the layers before corrected already. The correction goes into the
    layer's bias; where it has none, into the mean that a batch norm behind subtracts, else into a
    new bias.

    Args:
        graph: of the float model.
        reference: the float model, in eval mode.
        model: the quantised one, in eval mode; changed in place.
        names: of the layers, in the order of execution.
        batches: the same values in every pass.
        progress: as for `calibrate`.

    Returns:
        By layer, why it was left as it is.

    Reference:
        Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction,
        section 4.2, appendix D (empirical).
    """
    served = [n for n in names if isinstance(model.get_submodule(n), (nn.Linear, _ConvNd))]
    skipped = {n: "has no bias" for n in names if n not in served}
    norms = {use.name: graph.batch_norm(use) for use in graph.layers() if use.name in served}
    wanted = _float_means(reference, served, batches)
    for name in tracked(served, progress, "bias correction", "ptq"):
        layer: Any = model.get_submodule(name)
        total, count = torch.zeros_like(wanted[name]), 0
        for batch in batches:
            for y in layer_results(model, batch, name, graph.calls[name]):
                part, number = channel_sums(layer, y)
                total, count = total + part, count + number
        error = total / max(1, count) - wanted[name]
        norm = norms[name]
        if layer.bias is not None:
            layer.bias.copy_((layer.bias.double() - error).to(layer.bias.dtype))
        elif norm is not None:
            held: Any = model.get_submodule(norm.name).running_mean
            held.copy_((held.double() + error).to(held.dtype))
        else:
            layer.bias = nn.Parameter((-error).to(layer.weight.dtype))
    return skipped
