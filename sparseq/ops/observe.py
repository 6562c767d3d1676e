"""What observers count: histograms of values, per tensor, channel or group."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseq.ops.check import (
    check_float,
    check_grouping,
    check_scale_shape,
    check_tensor,
    values_visible,
)

_ops = torch.ops.sparseq
_MOST_BINS = 65536
_LEAST_LIMIT = 2.0**-126  # the least normal float32


def histogram(
    x: Tensor,
    limit: Tensor | float,
    bins: int,
    axis: int | None = None,
    group_size: int | None = None,
) -> Tensor:
    """Count values in bins of equal width over `[-limit, limit)`, in one pass.

        counts[c, i] = how many x of channel c have
                       clamp(floor(x / limit_c * h) + h, 0, bins - 1) = i

    with `h = bins / 2`. The first and the last bin also count what lies beyond the limit,
    infinities among it; NaN is not counted. Limits are powers of two, so that every value falls
    exactly where the formula says, and twice as great a limit joins bins in pairs.

    Args:
        x: float32, float16 or bfloat16, any shape and strides; may be empty.
        limit: float32, powers of two from 2**-126 to 2**127: one element (axis None), `[C]` (axis),
            or one per group, as the scale of `quantize`.
        bins: a power of two from 2 to 65536.
        axis: as for `quantize`.
        group_size: as for `quantize`.

    Returns:
        int64 `[*limit.shape, bins]`. No gradient.

    Raises:
        ValueError: bins, a shape, an axis or group_size that does not fit, or a limit that is not
            such a power of two (looked at on the CPU only).
        TypeError: a dtype, or an x that is not a tensor.
    """
    check_tensor("histogram", "x", x)
    check_float("histogram", "x", x.dtype)
    check_grouping("histogram", x, axis, group_size)
    if not isinstance(bins, int):
        raise TypeError(f"histogram: bins must be an int, got {type(bins).__name__}")
    if not 2 <= bins <= _MOST_BINS or bins & (bins - 1):
        raise ValueError(
            f"histogram: bins must be a power of two from 2 to {_MOST_BINS}, got {bins}"
        )
    if not isinstance(limit, Tensor):
        if not isinstance(limit, (int, float)):
            raise TypeError(
                f"histogram: limit must be a tensor or a number, got {type(limit).__name__}"
            )
        limit = torch.tensor(limit, dtype=torch.float32, device=x.device)
    if limit.dtype != torch.float32:
        name = str(limit.dtype).removeprefix("torch.")
        raise TypeError(f"histogram: limit must be float32, got {name}")
    check_scale_shape("histogram", "limit", limit, x, axis, group_size)
    if values_visible(limit):
        _check_limit(limit.detach())
    return _ops.histogram(x.detach(), limit.detach(), bins, axis, group_size)


def _check_limit(limit: Tensor) -> None:
    mantissa, _ = torch.frexp(limit)  # 0.5 for a power of two, whatever else for the rest
    bad = limit[(mantissa != 0.5) | (limit < _LEAST_LIMIT)]
    if bad.numel():
        raise ValueError(
            "histogram: limit must be powers of two from 2**-126 to 2**127, "
            f"got {float(bad.flatten()[0])}"
        )


@torch.library.register_fake("sparseq::histogram")
def _(x, limit, bins, axis, group_size):  # type: ignore[no-untyped-def]
    return limit.new_empty((*limit.shape, bins), dtype=torch.int64)
