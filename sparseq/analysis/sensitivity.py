"""`sensitivity`: what each layer alone costs under each candidate."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.analysis.candidates import Candidates, does_nothing, named
from sparseq.analysis.diagnose import plain_copy
from sparseq.analysis.loss import Criterion, Loss, Mean, Ratio
from sparseq.analysis.network import Network
from sparseq.batches import Batch, read_batches
from sparseq.spec import Layer
from sparseq.table import decibel, plain, text_table

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SensitivityRow:
    """One layer under one candidate, the rest of the network in float.

    Attributes:
        name: of the layer.
        candidate: its label.
        added: by how much the network's loss grows.
        sqnr: signal to quantisation noise of the layer's output, decibel.
    """

    name: str
    candidate: str
    added: float
    sqnr: float


@dataclass(frozen=True)
class Sensitivity:
    """The table; `print` shows it, a line a layer.

    Attributes:
        rows: by layer, then by candidate; what a layer cannot become has none.
        loss: what the loss is.
        float_loss: of the float network.
    """

    rows: tuple[SensitivityRow, ...]
    loss: str
    float_loss: float

    def added(self, name: str, candidate: str) -> float:
        """By how much the loss grows with one layer under a candidate.

        Raises:
            KeyError: the layer cannot become that.
        """
        for row in self.rows:
            if (row.name, row.candidate) == (name, candidate):
                return row.added
        raise KeyError(f"no row of layer {name!r} under {candidate!r}")

    def __str__(self) -> str:
        """Loss added and SQNR by layer and candidate."""
        labels = list(dict.fromkeys(row.candidate for row in self.rows))
        cells: dict[str, dict[str, str]] = defaultdict(dict)
        for row in self.rows:
            cells[row.name][row.candidate] = f"{row.added:+.2g} ({decibel(row.sqnr)})"
        body = [(name, "", *(held.get(b, "-") for b in labels)) for name, held in cells.items()]
        table = text_table(("layer", "", *labels), body)
        title = f"{self.loss}, float {self.float_loss:.4g}; added by each layer alone (SQNR, dB)"
        return f"{title}\n{table}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [{k: plain(v) for k, v in vars(row).items()} for row in self.rows]
        return {**dataclasses.asdict(self), "rows": rows}


def measure(
    model: nn.Module,
    candidates: Candidates,
    batches: list[Batch],
    loss: Loss,
    progress: Progress | None,
    caller: str,
) -> Sensitivity:
    """The table for a plain copy of a model and its candidates' networks."""
    names = candidates.names
    network = Network(caller, model, names, ())
    modules = {
        (name, label): candidates.networks[label].get_submodule(name)
        for name in names
        for label in candidates.labels_of(name)
    }
    idle = {key for key, module in modules.items() if does_nothing(module)}
    base, means = Mean(), {key: Mean() for key in modules}
    ratios = {key: Ratio() for key in modules}

    def probe(name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        for key, module in modules.items():
            if key[0] == name and key not in idle:
                ratios[key].add(result, module(*args, **kwargs))

    done, total = 0, len(batches) * len(modules)
    for batch in batches:
        reference = network.record(batch, probe)
        rows = len(reference) if reference.dim() else 1
        exact = loss(reference, batch, reference)
        base.add(exact, rows)
        for key, module in modules.items():
            value = exact
            if key not in idle:
                output = network.exchanged(batch, {key[0]: module})
                value = loss(output, batch, reference)
            means[key].add(value, rows)
            done += 1
            if progress is not None:
                progress(done, total)
    found = tuple(
        SensitivityRow(
            *key,
            0.0 if key in idle else means[key].value - base.value,
            math.inf if key in idle else ratios[key].decibel,
        )
        for key in modules
    )
    return Sensitivity(found, loss.name, base.value)


@torch.no_grad()
def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    candidates: Mapping[str, Layer] | Iterable[Layer] | None = None,
    *,
    criterion: Criterion | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure what each layer alone costs under each candidate, the rest of the network in float.

    Inputs' ranges are calibrated on the same batches. The float network runs once a batch, its
    layers' results are kept: what comes before a layer is not computed again for its candidates,
    and what changes nothing is not run.

    Args:
        model: float; not changed.
        batches: as for `calibrate`; (input, labels) tuples for a loss on labels.
        candidates: what a layer may become, by label or in a list; None takes INT8, INT4 weights
            with INT8 inputs, float16 and float32 (`analysis.CANDIDATES`).
        criterion: from output and labels to a scalar loss; None takes the cross-entropy where there
            are labels, else the mean squared error to the float output.
        progress: called with how many of how many measurements are done.

    Returns:
        The table.

    Raises:
        ValueError: a model that is not float, no batch, no candidate, or one that serves no layer.
        TypeError: an argument of another type.
    """
    wanted = named("sensitivity", candidates)
    read = read_batches("sensitivity", batches)
    loss = Loss("sensitivity", criterion, read)
    plain_model = plain_copy("sensitivity", model, "model")
    prepared = Candidates("sensitivity", plain_model, wanted, [b.inputs for b in read])
    return measure(plain_model, prepared, read, loss, progress, "sensitivity")
