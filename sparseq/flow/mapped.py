"""Tensors that stay in the file they were read from: mapped, only what is used is in memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparseq.nn import SparseQuantLayer

LEAST = 1 << 16  # bytes: smaller tensors are copied
MAPS = Path("/proc/self/maps")


def fill(model: nn.Module, state: Mapping[str, Any], mapped: Collection[str]) -> None:
    """``model.load_state_dict(state)``, in which the named tensors are not copied but put in place.

    Copied are also tensors that are small, of another device, dtype or layout than the model's, or
    of modules that do something of their own on load. Parameters stay the same objects.

    Args:
        model: whose state dict it is.
        state: all of its state.
        mapped: names of tensors of `state` whose memory the model may take.
    """
    placed = set()
    for owner, module in model.named_modules(remove_duplicate=False):
        if not _usual(module):
            continue
        for name, held in (*module._parameters.items(), *module._buffers.items()):
            key = f"{owner}.{name}".lstrip(".")
            if held is not None and key in mapped and _replaces(held, state[key]):
                held.data = state[key]
                placed.add(key)
    rest = {key: value for key, value in state.items() if key not in placed}
    missing, unexpected = model.load_state_dict(rest, strict=False)
    missing = [key for key in missing if key not in placed]
    if missing or unexpected:
        raise RuntimeError(f"the model has {missing}, which the state lacks, and no {unexpected}")


def _usual(module: nn.Module) -> bool:
    """Whether loading fills a module's tensors and no more."""
    own = type(module)._load_from_state_dict
    usual = own in (nn.Module._load_from_state_dict, SparseQuantLayer._load_from_state_dict)
    return usual and not module._load_state_dict_pre_hooks


def _replaces(held: Tensor, value: Tensor) -> bool:
    return (
        type(held) in (Tensor, nn.Parameter)
        and held.device == value.device
        and held.dtype == value.dtype
        and held.shape == value.shape
        and held.is_contiguous()
        and value.is_contiguous()
        and value.nbytes >= LEAST
    )


def leave_in_file(path: str | os.PathLike[str], tensors: Iterable[Tensor]) -> None:
    """Take tensors that were mapped and never written out of memory: reads bring them back.

    By small pages: where embeddings look up rows, huge ones would bring it all. Only what is a
    private mapping of the file is touched, and only where the system tells.

    Args:
        path: of the file.
        tensors: just read from it.
    """
    advices = [getattr(mmap, name, None) for name in ("MADV_NOHUGEPAGE", "MADV_DONTNEED")]
    if not MAPS.exists() or None in advices:
        return
    ranges = _mapped_ranges(os.stat(path))
    library = ctypes.CDLL(None)
    for tensor in tensors:
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - begin
        if size > 0 and any(low <= begin and begin + size <= high for low, high in ranges):
            for advice in advices:
                library.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), advice)


def _mapped_ranges(file: os.stat_result) -> list[tuple[int, int]]:
    """Addresses of this process' private mappings of a file; neighbours, of other flags, as one."""
    found: list[tuple[int, int]] = []
    for line in MAPS.read_text().splitlines():
        span, flags, _, device, inode, *_ = line.split()
        major, minor = (int(part, 16) for part in device.split(":"))
        same = (int(inode), os.makedev(major, minor)) == (file.st_ino, file.st_dev)
        if same and flags.endswith("p"):
            low, high = (int(part, 16) for part in span.split("-"))
            if found and found[-1][1] == low:
                low, _ = found.pop()
            found.append((low, high))
    return found
