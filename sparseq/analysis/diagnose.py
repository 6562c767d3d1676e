"""`diagnose`: how much each layer, and each part of its quantisation, takes from the accuracy."""

from __future__ import annotations

import copy
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.analysis.diagnosis import Diagnosis, DiagnosisRow, PartRow
from sparseq.analysis.loss import Criterion, Loss, Mean, Ratio
from sparseq.analysis.network import Network
from sparseq.analysis.unit import PARTS, Pair, Unit
from sparseq.batches import Batch, read_batches
from sparseq.flow.fold import batch_norms
from sparseq.flow.prepare import layers_of, prepare
from sparseq.nn import SparseQuantLayer
from sparseq.spec import Layer, Plan

FALL = 6.0  # dB


def served(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a prepared or converted model that a plan did something to, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, SparseQuantLayer)
        or getattr(module, "sparseq_layer", Layer()) != Layer()
    }


def plain_copy(caller: str, model: nn.Module, argument: str) -> nn.Module:
    """A float model's copy in eval mode with a layer for each that a plan can serve.

    Raises:
        TypeError: not a module.
        ValueError: it is quantised, or has no such layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: {argument} must be an nn.Module, got {type(model).__name__}")
    touched = served(model)
    if touched:
        raise ValueError(
            f"{caller}: {argument} must be float, as before prepare, got one whose "
            f"{next(iter(touched)) or 'layer'} is quantised"
        )
    return prepare(copy.deepcopy(model).eval(), Plan({"*": Layer()}))


class _Run:
    """The two networks, and what batches have shown of them so far."""

    def __init__(
        self, float_model: nn.Module, quantised: nn.Module, batches: list[Batch], loss: Loss
    ) -> None:
        plain = plain_copy("diagnose", float_model, "float_model")
        touched = served(quantised)
        if not touched:
            raise ValueError("diagnose: quantised must be prepared or converted, got a float model")
        known = layers_of(plain)
        names = [name for name in touched if name in known]
        self.notes = tuple(
            f"{name}: not compared, the float model has no such layer"
            for name in touched
            if name not in known
        )
        if not names:
            raise ValueError("diagnose: quantised must be of float_model, got no layer in common")
        for name in names:  # what a fold must know
            if hasattr(touched[name], "sparseq_dims"):
                known[name].sparseq_dims = touched[name].sparseq_dims
        pairs = {layer: norm for layer, norm in batch_norms(plain)[0].items() if layer in names}
        self.plain = Network("diagnose", plain, names, pairs.values())
        self.quantised = Network("diagnose", quantised, names, pairs.values())
        self.units = {name: self._unit(name, pairs.get(name)) for name in names}
        self.variants: dict[str, dict[str, Pair]] = {name: {} for name in names}
        for name, unit in self.units.items():
            for part in PARTS:
                pair = unit.alone(part)
                if pair is not None:
                    self.variants[name][part] = pair
        self.loss, self.batches = loss, batches
        self.order: dict[str, None] = {}
        self.ratios: dict[tuple[str, str], Ratio] = defaultdict(Ratio)
        self.losses: dict[tuple[str, str], Mean] = defaultdict(Mean)

    def _unit(self, name: str, norm: str | None) -> Unit:
        forms = (
            Pair(net.held(name), None if norm is None else net.held(norm))
            for net in (self.plain, self.quantised)
        )
        return Unit(name, norm, *forms)

    def _note(self, key: tuple[str, str], output: Tensor, batch: Batch, reference: Tensor) -> None:
        rows = len(output) if output.dim() else 1
        self.losses[key].add(self.loss(output, batch, reference), rows)
        self.ratios[key].add(reference, output)

    def batch(self, batch: Batch) -> None:
        """Compare the networks on one batch."""
        wanted: dict[str, list[Tensor]] = defaultdict(list)
        position: dict[str, int] = defaultdict(int)

        def probe(name: str, args: Any, kwargs: Any, result: Tensor) -> None:
            unit = self.units[name]
            self.order.setdefault(name)
            y = unit.plain.after(result.clone())
            wanted[name].append(y)
            self.ratios[name, "alone"].add(y, unit.quantised(args, kwargs))
            for part, pair in self.variants[name].items():
                self.ratios[name, part].add(y, pair(args, kwargs))

        def beside(name: str, args: Any, kwargs: Any, result: Tensor) -> None:
            if position[name] < len(wanted[name]):
                y = wanted[name][position[name]]
                self.ratios[name, "beside"].add(y, self.units[name].quantised.after(result.clone()))
            position[name] += 1

        reference = self.plain.record(batch, probe)
        self._note(("", "float"), reference, batch, reference)
        self._note(("", "quantised"), self.quantised.record(batch, beside), batch, reference)
        for name, unit in self.units.items():
            swapped = self.plain.exchanged(batch, unit.modules(unit.quantised))
            self._note((name, "swapped"), swapped, batch, reference)
            back = self.quantised.exchanged(batch, unit.modules(unit.plain))
            self._note((name, "back"), back, batch, reference)
        for part in PARTS:
            modules: dict[str, nn.Module] = {}
            for name, unit in self.units.items():
                if part in self.variants[name]:
                    modules |= unit.modules(self.variants[name][part])
            if modules:
                self._note((part, "part"), self.plain.exchanged(batch, modules), batch, reference)

    def _decibel(self, name: str, what: str) -> float | None:
        return self.ratios[name, what].decibel if (name, what) in self.ratios else None

    def _scheme(self, name: str) -> str:
        masked = "mask" in self.variants[name]
        return self.units[name].scheme + (" masked" if masked else "")

    def diagnosis(self) -> Diagnosis:
        """The outcome."""
        whole, base = (self.losses["", kind].value for kind in ("quantised", "float"))
        added = {name: self.losses[name, "swapped"].value - base for name in self.order}
        total = sum(max(value, 0.0) for value in added.values())
        rows = tuple(
            DiagnosisRow(
                name,
                self._scheme(name),
                self.units[name].bits,
                self.ratios[name, "beside"].decibel,
                self.ratios[name, "alone"].decibel,
                self._decibel(name, "weight"),
                self._decibel(name, "input"),
                self._decibel(name, "mask"),
                added[name],
                max(added[name], 0.0) / total if total > 0 else 0.0,
                whole - self.losses[name, "back"].value,
            )
            for name in self.order
        )
        parts = {
            p: self.losses[p, "part"].value - base for p in PARTS if (p, "part") in self.losses
        }
        total = sum(max(value, 0.0) for value in parts.values())
        part_rows = tuple(
            PartRow(
                part,
                sum(part in variants for variants in self.variants.values()),
                value,
                max(value, 0.0) / total if total > 0 else 0.0,
                self.ratios[part, "part"].decibel,
            )
            for part, value in parts.items()
        )
        idle = tuple(f"{name}: never called" for name in self.units if name not in self.order)
        output = self.ratios["", "quantised"].decibel
        found = (rows, part_rows, self.loss.name, base, whole, output, fall(rows))
        return Diagnosis(*found, self.notes + idle)


def fall(rows: Iterable[DiagnosisRow]) -> str | None:
    """The first layer where quality falls; see `Diagnosis`."""
    rows = list(rows)
    alone = [row.alone for row in rows if math.isfinite(row.alone)]
    lowest = statistics.median(alone) if alone else math.inf
    for index, row in enumerate(rows):
        if math.isnan(row.sqnr) or row.sqnr < lowest - FALL:
            return row.name
        lowest = min(lowest, row.sqnr) if index else row.sqnr
    return None


@torch.no_grad()
def diagnose(
    float_model: nn.Module,
    quantised: nn.Module,
    batches: Iterable[Any],
    *,
    criterion: Criterion | None = None,
) -> Diagnosis:
    """Say where a quantised model loses accuracy: by layer, and by part of the quantisation.

    Both networks run side by side. Then each layer is exchanged alone, in both directions: the
    float network with this one layer quantised, the quantised network with this one layer in float.
    Then weights, inputs, masks and folded batch norms are switched on alone, in all layers. A layer
    counts with the batch norm that directly follows it, so that folded and unfolded models compare.

    `SQNR = 10 log10(sum y^2 / sum (y - y_q)^2)` over all batches.

    Args:
        float_model: as before `prepare`; not changed. After `ptq` steps that move scales between
            layers, the model after them.
        quantised: prepared (and calibrated) or converted; not changed.
        batches: input tensors, (input, labels) tuples, or dicts of arguments (labels among them).
        criterion: from output and labels to a scalar loss; None takes the cross-entropy where there
            are labels, else the mean squared error to the float output.

    Returns:
        The tables; `print` shows them, `.plot(path)` draws them.

    Raises:
        ValueError: models that are not float and quantised, no batch, or a criterion without
            labels.
        TypeError: a batch or a result of another type.

    Reference:
        Widrow and Kollar 2008, Quantization Noise (the ratio); Nagel et al. 2021, A White Paper on
        Neural Network Quantization, section 3.7 (switching on one part, one layer at a time).
    """
    read = read_batches("diagnose", batches)
    run = _Run(float_model, quantised, read, Loss("diagnose", criterion, read))
    for batch in read:
        run.batch(batch)
    return run.diagnosis()
