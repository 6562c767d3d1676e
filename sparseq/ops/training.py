"""fake_quantize, alone and together with minmax, and their gradients. The scheme: affine.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseq.ops.check import arranged_like, check_affine, check_not_empty
from sparseq.reference import scale_shape

_ops = torch.ops.sparseq


def fake_quantize(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int | None,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    group_size: int | None = None,
    *,
    grad_factor: float = 1.0,
) -> Tensor:
    """Quantise and dequantise in one pass: `(clamp(rne(x/scale) + z, qmin, qmax) - z) * scale`.

    Equal to `dequantize(quantize(x))` bit for bit. Gradients, computed from x in one pass:
    straight-through for x (`grad` inside the range, 0 outside); where scale or zero_point require
    one, `dy/dscale = v - x/scale` inside and `clamp(v)` outside with `v = rne(x/scale)`, and
    `dy/dzero_point = -scale` outside, 0 inside. A float zero_point is rounded and clamped first.

    Args:
        x: float32, float16 or bfloat16.
        scale: as for `quantize`; may require grad.
        zero_point: int32 or None as for `quantize`, or float32 (learned), which may require grad.
        quant_min: as for `quantize`.
        quant_max: as for `quantize`.
        axis: as for `quantize`.
        group_size: as for `quantize`.
        grad_factor: multiplies the gradients of scale and zero_point; LSQ uses
            `1 / sqrt(numel * quant_max)`.

    Returns:
        x's dtype, shape and strides.

    Raises:
        ValueError: a shape, a range, or a scale that is not positive and finite.
        TypeError: a dtype.

    Reference:
        Jacob et al. 2018 (fake quantisation); Bengio et al. 2013 (straight-through); LSQ, Esser et
        al. 2020, eq. 1-3; LSQ+, Bhalgat et al. 2020, eq. 3-4.
    """
    scale, zero_point = check_affine(
        "fake_quantize", x, scale, zero_point, quant_min, quant_max, axis, group_size
    )
    return _ops.fake_quantize(
        x, scale, zero_point, quant_min, quant_max, axis, group_size, grad_factor
    )


def fake_quantize_observed(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int | None,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    group_size: int | None = None,
    *,
    grad_factor: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """`fake_quantize(x)` and `minmax(x)` in one pass over x: what training needs of an observer.

    Both are the two ops' results bit for bit; y has fake_quantize's gradients, low and high none.

    Args:
        x: float32, float16 or bfloat16, not empty.
        scale: as for `fake_quantize`.
        zero_point: as for `fake_quantize`.
        quant_min: as for `quantize`.
        quant_max: as for `quantize`.
        axis: as for `quantize`.
        group_size: as for `quantize`.
        grad_factor: as for `fake_quantize`.

    Returns:
        (y, low, high): y as `fake_quantize` gives it; least and greatest value of x, float32,
        shaped as the matching scale, NaN where x holds a NaN.

    Raises:
        ValueError: an empty x, a shape, a range, or a scale that is not positive and finite.
        TypeError: a dtype.
    """
    scale, zero_point = check_affine(
        "fake_quantize_observed", x, scale, zero_point, quant_min, quant_max, axis, group_size
    )
    check_not_empty("fake_quantize_observed", x)
    y, low, high = _ops.fake_quantize_observed(
        x, scale, zero_point, quant_min, quant_max, axis, group_size, grad_factor
    )
    return y, low, high


def is_fake_quantize(node: Any) -> bool:
    """Whether a node of autograd's graph is one of fake_quantize or fake_quantize_observed."""
    return hasattr(node, "sparseq_grid")


def repeated(node: Any) -> Tensor:
    """The y of such a node, computed again from what it saved."""
    x, scale, zero_point = node.saved_tensors
    return _ops.fake_quantize(x, scale, zero_point, *node.sparseq_grid, node.grad_factor)


# --- fake kernels (shapes, dtypes, strides) ---


@torch.library.register_fake("sparseq::fake_quantize")
def _(x, scale, zero_point, quant_min, quant_max, axis, group_size, grad_factor):  # type: ignore[no-untyped-def]
    return arranged_like(x, group_size, x.dtype)


@torch.library.register_fake("sparseq::fake_quantize_observed")
def _(x, scale, zero_point, quant_min, quant_max, axis, group_size, grad_factor):  # type: ignore[no-untyped-def]
    shape = scale_shape(x.shape, axis, group_size)
    low, high = (x.new_empty(shape, dtype=torch.float32) for _ in range(2))
    return arranged_like(x, group_size, x.dtype), low, high


@torch.library.register_fake("sparseq::fake_quantize_backward")
def _(grad, x, scale, zero_point, quant_min, quant_max, axis, group_size):  # type: ignore[no-untyped-def]
    return arranged_like(x, group_size, x.dtype)


@torch.library.register_fake("sparseq::fake_quantize_learned_backward")
def _(grad, x, scale, zero_point, quant_min, quant_max, axis, group_size, grad_factor):  # type: ignore[no-untyped-def]
    per_channel = [scale.new_empty(scale.shape) for _ in range(2)]
    return arranged_like(x, group_size, x.dtype), *per_channel


# --- autograd ---


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, scale, zero_point, *ctx.sparseq_grid, ctx.grad_factor = inputs
    ctx.save_for_backward(x, scale, zero_point)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, zero_point = ctx.saved_tensors
    nothing = (None,) * 5
    if any(ctx.needs_input_grad[1:3]):
        grad_x, grad_scale, grad_zero = _ops.fake_quantize_learned_backward(
            grad, x, scale, zero_point, *ctx.sparseq_grid, ctx.grad_factor
        )
        return (
            grad_x,
            grad_scale if ctx.needs_input_grad[1] else None,
            grad_zero.reshape(zero_point.shape) if ctx.needs_input_grad[2] else None,
            *nothing,
        )
    return (
        _ops.fake_quantize_backward(grad, x, scale, zero_point, *ctx.sparseq_grid),
        None,
        None,
        *nothing,
    )


torch.library.register_autograd("sparseq::fake_quantize", _backward, setup_context=_save)


def _save_observed(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _save(ctx, inputs, output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros made for the range


def _backward_observed(
    ctx: Any, grad: Tensor | None, _low: object, _high: object
) -> tuple[Tensor | None, ...]:
    return (None,) * 8 if grad is None else _backward(ctx, grad)


torch.library.register_autograd(
    "sparseq::fake_quantize_observed", _backward_observed, setup_context=_save_observed
)
