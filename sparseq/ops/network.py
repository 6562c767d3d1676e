"""Whole networks in one call: a program of instructions, see `sparseq.program`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseq.ops.check_network import check_network
from sparseq.ops.check_program import parse_program
from sparseq.program import Program, tensor_shape

_ops = torch.ops.sparseq


def network(
    program: Program | str, constants: Sequence[Tensor], inputs: Sequence[Tensor]
) -> list[Tensor]:
    """Run a program: `v[k] = stored(act(op(v[i], ...)))` for each of its instructions.

    `sparseq.program` defines every instruction. Values between instructions are float32, or uint8
    on a grid, `q = clamp(rne(y / scale) + zero_point, low, high)`; sums of integers are exact, and
    every other step is one float32 operation in a fixed order, so that the result has the same
    bits on every ISA and with any number of threads. None of it has a gradient.

    A module that has checked its program once calls `torch.ops.sparseq.network` itself, with the
    program's JSON: that skips the checks here.

    Args:
        program: a `sparseq.program.Program`, or its JSON.
        constants: what the instructions number: weights int8 `[O, I / groups, kh, kw]`, their
            tiles uint8 (`int8_tiles(weight, groups)`), and float32 `[C]` for all others.
        inputs: float32, one for each form in `program.inputs`: image `[N, C, H, W]`, pixels
            `[N, H, W, C]`, rows `[N, L, C]`, vector `[N, C]`; any strides, channels innermost
            (channels_last) is the fastest.

    Returns:
        float32 tensors in the forms of `program.outputs`; images are channels_last, others
        contiguous.

    Raises:
        TypeError: a program, tensor or dtype of another type.
        ValueError: a program that is not well-formed, a shape that an instruction cannot take, or
            too few constants or inputs.

    Reference:
        Jacob et al. 2018, section 2.4 (one rescaling from the sum to the next layer's integers).
    """
    if not torch.compiler.is_compiling():  # where the fake kernel checks
        check_network(parse_program(program), constants, inputs)
    text = program if isinstance(program, str) else program.to_json()
    return _ops.network(text, list(constants), list(inputs))


@torch.library.register_fake("sparseq::network")
def _(program, constants, inputs):  # type: ignore[no-untyped-def]
    parsed = parse_program(program)
    found = check_network(parsed, constants, inputs)
    results = []
    for value, form in parsed.outputs:
        y = inputs[0].new_empty(tensor_shape(form, found[value]))
        image = form == "image"
        results.append(torch.empty_like(y, memory_format=torch.channels_last) if image else y)
    return results


# An input that requires a gradient passes through without one, and without autograd's warning.
_autograd = torch.library.Library("sparseq", "IMPL")
_autograd.impl("network", torch.library.fallthrough_kernel, "Autograd")
