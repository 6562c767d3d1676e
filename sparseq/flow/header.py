"""The header of a saved file, field by field: what `load` reads of it has the type that it must."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparseq.nn import SparseQuantLayer
from sparseq.quant import FakeQuantize

INTEGER_FIELDS = {
    "kind": str,
    "weight": dict,
    "input": (dict, type(None)),
    "static": bool,
    "rows": (int, type(None)),
    "bias": bool,
    "zero_point": bool,
}
FLOATS = ("float16", "bfloat16", "float32")
LATER = {"kind", "rows"}  # files of earlier versions lack them
EXAMPLES = ("float32", "int64", "int32")  # dtypes of what a model was lowered with
EXAMPLE_ELEMENTS = 2**26
ROWS = 2**40  # more than any call has


def _expect(value: object, kind: Any, what: str) -> None:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    # True is an int to Python, not to a file
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise ValueError(f"{what} must be {names}, got {type(value).__name__}")


def _names(value: object, what: str) -> None:
    _expect(value, list, what)
    assert isinstance(value, list)
    for name in value:
        _expect(name, str, f"each of {what}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice in its header")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"its header must hold finite numbers, got {name}")


def read_header(text: str, version: int) -> dict[str, Any]:
    """The header as an object whose fields have the right types.

    Raises:
        ValueError: it is not JSON, has a name twice, is of another version, or a field has another
            type.
        KeyError: a field is missing.
    """
    header: Any = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    _expect(header, dict, "its header")
    if type(header["version"]) is not int or header["version"] != version:
        raise ValueError(f"its version must be {version}, got {header['version']!r}")
    for field in ("integer", "prepared", "states", "tensors"):
        _expect(header[field], dict, field)
    for field in ("identities", "biased"):
        _names(header[field], field)
    _names(header.get("attentions", []), "attentions")
    _expect(header.get("resized", {}), dict, "resized")
    for name, entry in header.get("resized", {}).items():
        _expect(entry, dict, f"the sizes of {name}")
        for field in ("counts", "shapes"):
            _expect(entry[field], dict, f"{field} of {name}")
    _expect(header.get("floats", {}), dict, "floats")
    for name, dtype in header.get("floats", {}).items():
        if dtype not in FLOATS:
            raise ValueError(f"{name}: dtype must be one of {FLOATS}, got {dtype!r}")
    _check_lowered(header.get("lowered"))
    for name, entry in header["integer"].items():
        _expect(entry, dict, f"the entry of {name}")
        for field, kind in INTEGER_FIELDS.items():
            if field not in entry and field not in LATER:
                raise KeyError(field)
            if field in entry:
                _expect(entry[field], kind, f"{field} of {name}")
        rows = entry.get("rows")
        if rows is not None and not 1 <= rows <= ROWS:
            raise ValueError(f"rows of {name} must be from 1 to {ROWS}, got {rows}")
    for name, entry in header["tensors"].items():
        _expect(entry, dict, f"the entry of {name}")
    return header


def _check_lowered(lowered: Any) -> None:
    """The example's shape and dtype, or null."""
    _expect(lowered, (dict, type(None)), "lowered")
    if lowered is None:
        return
    shape, dtype = lowered["shape"], lowered["dtype"]
    _expect(shape, list, "the example's shape")
    for size in shape:
        _expect(size, int, "each size of the example")
    if dtype not in EXAMPLES:
        raise ValueError(f"the example's dtype must be one of {EXAMPLES}, got {dtype!r}")
    if min(shape, default=1) < 1 or math.prod(shape) > EXAMPLE_ELEMENTS:
        raise ValueError(f"the example must have 1 to {EXAMPLE_ELEMENTS} elements, got {shape}")


def check_identities(model: nn.Module, names: list[str]) -> None:
    """`convert` puts an Identity where a batch norm was, and nowhere else.

    Raises:
        ValueError: another module would go.
    """
    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module, (_BatchNorm, nn.Identity)):
            raise ValueError(f"{name} must be a batch norm, got {type(module).__name__}")


def check_states(model: nn.Module, states: dict[str, Any]) -> None:
    """Values beside the tensors belong to modules that have such.

    Raises:
        ValueError: a name that the model has no value for.
    """
    own = {n for n, value in model.state_dict().items() if not isinstance(value, Tensor)}
    unknown = sorted(states.keys() - own)
    if unknown:
        raise ValueError(f"the model has no {unknown[0]}")


def _bounded(values: Tensor | None, low: float, high: float) -> bool:
    """Whether all values are in [low, high], which a NaN is not."""
    if values is None or not values.numel():
        return True
    least, most = torch.aminmax(values)
    return low <= least.item() and most.item() <= high


def _within(name: str, values: Tensor | None, low: int, high: int) -> None:
    if not _bounded(values, low, high):
        raise ValueError(f"{name} must be in [{low}, {high}]")


def _scales(name: str, values: Tensor | None, least: float) -> None:
    if not _bounded(values, least, torch.finfo(torch.float32).max):
        raise ValueError(f"{name} must be finite and {'positive' if least else 'not negative'}")


@torch.no_grad()
def check_values(model: nn.Module) -> None:
    """Integers are in their schemes' ranges, as kernels take for granted; scales are finite.

    Raises:
        ValueError: a value outside.
    """
    tiny = torch.finfo(torch.float32).smallest_normal * 2**-23
    for name, module in model.named_modules():
        if isinstance(module, SparseQuantLayer):
            spec = module.weight_spec
            low, high = spec.quant_min, spec.quant_max
            _within(f"{name}.weight_values", module.weight_values, low, high)
            _within(f"{name}.weight_zero_point", module.weight_zero_point, low, high)
            _scales(f"{name}.weight_scale", module.weight_scale, 0.0)
            _scales(f"{name}.input_scale", module.input_scale, tiny)
            if module.input_limits is not None:
                _within(f"{name}.input_zero_point", module.input_zero_point, *module.input_limits)
        elif isinstance(module, FakeQuantize):
            spec, zero = module.spec, module.zero_point
            scale = module.scale.abs() if spec.learned else module.scale
            _scales(f"{name}.scale", scale, 0.0 if spec.learned else tiny)
            if zero is not None and not zero.is_floating_point():
                _within(f"{name}.zero_point", zero, spec.quant_min, spec.quant_max)
