"""Linear layers on INT4 and on 2:4 float weights: defined."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseq.reference.affine import unpack_int4


def int4_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    signed: bool = True,
) -> Tensor:
    """`y = x @ w.T + bias` with `w = (q - zero_point) * scale` in float32, as `dequantize`'s."""
    columns = x.shape[-1]
    q = unpack_int4(packed, columns, signed).float()
    size = columns // scale.shape[1]
    if zero_point is not None:
        q = q - zero_point.float().repeat_interleave(size, 1)
    weight = q * scale.repeat_interleave(size, 1)
    return _linear(x, x.double() @ weight.double().T, bias)


def linear_24(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, tiles: Tensor | None = None
) -> Tensor:
    """`y[m, n] = sum_i values[n, i] * x[m, column(n, i)] + bias[n]`, x with zeros past its end."""
    kept = values.shape[1]
    pairs = torch.stack([indices >> shift & 3 for shift in (0, 2, 4, 6)], -1).flatten(1)[:, :kept]
    columns = pairs.long() + torch.arange(kept, device=x.device) // 2 * 4
    padded = torch.nn.functional.pad(x, (0, 2 * kept - x.shape[-1])).double()
    return _linear(x, torch.einsum("...nk,nk->...n", padded[..., columns], values.double()), bias)


def _linear(x: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
    return (y if bias is None else y + bias).to(x.dtype)
