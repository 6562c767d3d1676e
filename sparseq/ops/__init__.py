"""The ops: checked wrappers over `torch.ops.sparseq`, with fake kernels and autograd."""

import torch

import sparseq._C  # registers the ops
from sparseq.ops.affine import (
    dequantize,
    minmax,
    pack_int4,
    quantize,
    unpack_int4,
)
from sparseq.ops.gemm import int8_conv2d, int8_linear, int8_tiles, tile_kind
from sparseq.ops.network import network
from sparseq.ops.observe import histogram
from sparseq.ops.sparse24 import mask_24, pack_24, unpack_24
from sparseq.ops.training import fake_quantize, fake_quantize_observed
from sparseq.ops.weight_only import int4_linear, linear_24, tiles_24

__all__ = [
    "dequantize",
    "empty_cache",
    "fake_quantize",
    "fake_quantize_observed",
    "histogram",
    "int4_linear",
    "int8_conv2d",
    "int8_linear",
    "int8_tiles",
    "kernels",
    "linear_24",
    "mask_24",
    "minmax",
    "network",
    "pack_24",
    "pack_int4",
    "quantize",
    "tile_kind",
    "tiles_24",
    "unpack_24",
    "unpack_int4",
]


def empty_cache() -> None:
    """Give back to the system what is kept of freed CPU memory.

    Outputs of 4 MiB and more, and the arenas of programs, reuse it: up to SPARSEQ_RECYCLE_MB (256).
    """
    sparseq._C.empty_cache()


def kernels() -> dict[str, list[str]]:
    """Every op and the devices this build has a kernel for: `{"minmax": ["CPU", "CUDA"]}`."""
    return {
        name.removeprefix("sparseq::"): [
            key
            for key in ("CPU", "CUDA")
            if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
        ]
        for name in sorted(torch._C._dispatch_get_all_op_names())
        if name.startswith("sparseq::")
    }
