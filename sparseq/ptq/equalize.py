"""Cross-layer equalisation: channels of a tensor made equally large in the two layers it joins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.flow.prepare import original_weight
from sparseq.nn.batch_norm import affine_of
from sparseq.ptq.columns import column_ranges, divide, scaled_columns, scaled_rows, set_weight
from sparseq.ptq.graph import LAYERS, Graph, Readers, Use
from sparseq.spec import Layer

ITERATIONS, TOLERANCE = 100, 1e-3
LEAST_ROW = 2.0**-10  # rows before a batch norm grow by at most 1024


@dataclass(frozen=True)
class Pair:
    """A layer, the batch norm behind it if there is one, and the layers that read them."""

    first: Use
    norm: Use | None
    readers: Readers


def pairs_of(graph: Graph, plan: Mapping[str, Layer]) -> tuple[list[Pair], dict[str, str]]:
    """What can be equalised; and for the other layers of the plan, why their outputs cannot."""
    pairs, skipped = [], {}
    for use in graph.layers():
        if not isinstance(use.module, LAYERS) or len(use.inputs) != 1:
            continue
        norm = graph.batch_norm(use)
        readers: Readers | str | None = graph.obstacle(use)
        if readers is None and norm is not None and norm.module.weight is None:
            readers = f"{norm.label} has no weight to scale"
        if readers is None:
            readers = graph.readers(norm or use, use.module.weight.shape[0])
        involved = [use.name]
        if isinstance(readers, Readers):
            involved += [reader.name for reader in readers.layers]
        if not any(name in plan and plan[name].weight is not None for name in involved):
            continue
        if isinstance(readers, str):
            skipped[use.name] = readers
        else:
            pairs.append(Pair(use, norm, readers))
    return pairs, skipped


class _Weights:
    """The weights in float64, as masks leave them, and the factors that they got so far."""

    def __init__(self) -> None:
        self.now: dict[nn.Module, Tensor] = {}
        self.original: dict[nn.Module, Tensor] = {}

    def add(self, layer: nn.Module) -> None:
        if layer not in self.now:
            self.now[layer] = layer.weight.detach().double()  # type: ignore[operator]
            self.original[layer] = original_weight(layer).detach().double()

    def rows(self, layer: nn.Module, factor: Tensor) -> None:
        for held in (self.now, self.original):
            held[layer] = scaled_rows(held[layer], factor)

    def columns(self, layer: nn.Module, factor: Tensor, repeat: int) -> None:
        for held in (self.now, self.original):
            held[layer] = scaled_columns(layer, held[layer], factor, repeat)


@torch.no_grad()
def equalize(graph: Graph, plan: Mapping[str, Layer]) -> dict[str, str]:
    """Scale channels between layers so that both weights' ranges match; the function stays.

    For a channel with ranges `r1` (its row of the layer before) and `r2` (its column of the layer
    behind) the row is divided and the column multiplied by `s = sqrt(r1 r2) / r2`, over all pairs
    in turn until no s differs from 1. Between them may be what passes positive factors on (ReLU,
    LeakyReLU, PReLU, pooling, flatten). A batch norm between takes the factor in its weight and
    bias, with `r1` as if it were folded; and where the plan has one scale for the whole weight
    before a batch norm, its rows are made equally large, which the norm undoes.

    No bias grows beyond the greatest of its layer: a channel that died in training would otherwise
    widen the range of all activations.

    Args:
        graph: of the model, whose weights change in place.
        plan: by layer.

    Returns:
        By layer, why its output was left as it is.

    Reference:
        Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction,
        section 4.1 (without 4.1.3, bias absorption: it changes the float function).
    """
    pairs, skipped = pairs_of(graph, plan)
    weights = _Weights()
    scales = {pair.first.name: _balanced_start(pair, weights) for pair in pairs}
    for _ in range(ITERATIONS):
        change = 0.0
        for pair in pairs:
            factor = _factor(pair, weights, scales[pair.first.name])
            scales[pair.first.name] *= factor
            _scale(pair, weights, factor)
            change = max(change, float(factor.log().abs().max()) if factor.numel() else 0.0)
        if change < TOLERANCE:
            break
    for layer, weight in weights.original.items():
        set_weight(layer, weight)
    for pair in pairs:
        scale, layer = scales[pair.first.name], pair.first.module
        for held in (layer if pair.norm is None else pair.norm.module,):
            divide(held.bias, scale)
            if pair.norm is not None:
                divide(held.weight, scale)
    for use in graph.layers():
        norm = graph.batch_norm(use) if isinstance(use.module, LAYERS) else None
        spec = plan[use.name].weight if use.name in plan else None
        if norm is not None and spec is not None and spec.axis is None and not graph.obstacle(use):
            _level_rows(use.module, norm.module)
    return skipped


def _balanced_start(pair: Pair, weights: _Weights) -> Tensor:
    assert pair.first.module is not None
    for use in (pair.first, *pair.readers.layers):
        weights.add(use.module)
    return weights.now[pair.first.module].new_ones(weights.now[pair.first.module].shape[0])


def _factor(pair: Pair, weights: _Weights, scale: Tensor) -> Tensor:
    """The s of the paper, from the weights as they are by now."""
    layer = pair.first.module
    assert layer is not None
    first = weights.now[layer].flatten(1).abs().amax(1)
    bias: Tensor | None = layer.bias
    if pair.norm is not None:
        assert pair.norm.module is not None
        gain, shift = (t.double() for t in affine_of(pair.norm.module))
        first = first * gain.abs() / scale  # the norm takes the scale at the end
        bias = shift if bias is None else bias.double() * gain + shift
    repeat = pair.readers.repeat
    modules = [use.module for use in pair.readers.layers]
    ranges = [column_ranges(m, weights.now[m], repeat) for m in modules]
    second = torch.stack(ranges).amax(0)
    factor = (first * second).sqrt() / second
    if bias is not None:
        size = bias.double().abs() / scale
        factor = factor.maximum(size / size.max().clamp(min=1e-300))
    sound = (first > 0) & (second > 0) & factor.isfinite() & (factor > 0)
    return torch.where(sound, factor, 1.0)


def _scale(pair: Pair, weights: _Weights, factor: Tensor) -> None:
    if pair.norm is None:
        weights.rows(pair.first.module, 1 / factor)
    for use in pair.readers.layers:
        weights.columns(use.module, factor, pair.readers.repeat)


def _level_rows(layer: Any, norm: Any) -> None:
    """Give each row of a weight the range of the greatest, and let the batch norm undo it."""
    weight = original_weight(layer).detach().double()
    ranges = layer.weight.detach().double().flatten(1).abs().amax(1)
    if not bool(ranges.max() > 0):
        return
    factor = (ranges / ranges.max()).clamp(min=LEAST_ROW)
    factor = torch.where(ranges > 0, factor, 1.0)
    if norm.weight is None:
        return
    set_weight(layer, scaled_rows(weight, 1 / factor))
    divide(layer.bias, factor)
    variance = norm.running_var.double().clone()
    divide(norm.running_mean, factor)
    divide(norm.running_var, factor.square())
    stored = norm.running_var.double()
    gain = (factor * ((stored + norm.eps) / (variance + norm.eps)).sqrt()).reciprocal()
    divide(norm.weight, gain)
