"""What a fake-quantised layer keeps for the backward pass: its input once, not twice.

A convolution saves the fake-quantised y for its weight's gradient, the fake-quantiser the x that it
was made from. y is computed from x again where it is wanted, one pass over memory, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseq.ops.training import is_fake_quantize, repeated

# which of its inputs an autograd node saves, and as what
_SAVED = {
    "ConvolutionBackward0": (0, "_raw_saved_input"),
    "AddmmBackward0": (1, "_raw_saved_mat1"),
    "MmBackward0": (0, "_raw_saved_self"),
}
_VIEWS = ("ViewBackward0", "ReshapeAliasBackward0", "UnsafeViewBackward0")


def forget_input(y: Any, output: Any) -> None:
    """Free y, a layer's fake-quantised input, until the backward pass; output is the layer's.

    Nothing happens where y is not what the layer saved (under autocast it saves a copy), where
    other hooks have the saved tensors (checkpointing, offloading) or where nothing is recorded.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return
    if not (isinstance(y, Tensor) and isinstance(output, Tensor)):
        return
    made, node = y.grad_fn, _under_views(output.grad_fn)
    if made is None or node is None or not is_fake_quantize(made):
        return
    place, name = _SAVED.get(node.name(), (0, ""))
    if not name or _under_views(node.next_functions[place][0]) is not made:
        return
    start, dtype, numel = y.data_ptr(), y.dtype, y.numel()  # not y itself: it is to be freed

    def pack(saved: Tensor) -> Any:
        if saved.data_ptr() != start or saved.dtype != dtype or saved.numel() != numel:
            return saved
        return saved.size(), saved.stride()

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return repeated(made).as_strided(*kept)

    try:
        getattr(node, name).register_hooks(pack, unpack)
    except RuntimeError:
        return  # it saved nothing (the weight is not trained), or others have it in their hands


def _under_views(node: Any) -> Any:
    """The node behind what only changes shapes."""
    while node is not None and node.name() in _VIEWS:
        node = node.next_functions[0][0]
    return node
