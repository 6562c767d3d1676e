"""Every op in plain torch: its definition, and the oracle its kernels are tested against.

Slow and plain on purpose. Shapes and dtypes are as documented in `sparseq.ops`; nothing is checked
here.
"""

from sparseq.reference.affine import (
    dequantize,
    expand_channels,
    fake_quantize,
    fake_quantize_backward,
    fake_quantize_learned_backward,
    fake_quantize_observed,
    histogram,
    minmax,
    pack_int4,
    quantize,
    scale_shape,
    unpack_int4,
)
from sparseq.reference.gemm import int8_conv2d, int8_linear, row_grid
from sparseq.reference.network import layer_norm, network
from sparseq.reference.sparse24 import mask_24, pack_24, unpack_24
from sparseq.reference.weight_only import int4_linear, linear_24

__all__ = [
    "dequantize",
    "expand_channels",
    "fake_quantize",
    "fake_quantize_backward",
    "fake_quantize_learned_backward",
    "fake_quantize_observed",
    "histogram",
    "int4_linear",
    "int8_conv2d",
    "int8_linear",
    "layer_norm",
    "linear_24",
    "mask_24",
    "minmax",
    "network",
    "pack_24",
    "pack_int4",
    "quantize",
    "row_grid",
    "scale_shape",
    "unpack_24",
    "unpack_int4",
]
