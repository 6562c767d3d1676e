"""What a layer may become, and a network's copies in which each layer became it."""

from __future__ import annotations

import copy
import glob
from collections.abc import Iterable, Mapping

from torch import nn

from sparseq.flow.calibrate import calibrate
from sparseq.flow.precision import own_dtype
from sparseq.flow.prepare import input_quantizers, layers_of, prepare, weight_transforms
from sparseq.sparse import Mask
from sparseq.spec import Layer, Plan, Quant

CANDIDATES: dict[str, Layer] = {
    "int8": Layer(weight=Quant(axis=0), input=Quant(symmetric=False)),
    "int4": Layer(weight=Quant(bits=4, axis=0), input=Quant(symmetric=False)),
    "float16": Layer(dtype="float16"),
    "float32": Layer(dtype="float32"),
}


def named(
    caller: str, candidates: Mapping[str, Layer] | Iterable[Layer] | None
) -> dict[str, Layer]:
    """Candidates by label; those without one are numbered.

    Raises:
        ValueError: none, or one that is not a Layer.
    """
    if candidates is None:
        return dict(CANDIDATES)
    if isinstance(candidates, Mapping):
        found = dict(candidates)
    else:
        known = {layer: label for label, layer in CANDIDATES.items()}
        found = {known.get(c, f"candidate {i}"): c for i, c in enumerate(candidates)}
    if not found or not all(isinstance(layer, Layer) for layer in found.values()):
        raise ValueError(
            f"{caller}: candidates must be Layers, by label or in a list, got {candidates!r}"
        )
    return found


def pattern(name: str) -> str:
    """A plan's pattern that matches this name only."""
    return glob.escape(name)


def does_nothing(layer: nn.Module) -> bool:
    """Whether a prepared layer computes what it did before."""
    weight = next(layer.parameters()).dtype
    transforms = [t for t in weight_transforms(layer) if getattr(t, "dtype", None) != weight]
    return not transforms and not hasattr(layer, "input_quantizer") and (
        own_dtype(layer) in (None, weight)
    )  # fmt: skip


class Candidates:
    """For each candidate a copy of a network in which every layer that can has become it.

    Ranges are those of the float network: masks are off while it is calibrated.

    Args:
        caller: what error messages begin with.
        model: float; its layers' names are those of the plan.
        wanted: candidates by label.
        inputs: batches without labels.

    Attributes:
        networks: by label, prepared.
        layers: by label the layers that became the candidate.

    Raises:
        ValueError: a candidate that serves no layer.
    """

    def __init__(
        self, caller: str, model: nn.Module, wanted: Mapping[str, Layer], inputs: list[object]
    ) -> None:
        self.wanted = dict(wanted)
        self.names = list(layers_of(model))
        self.networks: dict[str, nn.Module] = {}
        self.layers: dict[str, list[str]] = {}
        for label, layer in wanted.items():
            network = copy.deepcopy(model)
            refusal = ""
            taken = []
            for name in self.names:
                try:
                    prepare(network, Plan({pattern(name): layer}))
                except ValueError as error:
                    refusal = str(error)
                else:
                    taken.append(name)
            if not taken:
                raise ValueError(f"{caller}: candidate {label!r} must serve a layer: {refusal}")
            if input_quantizers(network):
                masks = [m for m in network.modules() if isinstance(m, Mask)]
                for mask in masks:
                    mask.enabled = False
                calibrate(network, inputs)
                for mask in masks:
                    mask.enabled = True
            self.networks[label], self.layers[label] = network.eval(), taken

    def labels_of(self, name: str) -> list[str]:
        """The candidates that a layer can become."""
        return [label for label in self.wanted if name in self.layers[label]]
