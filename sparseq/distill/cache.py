"""A teacher's logits in a file: expensive teachers answer once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from sparseq.distill.logits import wide
from sparseq.distill.taps import answers_of, run, unwrapped
from sparseq.files import atomic_path
from sparseq.modes import evaluating

KEY = "sparseq_distill"
VERSION = 1
DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
_HEADER = 1024  # bytes kept free for it, until the number of samples is known


class CachedLogits:
    """A teacher's logits by sample id, read from a file that stays on disk (memory-mapped).

    Goes where :class:`Loss` takes a teacher; the loss is called with ``ids=``. What is cached is
    the teacher's answer to the inputs that `write` was given: train on those, without random
    augmentation, or under an id for each augmented sample. In a distributed run let one rank write.

    Args:
        path: of a file that `write` made.
        teacher: whose logits they must be: the module, or its :func:`digest`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is of another teacher, or of one trained since; or it is no such file.
    """

    def __init__(self, path: str | os.PathLike[str], teacher: nn.Module | str) -> None:
        from safetensors import SafetensorError, safe_open

        if not os.path.isfile(path):
            raise FileNotFoundError(f"CachedLogits: path must name a file, got {str(path)!r}")
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads(file.metadata()[KEY])
                self._logits, self._ids = file.get_tensor("logits"), file.get_tensor("ids")
            if header["version"] != VERSION:
                raise ValueError(f"its version must be {VERSION}, got {header['version']!r}")
            held = header["digest"]
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            detail = f"missing {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"CachedLogits: {str(path)!r} must be a file of cached logits: {detail}"
            ) from error
        wanted = teacher if isinstance(teacher, str) else digest(teacher)
        if held != wanted:
            raise ValueError(
                f"CachedLogits: {str(path)!r} must hold this teacher's logits, got those of "
                f"another state (digest {str(held)[:12]}..., not {wanted[:12]}...): write it anew"
            )
        self.path, self.digest = os.fspath(path), wanted
        self._ids, self._order = self._ids.sort()

    @classmethod
    @torch.no_grad()
    def write(
        cls,
        path: str | os.PathLike[str],
        teacher: nn.Module,
        batches: Iterable[tuple[Tensor, Any]],
        dtype: torch.dtype = torch.float16,
    ) -> CachedLogits:
        """Run a teacher over all samples and keep its logits, batch by batch, on disk.

        Args:
            path: written aside and renamed; its folder must exist.
            teacher: module from inputs to logits ``(N, classes)``; run in evaluation mode, then in
                the mode it was in.
            batches: of ``(ids, inputs)``: ids ``(N,)``, integers, each once.
            dtype: of the file: float16, bfloat16 or float32.

        Returns:
            The cache, opened.

        Raises:
            ValueError: no batch, an id that comes twice, shapes that do not fit, or logits that
                are not finite in this dtype.
            TypeError: another dtype, or ids that are not integers.
        """
        if dtype not in DTYPES:
            raise TypeError(
                f"CachedLogits: dtype must be float16, bfloat16 or float32, got {dtype}"
            )
        ids: list[Tensor] = []
        classes = 0
        with evaluating(teacher), atomic_path(path) as temporary, open(temporary, "wb") as file:
            file.write(b" " * _HEADER)
            for keys, inputs in batches:
                ids.append(_checked_ids(keys))
                logits = answers_of(run(teacher, inputs)).cpu()
                classes = classes or logits.shape[-1]
                if logits.shape != (len(keys), classes):
                    raise ValueError(
                        f"CachedLogits: the teacher's logits must have shape "
                        f"{(len(keys), classes)}, got {tuple(logits.shape)}"
                    )
                _append(file, logits, dtype)
            _finish(file, ids, classes, dtype, digest(teacher))
        return cls(path, teacher)

    def __len__(self) -> int:
        """How many samples it holds."""
        return len(self._ids)

    def __call__(self, ids: Tensor) -> Tensor:
        """The logits of some samples.

        Args:
            ids: ``(N,)``, integers, any order, repeats allowed.

        Returns:
            float32 ``(N, classes)``, on the CPU.

        Raises:
            ValueError: an id that is not in the file.
            TypeError: ids that are not integers.
        """
        ids = _checked_ids(ids)
        places = torch.searchsorted(self._ids, ids).clamp_max(len(self._ids) - 1)
        unknown = ids[self._ids[places] != ids]
        if unknown.numel():
            raise ValueError(f"CachedLogits: ids must be in {self.path!r}, got {int(unknown[0])}")
        return wide(self._logits[self._order[places]])


@torch.no_grad()
def digest(teacher: nn.Module) -> str:
    """SHA-256 of a network's state: names, types and values of all that it computes with.

    DistributedDataParallel and torch.compile around it make no difference.

    Args:
        teacher: any network, on any device.

    Returns:
        64 hexadecimal digits.
    """
    network = unwrapped(teacher)
    state: dict[str, Any] = {**dict(network.named_buffers()), **network.state_dict()}
    found = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, Tensor):  # an extra state
            found.update(f"{name} {value!r}".encode())
            continue
        value = value.detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(_bytes(value))
    return found.hexdigest()


def _bytes(x: Tensor) -> Any:
    return x.reshape(-1).view(torch.uint8).numpy().data


def _checked_ids(ids: Tensor) -> Tensor:
    integers = isinstance(ids, Tensor) and not (ids.is_floating_point() or ids.is_complex())
    if not integers or ids.dtype == torch.bool or ids.dim() != 1:
        got = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"CachedLogits: ids must be a tensor of integers (N,), got {got}")
    return ids.detach().to("cpu", torch.int64)


def _append(file: BinaryIO, logits: Tensor, dtype: torch.dtype) -> None:
    stored = logits.to(dtype).contiguous()
    if not bool(stored.isfinite().all()):
        raise ValueError(
            f"CachedLogits: the teacher's logits must be finite in {dtype}, got values up to "
            f"{logits.float().abs().max().item():g}"
        )
    file.write(_bytes(stored))


def _finish(
    file: BinaryIO, ids: list[Tensor], classes: int, dtype: torch.dtype, state: str
) -> None:
    """Write the ids behind the logits, then the header of safetensors into the space before."""
    if not ids or not classes:
        raise ValueError("CachedLogits: batches must hold at least one sample, got none")
    every = torch.cat(ids)
    values, counts = every.unique(return_counts=True)
    if len(values) < len(every):
        twice = int(values[counts > 1][0])
        raise ValueError(f"CachedLogits: ids must come once each, got {twice} more than once")
    padding = -file.tell() % every.itemsize  # so that the ids are aligned
    end = file.tell() - _HEADER
    if padding:  # safetensors allows no gap: it is part of a tensor of its own
        file.write(b"\0" * padding)
    file.write(_bytes(every))
    header: dict[str, Any] = {
        "__metadata__": {KEY: json.dumps({"version": VERSION, "digest": state})},
        "logits": _entry(DTYPES[dtype], [len(every), classes], 0, end),
    }
    if padding:
        header["padding"] = _entry("U8", [padding], end, end + padding)
    end += padding
    header["ids"] = _entry("I64", [len(every)], end, end + every.numel() * every.itemsize)
    text = json.dumps(header).encode()
    size = _HEADER - 8
    assert len(text) <= size
    file.seek(0)
    file.write(size.to_bytes(8, "little") + text.ljust(size))


def _entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
