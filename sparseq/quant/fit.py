"""From a distribution to the range that serves it best: percentile, squared error, entropy.

Each takes values with weights, one row a scale: the centres of a histogram's bins with their counts
(an input's observer), or a weight's own values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparseq import ops
from sparseq.quant.grid import range_to_grid
from sparseq.spec import Quant

_BUDGET = 2**22  # elements of the greatest temporary
_COARSE, _FINE = 64, 16  # candidates of the first look, and about the best of them
_ENTROPY_BINS = 2048

Score = Callable[[Tensor, Tensor], Tensor]


def fitted_range(
    counts: Tensor, limit: Tensor, low: Tensor, high: Tensor, spec: Quant
) -> tuple[Tensor, Tensor]:
    """Fit a range to histograms.

    Args:
        counts: int64 `[*shape, bins]`, over `[-limit, limit)` as `ops.histogram` counts.
        limit: float32 `[*shape]`.
        low: float32 `[*shape]`, the least value counted.
        high: the greatest.
        spec: its observer says how: "percentile", "histogram" (least squared error) or "entropy".

    Returns:
        (low, high), float32 `[*shape]`, inside of what was given.
    """
    bins = counts.shape[-1]
    flat = counts.reshape(-1, bins)
    ends = low.flatten().clamp(max=0), high.flatten().clamp(min=0)
    centres = (torch.arange(bins, device=counts.device) + 0.5 - bins / 2) / (bins / 2)
    found = []
    for row in range(flat.shape[0]):
        weights = flat[row].double()
        if spec.observer == "entropy":
            # 0 is exact on every grid, and would outweigh the rest after a ReLU
            weights[bins // 2] = torch.minimum(weights[bins // 2], weights[bins // 2 + 1])
        filled = weights.nonzero().flatten()
        values = (centres * limit.flatten()[row])[filled]
        found.append(
            _fit(values[None], weights[None, filled], ends[0][row, None], ends[1][row, None], spec)
            if len(filled)
            else (ends[0][row, None], ends[1][row, None])
        )
    lows, highs = (torch.cat(part).reshape(low.shape) for part in zip(*found, strict=True))
    return lows, highs


def range_of_values(x: Tensor, spec: Quant, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Fit a range to values themselves: a weight's.

    Args:
        x: any float dtype; not empty.
        spec: the scheme.
        shape: of the ranges: `()`, `(C,)` or `(C, groups)`.

    Returns:
        (low, high), float32, of that shape.
    """
    x = x.detach().float()
    rows = (x if spec.axis is None else x.movedim(spec.axis, 0)).reshape(
        max(1, _product(shape)), -1
    )
    found = []
    for part in rows.split(max(1, _BUDGET // (rows.shape[1] * _COARSE))):
        low, high = part.aminmax(dim=1)
        if spec.observer == "entropy":
            limit = torch.exp2(torch.maximum(-low, high).clamp(1e-37, 2.0**126).log2().ceil())
            counts = ops.histogram(part, limit, _ENTROPY_BINS, 0)
            found.append(fitted_range(counts, limit, low, high, spec))
        else:
            values = part.sort(dim=1).values
            found.append(_fit(values, torch.ones_like(values, dtype=torch.double), low, high, spec))
    lows, highs = (torch.cat(part).reshape(shape) for part in zip(*found, strict=True))
    return lows, highs


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _fit(
    values: Tensor, weights: Tensor, low: Tensor, high: Tensor, spec: Quant
) -> tuple[Tensor, Tensor]:
    """Fit rows `[rows, count]` of ascending values with weights; low and high are `[rows]`."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    if spec.symmetric:
        high = torch.maximum(-low, high) if spec.signed else high
        low = -high if spec.signed else torch.zeros_like(high)
    if spec.observer == "percentile":
        return percentile_range(values, weights, low, high, spec)
    if spec.observer == "entropy":
        return _searched(lambda a, b: divergence(values, weights, a, b, spec), low, high, False)
    return _searched(
        lambda a, b: squared_error(values, weights, a, b, spec), low, high, not spec.symmetric
    )


def percentile_range(
    values: Tensor, weights: Tensor, low: Tensor, high: Tensor, spec: Quant
) -> tuple[Tensor, Tensor]:
    """Cut the tails.

    Symmetric: `high` holds percentile % of |x|. Otherwise a half of the rest is cut at each end, or
    all of it above where nothing is below 0.

    Reference:
        McKinstry et al. 2018, section 3.1.
    """
    rest = 1 - spec.percentile / 100
    if spec.symmetric:
        values, order = (values.abs() if spec.signed else values.clamp(min=0)).sort(dim=1)
        weights = weights.gather(1, order)
        high = torch.minimum(_quantile(values, weights, torch.full_like(high, 1 - rest)), high)
        return (-high if spec.signed else torch.zeros_like(high)), high
    below = torch.where(low < 0, rest / 2, 0.0)
    above = torch.where(high > 0, rest - below, 0.0)
    lower = torch.where(below > 0, _quantile(values, weights, below), low)
    upper = torch.where(above > 0, _quantile(values, weights, 1 - above), high)
    return torch.maximum(lower, low).clamp(max=0), torch.minimum(upper, high).clamp(min=0)


def _quantile(values: Tensor, weights: Tensor, share: Tensor) -> Tensor:
    """The least value up to which a share of the weight lies."""
    reached = weights.cumsum(dim=1)
    wanted = (share.double() * reached[:, -1])[:, None]
    index = torch.searchsorted(reached, wanted).clamp(max=values.shape[1] - 1)
    return values.gather(1, index)[:, 0]


def squared_error(
    values: Tensor, weights: Tensor, low: Tensor, high: Tensor, spec: Quant
) -> Tensor:
    """`sum w (fake_quantize(v) - v)^2` for each candidate range, `[rows, candidates]`."""

    def part(low: Tensor, high: Tensor) -> Tensor:
        scale, zero = (t.unsqueeze(-1) for t in range_to_grid(low, high, spec))
        v = values.unsqueeze(1)
        q = (v / scale).round_().add_(zero).clamp_(spec.quant_min, spec.quant_max)
        error = q.sub_(zero).mul_(scale).sub_(v).square_()
        return torch.bmm(error.double(), weights.unsqueeze(-1)).squeeze(-1)

    return _in_parts(part, values, low, high)


def divergence(values: Tensor, weights: Tensor, low: Tensor, high: Tensor, spec: Quant) -> Tensor:
    """Kullback-Leibler divergence of a histogram from its quantised form, for each candidate.

    `P` is the histogram inside the range with the tails at its outermost bins; `Q` spreads what
    each grid step holds evenly over its bins. Empty bins count for nothing.

    Reference:
        Migacz 2017, 8-bit Inference with TensorRT.
    """
    levels = spec.quant_max - spec.quant_min + 1

    def part(low: Tensor, high: Tensor) -> Tensor:
        scale, zero = (t.unsqueeze(-1) for t in range_to_grid(low, high, spec))
        step = (values.unsqueeze(1) / scale).round() + zero
        clipped = step.clamp(spec.quant_min, spec.quant_max)
        whole = weights.unsqueeze(1)
        inside = torch.where(step == clipped, whole, 0.0)
        level = (clipped - spec.quant_min).long()
        none = inside.new_zeros(*low.shape, levels)
        filled = none.scatter_add(-1, level, (inside > 0).double())
        mean = none.scatter_add(-1, level, inside) / filled.clamp(min=1)
        q = torch.where(inside > 0, mean.gather(-1, level), 0.0)
        p = inside
        for beyond, outermost in (
            (step < clipped, (inside > 0).to(torch.int8).argmax(-1, keepdim=True)),
            (step > clipped, _last(inside > 0)),
        ):
            tail = torch.where(beyond, whole, 0.0).sum(-1, keepdim=True)
            p = p.scatter_add(-1, outermost, tail)
        p, q = (t / t.sum(-1, keepdim=True).clamp(min=1) for t in (p, q))
        return torch.where(p > 0, p * (p / q.clamp(min=1e-12)).log(), 0.0).sum(-1)

    return _in_parts(part, values, low, high)


def _last(chosen: Tensor) -> Tensor:
    """The last place that is chosen, along the last dimension, which is kept."""
    return chosen.shape[-1] - 1 - chosen.flip(-1).to(torch.int8).argmax(-1, keepdim=True)


def _in_parts(score: Score, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Score some candidates at a time, so that temporaries stay small."""
    size = max(1, _BUDGET // max(1, values.numel()))
    pairs = zip(low.split(size, dim=1), high.split(size, dim=1), strict=True)
    return torch.cat([score(a, b) for a, b in pairs], dim=1)


def _searched(score: Score, low: Tensor, high: Tensor, apart: bool) -> tuple[Tensor, Tensor]:
    """The best `[a * low, b * high]` with 0 < a, b <= 1: a = b first, then each end by itself."""
    a = b = _line(lambda r: score(low[:, None] * r, high[:, None] * r), low)
    if apart:
        for _ in range(2):
            b = _line(lambda r, a=a: score((low * a)[:, None].expand_as(r), high[:, None] * r), low)  # type: ignore[misc]
            a = _line(lambda r, b=b: score(low[:, None] * r, (high * b)[:, None].expand_as(r)), low)  # type: ignore[misc]
    return low * a, high * b


def _line(score: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The factor of least score for each row, among equals the greatest: nothing cut in vain."""
    coarse = torch.linspace(1, 1 / _COARSE, _COARSE, device=like.device).expand(len(like), -1)
    best = coarse.gather(1, score(coarse).argmin(dim=1, keepdim=True))
    offsets = torch.linspace(1, -1, 2 * _FINE + 1, device=like.device) / _COARSE
    fine = (best + offsets).clamp(1 / (_COARSE * _FINE), 1)
    return fine.gather(1, score(fine).argmin(dim=1, keepdim=True))[:, 0]
