"""How one tensor is stored in a file: the smallest of four encodings. docs/format.md defines them.

plain; sparse (the non-zero values and a bitmap); int4 (two to a byte, weights of at most four
bits); 2:4 (the canonical form of `sparseq.ops.sparse24`, its values packed too where they have at
most four bits). -0 comes back as 0 from sparse and 2:4.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseq import ops
from sparseq.ops.check import FLOATS

SMALL = 64  # fewer elements stay plain: another entry in the header costs more than it saves


def _sizes(tensor: Tensor, int4: bool) -> dict[str, int]:
    """Bytes by encoding, preferred ones first among equals; 2:4 if the tensor should be that."""
    count, width = tensor.numel(), tensor.element_size()
    sizes = {"plain": count * width}
    if count < SMALL:
        return sizes
    nonzeros = int(torch.count_nonzero(tensor))
    if (
        tensor.dim() in (2, 3, 4)
        and tensor.dtype in (torch.int8, *FLOATS)
        and 2 * nonzeros <= count
    ):
        groups = (tensor.shape[1] + 3) // 4
        rows = count // tensor.shape[1]
        values = 2 * groups * rows
        sizes["2:4"] = (values // 2 if int4 else values * width) + rows * ((groups + 1) // 2)
    if int4:
        sizes["int4"] = (count + 1) // 2
    sizes["sparse"] = nonzeros * width + (count + 7) // 8
    return sizes


def _pack_24(tensor: Tensor) -> tuple[Tensor, Tensor]:
    if tensor.dim() != 3:
        return ops.pack_24(tensor)
    values, indices = ops.pack_24(tensor.unsqueeze(2))  # a convolution along one dimension
    return values.squeeze(1), indices.squeeze(1)


def _parts(encoding: str, tensor: Tensor, int4: bool) -> dict[str, Tensor]:
    """The tensors of an encoding by suffix; ValueError if it does not serve."""
    flat = tensor.flatten()
    if encoding == "2:4":
        values, indices = _pack_24(tensor)
        values = ops.pack_int4(values.flatten()) if int4 else values
        return {"::values": values, "::indices": indices}
    if encoding == "sparse":
        nonzero = flat != 0
        bitmap = torch.from_numpy(np.packbits(nonzero.numpy(), bitorder="little"))
        return {"::values": flat[nonzero], "::bitmap": bitmap}
    return {"::int4": ops.pack_int4(flat)} if encoding == "int4" else {"": tensor}


def encode(
    name: str, tensor: Tensor, int4: bool, compress: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One tensor as the parts that hold it, and its entry in the header.

    Args:
        name: of the tensor; its parts are named after it.
        tensor: any.
        int4: whether four bits hold every value.
        compress: False for the plain encoding.
    """
    tensor = tensor.detach().cpu().contiguous()
    entry = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    sizes = _sizes(tensor, int4) if compress else {"plain": tensor.nbytes}
    for encoding in sorted(sizes, key=sizes.__getitem__):
        try:
            parts = _parts(encoding, tensor, int4)
        except ValueError:  # not 2:4
            continue
        bits = {"bits": 4} if encoding == "2:4" and int4 else {}
        named = {name + suffix: part for suffix, part in parts.items()}
        return named, {**entry, "encoding": encoding, **bits}
    raise AssertionError("plain serves every tensor")


def decode(name: str, entry: dict[str, Any], parts: dict[str, Tensor], like: Tensor) -> Tensor:
    """One tensor back.

    Args:
        name: of the tensor.
        entry: its entry in the header.
        parts: all tensors of the file.
        like: of the shape and dtype that the model has room for.

    Raises:
        ValueError: another shape or dtype, or parts that do not make a tensor.
        KeyError: a part is missing.
    """
    dtype = str(like.dtype).removeprefix("torch.")
    if entry.get("dtype") != dtype or entry.get("shape") != list(like.shape):
        raise ValueError(
            f"{name} must be {dtype} {list(like.shape)}, "
            f"got {entry.get('dtype')} {entry.get('shape')}"
        )
    encoding, count = entry.get("encoding"), like.numel()
    if encoding == "2:4":
        tensor = _from_24(name, entry.get("bits"), parts, like)
    elif encoding == "sparse":
        tensor = _from_sparse(name, parts, count)
    elif encoding == "int4":
        tensor = ops.unpack_int4(parts[f"{name}::int4"], count, like.dtype == torch.int8)
    elif encoding == "plain":
        tensor = parts[name]
    else:
        raise ValueError(
            f"{name}: the encoding must be plain, sparse, int4 or 2:4, got {encoding!r}"
        )
    if tensor.dtype != like.dtype or tensor.numel() != count:
        raise ValueError(f"{name} must hold {count} values of {dtype}")
    return tensor.reshape(like.shape)


def _from_24(name: str, bits: object, parts: dict[str, Tensor], like: Tensor) -> Tensor:
    values, indices = parts[f"{name}::values"], parts[f"{name}::indices"]
    if like.dim() not in (2, 3, 4) or bits not in (None, 4):
        raise ValueError(f"{name}: 2:4 must have 2 to 4 dimensions, and bits that are 4 or absent")
    rows, columns = (like.shape[0], *like.shape[2:]), like.shape[1]
    shape = (*rows, 2 * ((columns + 3) // 4))
    if bits == 4:
        values = ops.unpack_int4(values, math.prod(shape), like.dtype == torch.int8).reshape(shape)
    if values.shape != shape:
        raise ValueError(f"{name}: the values must be {shape}, got {tuple(values.shape)}")
    try:
        if like.dim() == 3:  # a convolution along one dimension
            values, indices = values.unsqueeze(1), indices.unsqueeze(1)
            return ops.unpack_24(values, indices, columns).squeeze(2)
        return ops.unpack_24(values, indices, columns)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _from_sparse(name: str, parts: dict[str, Tensor], count: int) -> Tensor:
    values, bitmap = parts[f"{name}::values"], parts[f"{name}::bitmap"]
    if bitmap.dtype != torch.uint8 or bitmap.numel() != (count + 7) // 8:
        raise ValueError(f"{name}: the bitmap must have {(count + 7) // 8} bytes")
    kept = torch.from_numpy(np.unpackbits(bitmap.numpy(), bitorder="little")).bool()
    if bool(kept[count:].any()) or int(kept.sum()) != values.numel():
        raise ValueError(f"{name}: the bitmap must mark {values.numel()} values")
    return torch.zeros(count, dtype=values.dtype).masked_scatter_(kept[:count], values)
