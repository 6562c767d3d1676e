"""What each step of post-training quantisation gained."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.flow.outputs import float_leaves, layer_outputs, run_batch
from sparseq.ptq.adaround import Rounding


@dataclass(frozen=True)
class Step:
    """The model after one step.

    Args:
        name: "nearest" (prepared and calibrated), or the switch.
        sqnr: of the network's output against the float model's, in dB; inf where they are equal.
        gain: by how much the step changed it, in dB; None for the first.
        layers: the same by layer: of its output, behind its batch norm where it has one.
        seconds: that the step took, without measuring.
    """

    name: str
    sqnr: float
    gain: float | None
    layers: dict[str, float]
    seconds: float

    @property
    def mean(self) -> float:
        """Over the layers, in dB."""
        return sum(self.layers.values()) / max(1, len(self.layers))

    @property
    def worst(self) -> str:
        """The layer of least SQNR."""
        return min(self.layers, key=self.layers.__getitem__, default="")


@dataclass(frozen=True)
class PTQReport:
    """The steps in their order; prints itself as a table.

    Args:
        steps: each on top of those before.
        skipped: by step and layer, what was left as it was, and why.
        rounding: by layer, what AdaRound did to the mean squared error of its output.
    """

    steps: tuple[Step, ...]
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)
    rounding: dict[str, Rounding] = field(default_factory=dict)

    @property
    def sqnr(self) -> float:
        """Of the network's output in the end, in dB."""
        return self.steps[-1].sqnr

    def __str__(self) -> str:
        """The table as text, then what was skipped."""
        head = ("step", "SQNR dB", "gain", "layers: mean", "worst", "", "seconds")
        body = [
            (
                s.name,
                f"{s.sqnr:.2f}",
                "" if s.gain is None else f"{s.gain:+.2f}",
                f"{s.mean:.2f}",
                f"{s.layers[s.worst]:.2f}" if s.layers else "",
                s.worst,
                f"{s.seconds:.1f}",
            )
            for s in self.steps
        ]
        widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
        lines = []
        for row in [head, *body]:
            cells = [
                cell.ljust(width) if i in (0, 5) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        for step, layers in self.skipped.items():
            reasons = defaultdict(list)
            for name, reason in layers.items():
                reasons[reason].append(name)
            lines += [f"{step} left {', '.join(n)}: {reason}" for reason, n in reasons.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an SQNR without a bound is None."""
        steps = [
            {
                "name": s.name,
                "sqnr": _finite(s.sqnr),
                "gain": None if s.gain is None else _finite(s.gain),
                "mean": _finite(s.mean),
                "worst": s.worst,
                "layers": {name: _finite(value) for name, value in s.layers.items()},
                "seconds": s.seconds,
            }
            for s in self.steps
        ]
        rounding = {
            name: {"nearest": r.nearest, "adaround": r.adaround}
            for name, r in self.rounding.items()
        }
        skipped = {step: dict(layers) for step, layers in self.skipped.items()}
        return {"steps": steps, "skipped": skipped, "rounding": rounding}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _Ratio:
    """`10 log10(sum y^2 / sum (y - y_q)^2)`, summed up piece by piece."""

    def __init__(self) -> None:
        self.signal, self.noise = 0.0, 0.0

    def add(self, wanted: Tensor, got: Tensor) -> None:
        wanted = wanted.double()
        self.signal += float(wanted.square().sum())
        self.noise += float((wanted - got.double()).square().sum())

    @property
    def decibel(self) -> float:
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf


@torch.no_grad()
def measure(
    reference: nn.Module, model: nn.Module, points: Mapping[str, str], batches: Iterable[Any]
) -> tuple[float, dict[str, float]]:
    """SQNR of a quantised model, of its output and of each layer's, in dB.

    Args:
        reference: the float model, in eval mode.
        model: the quantised one, in eval mode.
        points: by layer, the module whose output counts as the layer's.
        batches: both run on each.
    """
    whole, layers = _Ratio(), {name: _Ratio() for name in points}
    with layer_outputs(reference, points.values()) as wanted:
        with layer_outputs(model, points.values()) as got:
            for batch in batches:
                expected = float_leaves(run_batch("ptq", reference, batch))
                given = float_leaves(run_batch("ptq", model, batch))
                for a, b in zip(expected, given, strict=True):
                    whole.add(a, b)
                for name, point in points.items():
                    for a, b in zip(wanted[point], got[point], strict=True):
                        layers[name].add(a, b)
                for outputs in (*wanted.values(), *got.values()):
                    outputs.clear()
    return whole.decibel, {name: ratio.decibel for name, ratio in layers.items()}
