"""What a safetensors file holds: sparseq's layers with their schemes, or any tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseq.export.contents import Entry, is_24, plain
from sparseq.flow.encodings import decode
from sparseq.flow.storage import KEY, read_file

KINDS = {2: "Linear", 3: "Conv1d", 4: "Conv2d"}


def _sizes(parts: dict[str, Tensor]) -> dict[str, int]:
    """Bytes by tensor, all of its parts."""
    sizes: dict[str, int] = {}
    for name, part in parts.items():
        whole = name.partition("::")[0]
        sizes[whole] = sizes.get(whole, 0) + part.numel() * part.element_size()
    return sizes


def _values(name: str, header: dict[str, Any], parts: dict[str, Tensor]) -> Tensor:
    entry = header["tensors"].get(name)
    if entry is None:
        return parts[name]
    dtype = getattr(torch, entry["dtype"])
    return decode(name, entry, parts, torch.empty(entry["shape"], dtype=dtype, device="meta"))


def _stored(
    name: str, header: dict[str, Any], parts: dict[str, Tensor], sizes: dict[str, int]
) -> Entry:
    """An integer layer of a converted model."""
    about = header["integer"][name]
    key = f"{name}.weight_values" if name else "weight_values"
    values = _values(key, header, parts).int()
    if about["zero_point"]:  # one a channel, or one a group of neighbours
        points = _values(key.replace("values", "zero_point"), header, parts)
        values = (values.reshape(points.numel(), -1) - points.reshape(-1, 1)).reshape(values.shape)
    nonzero = values.numpy()
    bits, given = about["weight"]["bits"], about["input"]
    return Entry(
        name or "(root)",
        about.get("kind") or KINDS.get(nonzero.ndim, "layer"),
        tuple(nonzero.shape),
        4 if bits <= 4 else 8,
        given["bits"] if given else 32,
        float((nonzero == 0).mean()) if nonzero.size else 0.0,
        is_24(nonzero, 1),
        sizes[key],
        None,
    )


def _plain_tensor(
    key: str, header: dict[str, Any], parts: dict[str, Tensor], sizes: dict[str, int]
) -> Entry | None:
    """A weight that is stored in floats."""
    values = _values(key, header, parts)
    if values.dim() < 2 or not values.is_floating_point():
        return None
    name = key.removesuffix(".weight").removesuffix(".parametrizations.weight.original")
    array = values.float().numpy()
    zeros = float((array == 0).mean()) if array.size else 0.0
    bits = values.element_size() * 8
    kind = KINDS.get(values.dim(), "tensor")
    return Entry(
        name, kind, tuple(array.shape), bits, None, zeros, is_24(array, 1), sizes[key], None
    )


def read(path: Path) -> tuple[tuple[Entry, ...], dict[str, str]]:
    """The weights of a file, and what it says of itself.

    Raises:
        ValueError: it is damaged, or no safetensors file.
    """
    try:
        metadata, parts = read_file(path)
        header = json.loads(metadata[KEY]) if KEY in metadata else {"tensors": {}, "integer": {}}
        sizes = _sizes(parts)
        rows = [_stored(name, header, parts, sizes) for name in header["integer"]]
        done = tuple(f"{name}.weight_" if name else "weight_" for name in header["integer"])
        for key in header["tensors"] or parts:
            if not key.startswith(done):  # their values are counted, their scales are no weights
                found = _plain_tensor(key, header, parts, sizes)
                rows += [found] if found else []
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError, OverflowError) as error:
        detail = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"inspect: {str(path)!r} is not a sound safetensors file: {detail}"
        ) from error
    facts = {"format version": header.get("version")}
    facts["prepared layers"] = len(header.get("prepared", {})) or None
    return tuple(rows), plain(facts)
