"""The proof of equality: an exported file in ONNX Runtime against the model, layer by layer.

A rounding that falls the other way in one layer moves the numbers of all later ones, so comparing
whole runs says little about where they part. Three comparisons say it exactly:

1. forced: the file as ONNX Runtime runs it, but every layer reads the model's own integer input.
   What lies between two quantised tensors is thus compared on its own, integer kernels included.
2. layers: the same with ONNX Runtime's optimisations off, comparing what each layer computes in
   float. A file that holds other numbers than the model shows here, at the layer that holds them.
3. free: the untouched file end to end; its arg-max must be the model's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparseq.export.capture import Capture
from sparseq.export.kernels import metadata_of
from sparseq.export.require import require
from sparseq.export.scratch import expose, forced_name, load_model, session
from sparseq.export.view import as_converted
from sparseq.flow.precision import own_dtype

Array = np.ndarray[Any, Any]

FLIPS = 0.05  # share of integers that rounding (of sums, of biases) may push to a neighbour
STEPS = 1  # and how far
FLOAT = 1e-4  # float sums in another order, relative to the greatest value
# Where layers compute in float16: sums that round to another neighbour, relative and in integers
FLOAT16, FLOAT16_FLIPS = 2**-8, 0.15
NEAR_TIE = 8  # a flip may swap outputs that differ by less than this many steps of 1 / levels


class VerificationError(ValueError):
    """ONNX Runtime gives other numbers than the model."""


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        passed: whether the file gives the model's numbers.
        max_difference: the greatest difference of a quantised layer input, in steps of its grid
            (units of the scale, LSB), each layer fed with the model's own input.
        output_difference: the greatest difference of the output end to end, relative to the
            greatest output.
        argmax_agreement: share of rows with the same arg-max, near ties left out.
        batches: how many were compared.
        layer: the first layer that differs, or None.
        reason: what differs and by how much, one sentence; empty if passed.
    """

    passed: bool
    max_difference: float
    output_difference: float
    argmax_agreement: float
    batches: int
    layer: str | None = None
    reason: str = ""

    def __str__(self) -> str:
        """One line."""
        state = "equal" if self.passed else f"DIFFERENT: {self.reason}"
        return (
            f"{state}; quantised values within {self.max_difference:g} steps, output within "
            f"{self.output_difference:.2g} of its range, arg-max agreement "
            f"{self.argmax_agreement:.2%}, {self.batches} batches"
        )


def _relative(got: Array, wanted: Array) -> float:
    """Greatest difference over the greatest wanted value."""
    if not wanted.size:
        return 0.0
    difference = np.abs(got.astype(np.float64) - wanted).max()
    return float(difference / max(float(np.abs(wanted).max()), 1e-12))


def _agreement(got: Array, wanted: Array, near_tie: float) -> tuple[int, int]:
    """Rows of equal arg-max and rows that have one, near ties left out."""
    if wanted.ndim < 2 or wanted.shape[1] < 2 or not wanted.size:
        return 0, 0
    best = np.sort(wanted, axis=1)[:, -2:]
    clear = best[:, 1] - best[:, 0] > near_tie * np.abs(wanted).max()
    same = got.argmax(1) == wanted.argmax(1)
    return int((same & clear).sum()), int(clear.sum())


class _Comparison:
    """The three sessions for one file, and what they have shown so far."""

    def __init__(self, model: nn.Module, path: str | os.PathLike[str]) -> None:
        proto = load_model(path)
        metadata = metadata_of(proto)
        described = json.loads(metadata.get("sparseq_layers", "{}"))
        self.values: dict[str, dict[str, str]] = {n: d["values"] for n, d in described.items()}
        self.readers: dict[str, str] = {}  # integer tensor -> its first reader
        for name, values in self.values.items():
            if "input" in values:
                self.readers.setdefault(values["input"], name)
        outputs = [v["output"] for v in self.values.values() if v["output"] != "output"]
        self.capture = Capture(model, list(self.values))
        # a file for TensorRT is held to what it says, not to ONNX Runtime's kernels for
        # int8 x int8, which saturate on CPUs without VNNI
        own = metadata.get("sparseq_target") != "tensorrt"
        self.free = session(proto, optimise=own)
        exposed = expose(proto, list(self.readers), list(self.readers))
        self.forced = session(exposed, optimise=own)
        self.plain = session(expose(proto, list(self.readers), outputs), optimise=False)
        specs = [m.input_spec for m in self.capture.layers.values() if m.input_spec is not None]
        levels = min((spec.quant_max - spec.quant_min for spec in specs), default=0)
        half = any(own_dtype(m) == torch.float16 for m in self.capture.model.modules())
        self.float, self.flips = (FLOAT16, FLOAT16_FLIPS) if half else (FLOAT, FLIPS)
        self.near_tie = NEAR_TIE / levels if levels else self.float
        kinds = {output.name: output.type for output in self.forced.get_outputs()}
        self.unsigned = {name for name, kind in kinds.items() if kind == "tensor(uint8)"}
        self.steps = self.relative = 0.0
        self.same = self.rows = 0
        self.layer: str | None = None
        self.reason = ""

    def _fail(self, layer: str | None, reason: str) -> None:
        if not self.reason:
            self.layer, self.reason = layer, reason

    def batch(self, x: Tensor) -> None:
        """Compare one batch."""
        wanted = self.capture(x)
        feed = {"input": x.detach().cpu().numpy()}
        integers = {t: self._as_stored(t, wanted.inputs[n]) for t, n in self.readers.items()}
        forced = feed | {forced_name(t): q for t, q in integers.items()}
        self._layers(self._run(self.plain, forced), wanted.outputs)
        self._forced(self._run(self.forced, forced), integers, wanted.result)
        got = self._run(self.free, feed)["output"]
        if got.shape != wanted.result.shape:
            return
        self.relative = max(self.relative, _relative(got, wanted.result))
        same, rows = _agreement(got, wanted.result, self.near_tie)
        self.same, self.rows = self.same + same, self.rows + rows
        if same < rows:
            self._fail(None, f"the arg-max of {rows - same} of {rows} rows differs")

    def _as_stored(self, tensor: str, q: Array) -> Array:
        """The model's integers as the file has them: signed ones may be shifted into uint8."""
        shifted = q.dtype == np.int8 and tensor in self.unsigned
        return (q.astype(np.int16) + 128).astype(np.uint8) if shifted else q

    def _run(self, running: Any, feed: dict[str, Array]) -> dict[str, Array]:
        names = [output.name for output in running.get_outputs()]
        try:
            results = running.run(names, feed)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ValueError(f"verify: ONNX Runtime cannot run the file: {error}") from error
        return dict(zip(names, results, strict=True))

    def _layers(self, got: dict[str, Array], wanted: dict[str, Array]) -> None:
        for layer, values in self.values.items():
            result = got[values["output"]]
            if result.shape != wanted[layer].shape:  # a view of it is the model's output
                continue
            difference = _relative(result, wanted[layer])
            if not difference <= self.float:
                self._fail(
                    layer,
                    f"{layer} is the first layer that differs: by {difference:.2%} of its greatest "
                    "output",
                )

    def _forced(self, got: dict[str, Array], wanted: dict[str, Array], result: Array) -> None:
        for tensor, reader in self.readers.items():
            steps = np.abs(got[tensor].astype(np.int32) - wanted[tensor].astype(np.int32))
            if not steps.size:
                continue
            self.steps = max(self.steps, float(steps.max()))
            if steps.max() > STEPS or np.count_nonzero(steps) > max(1.0, self.flips * steps.size):
                self._fail(
                    reader,
                    f"the input of {reader} is the first that differs: by up to {steps.max()} "
                    f"steps of its grid, {np.count_nonzero(steps) / steps.size:.1%} of its values",
                )
        if got["output"].shape != result.shape:
            self._fail(None, f"the output has shape {got['output'].shape}, not {result.shape}")
            return
        difference = _relative(got["output"], result)
        if not difference <= self.float:
            self._fail(None, f"the output differs by {difference:.2%} of its greatest value")

    def report(self, batches: int) -> Report:
        """The outcome."""
        return Report(
            passed=not self.reason,
            max_difference=self.steps,
            output_difference=self.relative,
            argmax_agreement=self.same / self.rows if self.rows else 1.0,
            batches=batches,
            layer=self.layer,
            reason=self.reason,
        )


def verify(model: nn.Module, path: str | os.PathLike[str], batches: Iterable[Any]) -> Report:
    """Run an exported file in ONNX Runtime on the CPU and compare it with the model.

    A quantised value may differ by one step of its grid in up to 5 % of places (sums in another
    order and biases in int32 round another way now and then); float results by 1e-4 of the
    greatest; the arg-max must be the same wherever the two greatest outputs are not nearly tied (8
    steps of the coarsest grid, laid over the outputs). With layers in float16, whose sums ONNX
    Runtime rounds elsewhere, these are 15 % and 2^-8. A file that `export.onnx` did not write is
    compared by its output only.

    Args:
        model: the one that was exported: float, prepared or converted.
        path: of the ONNX file.
        batches: input tensors, or (input, ...) tuples of which the first goes in.

    Returns:
        The report; look at `.passed`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an ONNX file of this model, or no batch.
        TypeError: a batch of another type.
        ImportError: onnx or onnxruntime is missing.
    """
    require("onnxruntime")
    comparison = _Comparison(as_converted(model), path)
    count = 0
    with torch.no_grad(), comparison.capture:
        for batch in batches:
            x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(x, Tensor):
                raise TypeError(
                    "verify: a batch must be a tensor or a (tensor, ...) tuple, got "
                    f"{type(batch).__name__}"
                )
            comparison.batch(x)
            count += 1
    if count == 0:
        raise ValueError("verify: batches must hold at least one batch, got none")
    return comparison.report(count)
