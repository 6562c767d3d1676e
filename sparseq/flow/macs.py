"""Multiplications of a run: of convolutions and matrix products, float or integer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from sparseq.modes import evaluating
from sparseq.program import Program, shapes


def convolution_macs(source: Tensor, weight: Tensor, transposed: bool, result: Tensor) -> int:
    """Each element of the result (of the input, where transposed) takes a row of the weight."""
    spread = source if transposed else result
    return spread.numel() // spread.shape[1] * weight.numel()


def product_macs(first: Tensor, result: Tensor) -> int:
    """`[..., M, K]` times `[..., K, N]`: M N K each."""
    return result.numel() * first.shape[-1]


def _convolution(args: Any, result: Tensor) -> int:
    return convolution_macs(args[0], args[1], args[6], result)


def _first(args: Any, result: Tensor) -> int:
    return product_macs(args[0], result)


def _second(args: Any, result: Tensor) -> int:
    return product_macs(args[1], result)


def _integer_convolution(args: Any, result: Tensor) -> int:
    return result.numel() // max(1, result.shape[1]) * args[1].numel()


def _network(args: Any, result: list[Tensor]) -> int:
    """A pixel of a convolution's result takes the whole weight, of attention's each key twice."""
    program, constants = Program.from_json(args[0]), [c.shape for c in args[1]]
    found = shapes(program, [x.shape for x in args[2]], constants)
    total = 0
    for i, shape in zip(program.instructions, found[len(program.inputs) :], strict=True):
        if i.op == "conv":
            total += math.prod(shape[:3]) * math.prod(constants[i.constants[0]])
        if i.op == "attention":
            total += 2 * math.prod(shape) * math.prod(found[i.inputs[1]][1:3])
    return total


COUNTED: dict[str, Callable[[Any, Any], int]] = {
    "aten::convolution": _convolution,
    "aten::mm": _first,
    "aten::bmm": _first,
    "aten::mv": _first,
    "aten::dot": _first,
    "aten::addmm": _second,
    "aten::baddbmm": _second,
    "aten::addmv": _second,
    "sparseq::int8_linear": _first,
    "sparseq::int4_linear": _first,
    "sparseq::linear_24": _first,
    "sparseq::int8_conv2d": _integer_convolution,
    "sparseq::network": _network,
}
# ops of sparseq that multiply nothing with a weight
FREE = {"quantize", "dequantize", "fake_quantize", "fake_quantize_backward",
        "fake_quantize_observed", "minmax", "histogram", "pack_int4", "unpack_int4", "int8_tiles",
        "tiles_24", "mask_24", "pack_24", "unpack_24"}  # fmt: skip


class Counter(TorchDispatchMode):
    """Counts while a model runs.

    Attributes:
        total: multiplications so far.
        unknown: names of ops whose multiplications nobody told.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.unknown: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the function and count."""
        result = function(*args, **(kwargs or {}))
        name = function._schema.name
        rule = COUNTED.get(name)
        if rule is not None:
            self.total += rule(args, result)
        elif name.startswith("sparseq::") and name.removeprefix("sparseq::") not in FREE:
            self.unknown.add(name)
        return result


def count_macs(run: Callable[[], Any], model: nn.Module) -> int | None:
    """Multiplications of one run of a model in evaluation mode, zeros of the weights included.

    Args:
        run: calls the model.
        model: it gets back the modes it was in.

    Returns:
        The count, of convolutions and matrix products; None where an op does not tell.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    counter = Counter()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # one opaque function otherwise
        with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return None if counter.unknown else counter.total
