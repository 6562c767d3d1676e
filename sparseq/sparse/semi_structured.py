"""2:4 weights to and from torch's semi-structured layout, that of its CUTLASS kernels.

`torch.sparse.SparseSemiStructuredTensorCUTLASS` keeps the values as the canonical form of
`sparseq.ops.sparse24` does, and the indices too but for their order: read as int32 (int8 weights)
or int16 (float16, bfloat16) and permuted as NVIDIA's sparse tensor cores want them. So a
conversion is a copy of the indices, on any device.

torch's other layout, cuSPARSELt's, is made by that closed library, on a GPU, for the GPU at hand:
there is nothing to convert to here. Give `torch.sparse.to_sparse_semi_structured` the dense weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

# dtype of values: (dtype of meta, rows of a block, how many times two lots of eight rows that is)
_LAYOUTS = {
    torch.int8: (torch.int32, 16, 1),
    torch.float16: (torch.int16, 32, 2),
    torch.bfloat16: (torch.int16, 32, 2),
}


def _layout(op: str, name: str, values: Tensor) -> tuple[torch.dtype, int, int]:
    if not isinstance(values, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(values).__name__}")
    if values.dtype not in _LAYOUTS:
        got = str(values.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {name} must be int8, float16 or bfloat16, got {got}")
    meta, rows, halves = _LAYOUTS[values.dtype]
    kept = 8 * meta.itemsize  # values of two elements of meta: those come in pairs
    if values.dim() != 2 or values.shape[0] % rows or values.shape[1] % kept:
        dtype = str(values.dtype).removeprefix("torch.")
        raise ValueError(
            f"{op}: {name} must be [{rows} * n, {kept} * k] for {dtype}, "
            f"got shape {tuple(values.shape)}"
        )
    return meta, rows, halves


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def to_torch_24(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """From the canonical 2:4 form to what torch's CUTLASS kernels read.

    Args:
        values: int8, float16 or bfloat16 `[N, K / 2]`, of `ops.pack_24`. int8: N a multiple of 16,
            K of 64; else both of 32. torch's kernels themselves want K in multiples of 128 (int8)
            or 64.
        indices: uint8 `[N, K / 8]`.

    Returns:
        (packed, meta): values themselves, and int32 `[N, K / 32]` (int8) or int16 `[N, K / 16]`.

    Raises:
        TypeError: a dtype; float32 too, which torch keeps as 1:2.
        ValueError: a shape.

    Reference:
        CUTLASS, reorder_meta in tools/util/include/cutlass/util/host_reorder.h.
    """
    dtype, rows, halves = _layout("to_torch_24", "values", values)
    if not isinstance(indices, Tensor) or indices.dtype != torch.uint8:
        got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"to_torch_24: indices must be uint8, got {got}")
    count, columns = values.shape[0], values.shape[1] // 4
    if indices.shape != (count, columns):
        raise ValueError(
            f"to_torch_24: indices must have shape {(count, columns)}, got {tuple(indices.shape)}"
        )
    meta = indices.contiguous().view(dtype)
    # a row is block * rows + (half * 2 + odd) * 8 + line, a column pair * 2 + right: rows of a
    # block are interleaved, squares of (odd, right) transposed, and pairs of columns come first
    blocks = meta.view(count // rows, halves, 2, 8, meta.shape[1] // 2, 2)
    return values.contiguous(), _copy(blocks.permute(4, 0, 3, 1, 5, 2)).view(meta.shape)


def from_torch_24(packed: Tensor, meta: Tensor) -> tuple[Tensor, Tensor]:
    """From what torch's CUTLASS kernels read to the canonical 2:4 form: inverts `to_torch_24`.

    Args:
        packed: int8, float16 or bfloat16 `[N, K / 2]`: `tensor.packed` of a
            `SparseSemiStructuredTensorCUTLASS`, in the shapes that `to_torch_24` takes.
        meta: `tensor.meta`, int32 `[N, K / 32]` (int8) or int16 `[N, K / 16]`.

    Returns:
        (values, indices) as of `ops.pack_24`; not checked: `ops.unpack_24` does that.

    Raises:
        TypeError: a dtype.
        ValueError: a shape.
    """
    dtype, rows, halves = _layout("from_torch_24", "packed", packed)
    if not isinstance(meta, Tensor) or meta.dtype != dtype:
        got = meta.dtype if isinstance(meta, Tensor) else type(meta).__name__
        wanted, of = (str(d).removeprefix("torch.") for d in (dtype, packed.dtype))
        raise TypeError(f"from_torch_24: meta must be {wanted} for {of}, got {got}")
    count, columns = packed.shape[0], packed.shape[1] // 4 // dtype.itemsize
    if meta.shape != (count, columns):
        raise ValueError(
            f"from_torch_24: meta must have shape {(count, columns)}, got {tuple(meta.shape)}"
        )
    blocks = meta.reshape(columns // 2, count // rows, 8, halves, 2, 2)
    ordered = _copy(blocks.permute(1, 3, 5, 2, 0, 4)).view(count, columns)
    return packed.contiguous(), ordered.view(torch.uint8)


def semi_structured(values: Tensor, indices: Tensor) -> Tensor:
    """A `torch.sparse.SparseSemiStructuredTensorCUTLASS` of the canonical 2:4 form.

    It can be made anywhere, and moved with `.to("cuda")`; its products run on NVIDIA GPUs only.
    torch warns, once a process, that its class is a prototype.

    Args:
        values: as for `to_torch_24`, with K a multiple of 128 (int8) or 64.
        indices: uint8 `[N, K / 8]`.

    Returns:
        The tensor, of shape `[N, K]`.

    Raises:
        TypeError: a dtype.
        ValueError: a shape.
    """
    packed, meta = to_torch_24(values, indices)
    if meta.shape[1] % 4 or not meta.numel():
        raise ValueError(
            f"semi_structured: values must have a multiple of {16 * meta.dtype.itemsize} columns "
            f"and not be empty, got shape {tuple(values.shape)}"
        )
    shape = torch.Size((packed.shape[0], 2 * packed.shape[1]))
    return torch.sparse.SparseSemiStructuredTensorCUTLASS(shape, packed, meta, None, None, None)
