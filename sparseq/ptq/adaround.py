"""AdaRound: which weights to round up and which down, so that the layer's output stays close."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.flow.prepare import original_weight, transform_of, weight_transforms
from sparseq.flow.progress import Progress, tracked
from sparseq.ptq.moments import Moments, moments_of, served
from sparseq.quant import FakeQuantize
from sparseq.reference import expand_channels
from sparseq.sparse import Mask

ZETA, GAMMA = 1.1, -0.1  # the rectified sigmoid's ends
WARM, BETA = 0.2, (20.0, 2.0)  # share without regulariser, and its exponent from then to the end


@dataclass(frozen=True)
class AdaRound:
    """How AdaRound runs.

    Args:
        iterations: steps of Adam a layer.
        rate: Adam's learning rate.
        strength: weight of the regulariser that drives each weight up or down, against an error of
            1 for rounding to nearest.
        rows: at most about as many output positions are looked at, drawn over all batches.
        memory_mb: layers whose matrix of second moments would be larger keep rounding to nearest.

    Raises:
        ValueError: a value that is not positive.
    """

    iterations: int = 1000
    rate: float = 0.02
    strength: float = 10.0
    rows: int = 32768
    memory_mb: int = 1024

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("iterations", "rate", "strength", "rows", "memory_mb"):
            value = getattr(self, name)
            whole = name not in ("rate", "strength")
            kinds = int if whole else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool) or not value > 0:
                wanted = "a positive whole number" if whole else "a positive number"
                raise ValueError(f"AdaRound: {name} must be {wanted}, got {value!r}")


@dataclass(frozen=True)
class Rounding:
    """One layer's mean squared output error, float against quantised, before and after."""

    nearest: float
    adaround: float


@torch.no_grad()
def round_weights(
    reference: nn.Module,
    model: nn.Module,
    names: dict[str, int],
    batches: Iterable[Any],
    options: AdaRound,
    progress: Progress = False,
) -> tuple[dict[str, Rounding], dict[str, str]]:
    """Choose each weight's rounding, layer by layer, each on what the rounded layers before give.

        min over V of |y - (W~ x^ + b)|^2 + strength * sum(1 - |2 h(V) - 1|^beta)
        W~ = s * clip(floor(W / s) + h(V), quant_min, quant_max)

    with y of the float model, x^ of the quantised one and the rectified sigmoid h. The error is a
    quadratic form of the weight's error, with the second moments of x^ for its matrix: these are
    summed once over the data, so that a step costs no pass over it, sees all of it, and nothing is
    kept of activations. (So the activation function behind, which the paper can include, is not.)
    Each row is held to its own error with rounding to nearest, and keeps that where it is better.

    The layer's weight then *is* what its grid holds, and the grid is frozen: everything behind
    (`convert`, `save`, export) rounds it to itself. Masked weights stay as they are.

    Args:
        reference: the float model, in eval mode.
        model: the quantised one, in eval mode, calibrated; changed in place.
        names: of the layers in the order of execution, with how often each is called.
        batches: any number of passes.
        options: how.
        progress: as for `calibrate`.

    Returns:
        By layer, the errors; and why others keep rounding to nearest.

    Reference:
        Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization, equations
        21 to 25.
    """
    found: dict[str, Rounding] = {}
    skipped: dict[str, str] = {}
    for name in tracked(list(names), progress, "adaround", "ptq"):
        layer: Any = model.get_submodule(name)
        quantizer = transform_of(layer, FakeQuantize)
        reason = _obstacle(layer, quantizer, options)
        if reason:
            skipped[name] = reason
            continue
        weight = original_weight(layer)
        for transform in weight_transforms(layer):
            weight = transform(weight) if isinstance(transform, Mask) else weight
        quantizer(weight)  # the grid follows the weight as it is now
        moments = moments_of(
            reference, model, name, names[name], batches, weight.float(), options.rows
        )
        rounded, found[name] = _rounded(weight.float(), quantizer, moments, options)
        original = original_weight(layer)
        mask = transform_of(layer, Mask)
        kept = torch.ones_like(original, dtype=torch.bool) if mask is None else mask.mask
        original.copy_(torch.where(kept, rounded.to(original.dtype), original))
        quantizer.freeze()
    return found, skipped


def _obstacle(layer: Any, quantizer: FakeQuantize | None, options: AdaRound) -> str | None:
    if quantizer is None:
        return "no weight quantiser in the plan"
    if not served(layer):
        return f"AdaRound does not serve {type(layer).__name__.removeprefix('Parametrized')}"
    others = [t for t in weight_transforms(layer) if not isinstance(t, (Mask, FakeQuantize))]
    if others:
        return f"its weight passes through a {type(others[0]).__name__}"
    inputs = original_weight(layer)[0].numel()
    size = getattr(layer, "groups", 1) * inputs**2 * 8 / 2**20
    if size > options.memory_mb:
        return (
            f"its {inputs} inputs need a matrix of {size:.0f} MB, "
            f"memory_mb allows {options.memory_mb}"
        )
    return None


def _rounded(
    weight: Tensor, quantizer: FakeQuantize, moments: Moments, options: AdaRound
) -> tuple[Tensor, Rounding]:
    """The weight on grid points, and its error."""
    spec = quantizer.spec
    scale, zero = quantizer.grid()
    scale = expand_channels(scale, weight, spec.axis, spec.group_size).expand_as(weight)
    low = torch.full_like(weight, spec.quant_min)
    high = torch.full_like(weight, spec.quant_max)
    if zero is not None:
        zero = zero.round().clamp(spec.quant_min, spec.quant_max).float()
        spread = expand_channels(zero, weight, spec.axis, spec.group_size)
        low, high = low - spread, high - spread
    steps = weight / scale
    floor = steps.floor()
    nearest = steps.round().clamp(low, high)
    # what is clipped and what is zero (pruned, say) has no choice
    free = (floor >= low) & (floor < high) & (weight != 0)
    start = moments.errors(nearest * scale - weight)
    norm = moments.quadratic(nearest * scale - weight)
    norm = torch.where(norm > 0, norm, torch.ones_like(norm))
    up = _optimised(weight, steps - floor, scale, free, norm, moments, options)
    chosen = torch.where(free, floor + up, nearest)
    end = moments.errors(chosen * scale - weight)
    better = (end < start).reshape([-1] + [1] * (weight.dim() - 1))
    chosen = torch.where(better, chosen, nearest)
    after = torch.minimum(start, end)
    return chosen * scale, Rounding(float(start.mean()), float(after.mean()))


def _optimised(
    weight: Tensor,
    fraction: Tensor,
    scale: Tensor,
    free: Tensor,
    norm: Tensor,
    moments: Moments,
    options: AdaRound,
) -> Tensor:
    """Which weights to round up, as 1 and 0."""
    share = fraction.clamp(1e-4, 1 - 1e-4)
    v = -((ZETA - GAMMA) / (share - GAMMA) - 1).log()
    per_row = norm.reshape([-1] + [1] * (weight.dim() - 1))
    used = torch.where(free, scale, 0.0)
    pull = torch.where(free, options.strength / max(1, weight[0].numel()), 0.0)
    adam = _Adam(v, options.rate)
    warm = round(WARM * options.iterations)
    for step in range(options.iterations):
        sigmoid = v.sigmoid()
        raw = sigmoid * (ZETA - GAMMA) + GAMMA
        h = raw.clamp(0, 1)
        slope = moments.gradient((h - fraction) * used) * used / per_row
        if step >= warm:
            done = (step - warm) / max(1, options.iterations - warm)
            beta = BETA[0] + (BETA[1] - BETA[0]) * done
            side = 2 * h - 1
            slope -= pull * (2 * beta) * side.sign() * side.abs() ** (beta - 1)
        slope *= (ZETA - GAMMA) * sigmoid * (1 - sigmoid) * (raw == h)
        adam.step(v, slope)
    return (v >= 0).to(weight.dtype)  # h(V) >= 1/2


class _Adam:
    """Kingma and Ba 2015, algorithm 1, on one tensor: a layer takes many steps on little."""

    def __init__(self, like: Tensor, rate: float) -> None:
        self.rate, self.count = rate, 0
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)

    def step(self, v: Tensor, slope: Tensor) -> None:
        self.count += 1
        self.mean.lerp_(slope, 0.1)
        self.square.mul_(0.999).addcmul_(slope, slope, value=0.001)
        rate = self.rate / (1 - 0.9**self.count)
        root = (self.square / (1 - 0.999**self.count)).sqrt_().add_(1e-8)
        v.addcdiv_(self.mean, root, value=-rate)
