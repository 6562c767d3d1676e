"""Executes the PTX that nvcc emits, on NumPy, all threads of a grid at once.

    module = Module(text)
    device = Device()
    x, y = device.upload(array), device.allocate(array.nbytes)
    Launch(device, module, "kernel", (blocks,), (256,), [x, y, array.size]).run()
    result = device.download(y, array.dtype, array.shape)

Out-of-bounds, misaligned, uninitialised and racy accesses, divergent barriers and instructions that
are not modelled are PtxErrors with the PTX and source line. What a device may do in any order is
done in one order, lockstep, or in one that a seed picks. Not modelled: clusters, mbarriers, TMA,
wgmma, textures, module-level .global and .const variables, calls, and ordering between blocks
(fences are accepted and order nothing). Approximate instructions (ex2, rcp.approx, ...) give the
correctly rounded result.
"""

from __future__ import annotations

from . import (  # noqa: F401  (importing them fills the table of instructions)
    arithmetic,
    atomics,
    bits,
    collectives,
    comparison,
    control,
    conversions,
    copies,
    data,
    floats,
    matrices,
    tensor_cores,
)
from .errors import PtxError
from .launch import Launch
from .memory import Device
from .parse import Module

__all__ = ["Device", "Launch", "Module", "PtxError"]
