"""`explain`: what runs in each layer, and why nothing better does."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

import sparseq._C as core
from sparseq.flow.dense import UNPLANNED, UNSERVED, dense_layers, unserved_layers
from sparseq.flow.precision import emulated, own_dtype
from sparseq.flow.prepare import layers_of, refusal_to_prepare, transform_of
from sparseq.lower import Assembled, Lowered, layerwise
from sparseq.nn import SparseQuantEmbedding, SparseQuantLayer
from sparseq.quant import FakeQuantize
from sparseq.sparse import Mask
from sparseq.spec import Layer, Quant


@dataclass(frozen=True)
class Row:
    """One layer: its name and kind, which kernel runs, its share of zeros, and notes.

    dense says why all of its weights are kept where others of the model are pruned; program in
    which program a layer of a lowered model runs, and with what it is fused.
    """

    name: str
    kind: str
    kernel: str
    sparsity: float
    note: str
    dense: str = ""
    program: str = ""


@dataclass(frozen=True)
class Explanation:
    """A table of rows that prints itself."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def dense(self) -> dict[str, str]:
        """By layer why it stays dense, in a model that has sparsity."""
        return {row.name: row.dense for row in self.rows if row.dense}

    def __str__(self) -> str:
        """The table as text."""
        head = ("layer", "kind", "kernel", "zeros", "note")
        body = [(r.name, r.kind, r.kernel, f"{r.sparsity:.1%}", r.note) for r in self.rows]
        widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in [head, *body]
        ]
        return "\n".join([*lines, *self.notes])


def _scheme(spec: Quant) -> str:
    sign = "s" if spec.signed else "u"
    return f"{sign}{spec.bits}" + ("" if spec.symmetric else " asymmetric")


def _integer_row(name: str, layer: SparseQuantLayer, dense: str) -> Row:
    values, zero = layer.weight_values, layer.weight_zero_point
    stored = (
        values
        if zero is None or zero.dim() > 1
        else (values.int() - zero.reshape([-1] + [1] * (values.dim() - 1)))
    )
    zeros = float((stored == 0).float().mean()) if stored.numel() else 0.0
    weight = _scheme(layer.weight_spec)
    note = f"weight {weight}"
    if layer.input_spec is not None:
        how = "" if layer.input_scale is not None else f", {layer.own_range}"
        note += f", input {_scheme(layer.input_spec)}{how}"
    kernel = f"{layer.kernel} ({core.isa()})"
    if isinstance(layer, SparseQuantEmbedding):
        kernel = layer.kernel
    elif layer.kernel == "float32":
        kernel = "float32 on dequantised weight"
    note = f"{note}; {layer.choice.reason}"
    if dense and dense != UNPLANNED:
        note += f"; dense: {dense}"
    return Row(name, type(layer).__name__, kernel, zeros, note, dense)


def _float_row(name: str, layer: nn.Module, dense: str) -> Row:
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]
    zeros = float((weight.detach() == 0).float().mean()) if weight.numel() else 0.0
    plan: Layer = getattr(layer, "sparseq_layer", Layer())
    notes = []
    mask, quantizer = transform_of(layer, Mask), transform_of(layer, FakeQuantize)
    if quantizer is not None:
        notes.append(f"prepared: weight {_scheme(quantizer.spec)}")
    if hasattr(layer, "input_quantizer"):
        spec: Quant = layer.input_quantizer.spec  # type: ignore[union-attr, assignment]
        notes.append(f"input {_scheme(spec)}" + (" dynamic" if spec.dynamic else ""))
    if mask is not None:
        notes.append(f"mask {mask.spec}")
    if dense and dense != UNPLANNED:
        notes.append(f"dense: {dense}")
    if plan.input is not None and isinstance(layer, nn.Embedding):
        notes.append("its input are indices: not quantised")
    dtype = own_dtype(layer)
    if dtype is not None:
        kind = str(dtype).removeprefix("torch.")
        notes.append(f"computes in {kind}, by the plan")
        if emulated(dtype, weight.device):
            notes.append(
                f"this CPU has no {kind} products: torch emulates them, slower than float32"
            )
    reason = getattr(layer, "sparseq_reason", refusal_to_prepare(layer))
    if reason and dtype is None:
        notes.append(f"float: {reason}")
    if not notes:
        notes.append("float: not in the plan")
    kernel = str(weight.dtype).removeprefix("torch.")
    kind = type(layer).__name__.removeprefix("Parametrized")
    return Row(name, kind, kernel, zeros, "; ".join(notes), dense)


def _unserved_row(name: str, layer: nn.Module, dense: str) -> Row:
    weights = [p.detach() for p in layer.parameters(recurse=False) if p.dim() > 1]
    zeros = sum(int((w == 0).sum()) for w in weights) / max(1, sum(w.numel() for w in weights))
    kernel = str(weights[0].dtype).removeprefix("torch.") if weights else ""
    return Row(name, type(layer).__name__, kernel, zeros, f"float: {UNSERVED}", dense)


def explain(model: nn.Module) -> Explanation:
    """Say for every layer which kernel runs, or why it stays dense or float.

    Args:
        model: float, prepared or converted.

    Returns:
        A table; `print(explain(model))` shows it, `.rows` holds it, and `.dense` says by layer why
        it stays dense where the model has sparsity.
    """
    lowered = model.assembled if isinstance(model, Lowered) else None
    model = layerwise(model)
    dense = dense_layers(model)
    rows = [
        _integer_row(name, layer, dense.get(name, ""))
        if isinstance(layer, SparseQuantLayer)
        else _float_row(name, layer, dense.get(name, ""))
        for name, layer in layers_of(model, converted=True).items()
    ]
    others = unserved_layers(model).items()
    rows += [_unserved_row(name, layer, dense.get(name, "")) for name, layer in others]
    found = [getattr(model, name, None) for name in ("sparseq_unfolded", "sparseq_unlowered")]
    notes = [note for note in found if note]
    if lowered is not None:
        rows = [_in_program(row, lowered) for row in rows]
        notes += [
            f"float32 between programs: {name}"
            + (f" ({count} times)" if count > 1 else "")
            + f": {reason}"
            for (name, reason), count in lowered.between.items()
        ]
    return Explanation(tuple(rows), tuple(notes))


def _in_program(row: Row, lowered: Assembled) -> Row:
    """The row with its place, or why it has none."""
    program = lowered.placed.get(row.name, "")
    reason = lowered.reasons.get(row.name)
    place = program or (f"in no program: {reason}" if reason else "")
    return replace(row, program=program, note=f"{row.note}; {place}" if place else row.note)
