"""Layers that compute in a float type of their own: `Layer(dtype="float16")`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparseq.quant import Cast

# what says whether oneDNN has kernels of a type for this CPU; without them torch emulates it
_NATIVE = {
    torch.float16: "_is_mkldnn_fp16_supported",
    torch.bfloat16: "_is_mkldnn_bf16_supported",
}


def own_dtype(layer: nn.Module) -> torch.dtype | None:
    """The type that the plan gave a layer, or None."""
    return getattr(layer, "sparseq_dtype", None)


def casts(layer: nn.Module) -> list[Cast]:
    """The casts on a prepared layer's weight and bias."""
    return [module for module in layer.modules() if isinstance(module, Cast)]


def _enter(layer: nn.Module, args: Any, kwargs: Any) -> Any:
    x: Tensor = args[0] if args else kwargs["input"]
    layer.sparseq_dims = x.dim()  # type: ignore[assignment]  # for batch_norms
    if not x.is_floating_point():  # an embedding's indices
        return args, kwargs
    layer.sparseq_incoming = x.dtype  # type: ignore[assignment]
    # a model that was moved to another type as a whole has taken its stored weights along
    stored = not parametrize.is_parametrized(layer)
    x = x.to(layer.weight.dtype if stored else layer.sparseq_dtype)  # type: ignore[arg-type]
    return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "input": x})


def _leave(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.to(layer.sparseq_incoming)  # type: ignore[arg-type]


def _hang_hooks(layer: nn.Module, dtype: torch.dtype) -> None:
    if own_dtype(layer) is None:
        layer.register_forward_pre_hook(_enter, with_kwargs=True)
        layer.register_forward_hook(_leave)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        layer.sparseq_incoming = weight.dtype  # type: ignore[assignment]
    layer.sparseq_dtype = dtype  # type: ignore[assignment]


def attach_dtype(layer: nn.Module, name: str) -> None:
    """Make a layer compute in a type: casts on weight and bias, on what goes in and comes out.

    The parameters stay as they are, so that an optimizer works on them at full precision.
    """
    dtype: torch.dtype = getattr(torch, name)
    _hang_hooks(layer, dtype)
    for cast in casts(layer):
        cast.dtype = dtype
    for part in ("weight", "bias"):
        held = getattr(layer, "parametrizations", {})
        there = part in held and any(isinstance(t, Cast) for t in held[part])
        if getattr(layer, part, None) is not None and not there:
            parametrize.register_parametrization(layer, part, Cast(dtype), unsafe=True)


def lift(layer: nn.Module) -> None:
    """Let the parameters of a prepared layer through unrounded, for `convert` to fold into."""
    for cast in casts(layer):
        cast.enabled = False


def store(name: str, layer: nn.Module, dtype: torch.dtype) -> None:
    """Keep a plain layer's parameters in a type, rounded once.

    Raises:
        ValueError: a finite value that the type cannot hold.
    """
    for part in ("weight", "bias"):
        value: Tensor | None = getattr(layer, part, None)
        if value is None:
            continue
        value = value.detach()
        rounded = value.to(dtype)
        if not torch.equal(rounded.isfinite(), value.isfinite()):
            raise ValueError(
                f"convert: {name}: {part} must be at most {torch.finfo(dtype).max:g} for "
                f"{str(dtype).removeprefix('torch.')}, got {float(value.abs().max()):g}"
            )
        setattr(layer, part, nn.Parameter(rounded))


def restore(layer: nn.Module, dtype: torch.dtype) -> None:
    """Make a float layer what `convert` made of its like: for `load`, which fills it."""
    _hang_hooks(layer, dtype)
    for part in ("weight", "bias"):
        value: Tensor | None = getattr(layer, part, None)
        if value is not None:
            setattr(layer, part, nn.Parameter(value.detach().to(dtype)))


def emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch has no kernels of this type for this CPU: it converts or loops, slowly."""
    if device.type != "cpu" or dtype not in _NATIVE:
        return False
    supported = getattr(torch.ops.mkldnn, _NATIVE[dtype], None)
    return supported is not None and not supported()
