"""A layer's output error as a quadratic form of its weight's error, from data seen once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparseq.flow.progress import length_of
from sparseq.ptq.capture import layer_inputs, layer_results

SLICE = 2**24  # elements of the unfolded input that are held at a time


@dataclass(frozen=True)
class Moments:
    """`E|y - (W + D) x - b|^2 = D G D^T - 2 D B^T + E`, for each output channel.

    Args:
        inputs: G, the second moments of x: `[groups, K, K]`.
        cross: B, of x with the error r that W itself leaves: `[groups, N / groups, K]`.
        rest: E, the second moment of r: `[N]`.
    """

    inputs: Tensor
    cross: Tensor
    rest: Tensor

    def _grouped(self, error: Tensor) -> Tensor:
        return error.reshape(self.cross.shape)

    def quadratic(self, error: Tensor) -> Tensor:
        """`D G D^T`, `[N]`."""
        d = self._grouped(error)
        return (torch.bmm(d, self.inputs) * d).sum(-1).flatten()

    def errors(self, error: Tensor) -> Tensor:
        """The whole form, `[N]`."""
        d = self._grouped(error).double()
        products = torch.bmm(d, self.inputs.double()) - 2 * self.cross.double()
        return ((products * d).sum(-1).flatten() + self.rest.double()).clamp(min=0)

    def gradient(self, error: Tensor) -> Tensor:
        """`2 (D G - B)`, of the weight's shape."""
        slope = 2 * (torch.bmm(self._grouped(error), self.inputs) - self.cross)
        return slope.reshape(error.shape)


def served(layer: nn.Module) -> bool:
    """Whether a layer's output is a product of its weight and columns of its input."""
    return isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))


def _columns(layer: Any, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Slices of the input's columns `[rows, groups, K]` with the outputs `[rows, N]`."""
    if isinstance(layer, nn.Linear):
        yield x.reshape(-1, 1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        return
    one = isinstance(layer, nn.Conv1d)
    if x.dim() == (2 if one else 3):
        x, y = x[None], y[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    lead = (1,) if one else ()
    if one:
        x, y = x.unsqueeze(2), y.unsqueeze(2)
    kernel, stride = (*lead, *layer.kernel_size), (*lead, *layer.stride)
    dilation = (*lead, *layer.dilation)
    pixels = y.shape[2] * y.shape[3]
    taps = kernel[0] * kernel[1]
    images = max(1, SLICE // max(1, pixels * taps * x.shape[1]))
    for part, output in zip(x.split(images), y.split(images), strict=True):
        unfolded = functional.unfold(part, kernel, dilation, 0, stride)
        unfolded = unfolded.reshape(len(part), layer.groups, -1, pixels).permute(0, 3, 1, 2)
        columns = unfolded.reshape(-1, layer.groups, unfolded.shape[-1])
        yield columns, output.flatten(2).transpose(1, 2).reshape(len(columns), -1)


def moments_of(
    reference: nn.Module,
    model: nn.Module,
    name: str,
    calls: int,
    batches: Iterable[Any],
    weight: Tensor,
    rows: int,
) -> Moments:
    """A layer's moments: x as the quantised model has it, y as the float one.

    Args:
        reference: the float model.
        model: the quantised one.
        name: of the layer, `served`.
        calls: how often the models call it.
        batches: to run both on, each up to the layer.
        weight: W, float32.
        rows: output positions to draw, about.
    """
    layer: Any = model.get_submodule(name)
    groups = getattr(layer, "groups", 1)
    flat = weight.reshape(groups, weight.shape[0] // groups, -1)
    inputs = torch.zeros(groups, flat.shape[2], flat.shape[2], device=weight.device).double()
    cross = torch.zeros(flat.shape, device=weight.device).double()
    rest = torch.zeros(flat.shape[:2], device=weight.device).double()
    count = length_of(batches) or 1
    quota = max(1, -(-rows // (count * calls)))
    generator = torch.Generator().manual_seed(0)
    seen = 0
    for batch in batches:
        given = layer_inputs(model, batch, name, calls)
        wanted = layer_results(reference, batch, name, calls)
        for x, y in zip(given, wanted, strict=True):
            share = quota / max(1, y.numel() // max(1, weight.shape[0]))
            for part, output in _columns(layer, x.float(), y.float()):
                if share < 1:
                    draw = torch.randperm(len(part), generator=generator)
                    draw = draw[: max(1, round(share * len(part)))].to(part.device)
                    part, output = part[draw], output[draw]
                columns = part.transpose(0, 1).contiguous()
                target = output.reshape(len(output), groups, -1).transpose(0, 1)
                left = target - torch.bmm(columns, flat.transpose(1, 2))
                if layer.bias is not None:
                    left = left - layer.bias.detach().float().reshape(groups, 1, -1)
                inputs += torch.bmm(columns.transpose(1, 2), columns)
                cross += torch.bmm(left.transpose(1, 2), columns)
                rest += left.double().square().sum(1)
                seen += len(part)
    divisor = max(1, seen)
    return Moments(
        (inputs / divisor).float(), (cross / divisor).float(), (rest / divisor).flatten().float()
    )
