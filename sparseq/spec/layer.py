"""What happens to one layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparseq.spec.check import check
from sparseq.spec.quant import Quant
from sparseq.spec.sparsity import NM, Block, Sparsity, Unstructured

DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Layer:
    """What happens to one layer: quantisation of weight and input, sparsity, or another float type.

    A field that is None leaves that part of the layer as it is.

    Args:
        weight: the weight's scheme.
        input: the input's scheme, per tensor.
        sparsity: which of its weights become zero.
        dtype: "float16", "bfloat16" or "float32": the layer computes in that type, on input,
            weight and bias rounded to it, and its result gets the type that the input came in.
            Excludes weight and input.

    Raises:
        ValueError: a field of another type, an input scheme that is not per tensor, or dtype
            together with a quantisation.
    """

    weight: Quant | None = None
    input: Quant | None = None
    sparsity: Sparsity | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        """Check the types of the fields."""
        for name in ("weight", "input"):
            value = getattr(self, name)
            check(
                value is None or isinstance(value, Quant), "Layer", name, "a Quant or None", value
            )
        check(
            self.weight is None or not self.weight.dynamic,
            "Layer",
            "weight",
            "without dynamic=True (its grid follows it anyway)",
            self.weight,
        )
        check(
            self.sparsity is None or isinstance(self.sparsity, Sparsity),
            "Layer",
            "sparsity",
            "NM, Unstructured, Block or None",
            self.sparsity,
        )
        check(
            self.input is None or (self.input.axis is None and self.input.group_size is None),
            "Layer",
            "input",
            "per tensor (axis and group_size None)",
            self.input,
        )
        known = self.dtype is None or (isinstance(self.dtype, str) and self.dtype in DTYPES)
        check(known, "Layer", "dtype", f"one of {DTYPES} or None", self.dtype)
        check(
            self.dtype is None or (self.weight is None and self.input is None),
            "Layer",
            "dtype",
            "None where weight or input is quantised",
            self.dtype,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the inverse of `from_dict`."""
        result: dict[str, Any] = {}
        for name in ("weight", "input"):
            value = getattr(self, name)
            if value is not None:
                result[name] = {"type": "Quant", **dataclasses.asdict(value)}
        if self.sparsity is not None:
            result["sparsity"] = {"type": type(self.sparsity).__name__, **self.sparsity.said()}
        if self.dtype is not None:
            result["dtype"] = self.dtype
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layer:
        """Build a Layer from `to_dict`'s result; ValueError on anything unknown."""
        types = {"Quant": Quant, "NM": NM, "Unstructured": Unstructured, "Block": Block}
        fields: dict[str, Any] = {}
        check(isinstance(values, Mapping), "Layer", "values", "an object", values)
        for name, value in values.items():
            if name == "dtype":
                check(value is not None, "Layer", name, f"one of {DTYPES}", value)
                fields[name] = value
                continue
            check(name in ("weight", "input", "sparsity"), "Layer", "field", "a known name", name)
            check(
                isinstance(value, Mapping) and value.get("type") in list(types),
                "Layer",
                name,
                f"an object with type one of {sorted(types)}",
                value,
            )
            arguments = {key: item for key, item in value.items() if key != "type"}
            try:
                fields[name] = types[value["type"]](**arguments)
            except TypeError as error:
                raise ValueError(f"Layer: {name}: {error}") from None
        return cls(**fields)
