"""What `diagnose` found: rows, a table, a dict, a plot."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from sparseq.table import decibel, plain, text_table


@dataclass(frozen=True)
class DiagnosisRow:
    """One layer.

    Attributes:
        name: of the layer.
        scheme: such as W8A8, W4 or float16.
        bits: of its weight.
        sqnr: signal to quantisation noise of its output (batch norm included), decibel, both
            networks side by side: with what came in from the layers before.
        alone: the same with only this layer quantised.
        weight: with only its weight rounded; None where it is not.
        input: with only its input rounded; None where it is not.
        mask: with only its mask; None without one.
        added: by how much the float network's loss grows with this layer quantised.
        share: of what all layers add where they add something, 0 to 1.
        gain: by how much the quantised network's loss falls with this layer in float.
    """

    name: str
    scheme: str
    bits: int
    sqnr: float
    alone: float
    weight: float | None
    input: float | None
    mask: float | None
    added: float
    share: float
    gain: float


@dataclass(frozen=True)
class PartRow:
    """One part of the quantisation, in all layers, everything else in float.

    Attributes:
        part: weight, input, mask or fold.
        layers: how many have it.
        added: by how much the float network's loss grows.
        share: of what all parts add where they add something, 0 to 1.
        sqnr: of the network's output, decibel.
    """

    part: str
    layers: int
    added: float
    share: float
    sqnr: float


@dataclass(frozen=True)
class Diagnosis:
    """Where the accuracy went; `print` shows it.

    Attributes:
        rows: by layer, in the order in which they run.
        parts: by part of the quantisation.
        loss: what the loss is.
        float_loss: of the float network.
        quantised_loss: of the quantised one.
        output_sqnr: of the network's output, decibel.
        fall: the first layer where quality falls: by more than 6 dB below the lowest ratio before
            it (the first layer: below the median of what layers have alone); None if nowhere.
        notes: what was not compared.
    """

    rows: tuple[DiagnosisRow, ...]
    parts: tuple[PartRow, ...]
    loss: str
    float_loss: float
    quantised_loss: float
    output_sqnr: float
    fall: str | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Two tables as text, and what they say."""
        ratios = ("SQNR dB", "alone", "weight", "input", "mask")
        head = ("layer", "scheme", *ratios, "loss added", "share", "gain if float")
        rows = [
            (
                row.name,
                row.scheme,
                *map(decibel, (row.sqnr, row.alone, row.weight, row.input, row.mask)),
                f"{row.added:+.2g}",
                f"{row.share:.0%}",
                f"{row.gain:+.2g}",
            )
            for row in self.rows
        ]
        parts = [
            (p.part, str(p.layers), decibel(p.sqnr), f"{p.added:+.2g}", f"{p.share:.0%}")
            for p in self.parts
        ]
        lines = [
            f"{self.loss}: float {self.float_loss:.4g}, quantised {self.quantised_loss:.4g}; "
            f"output {decibel(self.output_sqnr)} dB",
            text_table(head, rows),
            text_table(("part alone", "layers", "output dB", "loss added", "share"), parts),
            self._verdict(),
        ]
        return "\n".join([*lines, *self.notes])

    def _verdict(self) -> str:
        if self.fall is None:
            return "quality falls nowhere at once"
        names = [row.name for row in self.rows]
        row = self.rows[names.index(self.fall)]
        return f"quality falls first at {row.name}: to {decibel(row.sqnr)} dB"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ratios that are not finite become text."""
        values = dataclasses.asdict(self)
        for key in ("rows", "parts"):
            values[key] = [{k: plain(v) for k, v in row.items()} for row in values[key]]
        values["notes"] = list(values["notes"])
        return {key: plain(value) for key, value in values.items()}

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the ratios and the loss by layer as a PNG.

        Args:
            path: of the picture; written aside and renamed.

        Raises:
            ImportError: matplotlib is missing.
            OSError: the file cannot be written.
        """
        from sparseq.analysis.plot import draw

        draw(self, path)
