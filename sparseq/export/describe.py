"""What a file's metadata say: the plan, each layer's scheme and kernel, version, accuracy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from torch import nn

from sparseq.export.contents import is_24
from sparseq.export.lower import Call
from sparseq.nn import SparseQuantLayer
from sparseq.quant import FakeQuantize
from sparseq.sparse import Mask
from sparseq.spec import NM, Layer, Plan

Accuracy = float | Mapping[str, float]


def check_accuracy(accuracy: object) -> None:
    """TypeError or ValueError unless accuracy is None, a finite number or names with numbers."""
    if accuracy is None:
        return
    named = accuracy if isinstance(accuracy, Mapping) else {"accuracy": accuracy}
    numbers = [n for n in named.values() if isinstance(n, (int, float)) and not isinstance(n, bool)]
    sound = len(numbers) == len(named) > 0 and all(isinstance(name, str) for name in named)
    if not sound:
        raise TypeError(
            f"export.onnx: accuracy must be a number or a mapping of names to numbers, got "
            f"{accuracy!r}"
        )
    if not all(math.isfinite(n) for n in numbers):
        raise ValueError(f"export.onnx: accuracy must be finite, got {accuracy!r}")


def plan_of(model: nn.Module, prepared: nn.Module) -> Plan | None:
    """The plan as the converted model has it: each layer's name -> Layer; None if it is float.

    Sparsity is what the prepared model's masks say and, for a model that was given converted,
    2:4 where the integers are so.
    """
    masks = {
        name.partition(".parametrizations.")[0].removeprefix("parametrizations."): module.spec
        for name, module in prepared.named_modules()
        if isinstance(module, Mask)
    }
    rules: dict[str, Layer | None] = {}
    for name, module in model.named_modules():
        if isinstance(module, SparseQuantLayer):
            sparsity = masks.get(name)
            values = module.weight_values.numpy(force=True)
            if sparsity is None and values.shape[1] % 4 == 0 and is_24(values, 1):
                sparsity = NM(2, 4)
            rules[name] = Layer(module.weight_spec, module.input_spec, sparsity)
        elif isinstance(getattr(module, "sparseq_layer", None), Layer):
            held: Layer = module.sparseq_layer
            quantizer = getattr(module, "input_quantizer", None)
            spec = quantizer.spec if isinstance(quantizer, FakeQuantize) else None
            rules[name] = Layer(held.weight, spec, masks.get(name), held.dtype)
    return Plan(rules) if rules else None


def metadata(
    model: nn.Module,
    prepared: nn.Module,
    calls: dict[str, Call],
    target: str,
    exporter: str,
    accuracy: Accuracy | None,
) -> dict[str, str]:
    """The file's metadata_props."""
    import sparseq

    described = {}
    for name, call in calls.items():
        layer = model.get_submodule(call.layer)
        assert isinstance(layer, SparseQuantLayer)
        values = {"output": call.output.name}
        if call.input is not None:
            values["input"] = call.input.name
        described[name] = {
            "kind": type(layer).__name__,
            "weight": vars(layer.weight_spec),
            "input": layer.input_spec and vars(layer.input_spec),
            "zeros": float((layer.weight_values == 0).float().mean()),
            "form": call.form,
            "reason": call.reason,
            "values": values,
        }
    found = {
        "sparseq_version": sparseq.__version__,
        "sparseq_target": target,
        "sparseq_exporter": exporter,
        "sparseq_layers": json.dumps(described),
    }
    plan = plan_of(model, prepared)
    if plan is not None:
        found["sparseq_plan"] = plan.to_json()
    if accuracy is not None:
        held = dict(accuracy) if isinstance(accuracy, Mapping) else accuracy
        found["sparseq_accuracy"] = json.dumps(held)
    return found
