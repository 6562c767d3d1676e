"""What a model holds: bytes, zeros, and how often it is right."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sparseq.bench.inputs import evaluating
from sparseq.flow.storage import save
from sparseq.nn import SparseQuantEmbedding, SparseQuantLayer

_WEIGHED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Size:
    """What a model takes, in bytes; `print` shows it.

    Attributes:
        parameters: elements of its parameters.
        parameter_bytes: their memory, shared ones once.
        buffer_bytes: that of its buffers: the weights of converted layers, and what was packed from
            them for this CPU.
        file_bytes: of the file that `sparseq.save` writes.
    """

    parameters: int
    parameter_bytes: int
    buffer_bytes: int
    file_bytes: int

    @property
    def memory_bytes(self) -> int:
        """Of parameters and buffers."""
        return self.parameter_bytes + self.buffer_bytes

    def __str__(self) -> str:
        """Megabytes (10^6 bytes)."""
        return (
            f"parameters {self.parameter_bytes / 1e6:.3f} MB ({self.parameters:,}), buffers "
            f"{self.buffer_bytes / 1e6:.3f} MB, file {self.file_bytes / 1e6:.3f} MB"
        )


def model_size(model: nn.Module) -> Size:
    """Measure what a model's tensors take in memory and in a file.

    Args:
        model: float, prepared or converted.

    Returns:
        The sizes.
    """

    def taken(tensors: Iterable[Tensor]) -> int:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    return Size(
        sum(parameter.numel() for parameter in model.parameters()),
        taken(model.parameters()),
        taken(model.buffers()),
        file_bytes(model),
    )


def file_bytes(model: nn.Module) -> int:
    """Size of the file that `sparseq.save` writes, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(model, path)
        return path.stat().st_size


def size_mb(path: str | os.PathLike[str]) -> float:
    """Return the size of a file in megabytes (10^6 bytes).

    Raises:
        FileNotFoundError: there is no such file.
    """
    return Path(path).stat().st_size / 1e6


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the share of images whose largest logit is their label's, in percent.

    Args:
        model: maps inputs to logits ``(N, classes)``; its mode is put back afterwards.
        batches: pairs of inputs and labels ``(N,)``.

    Returns:
        Top-1 accuracy, 0 to 100.

    Raises:
        ValueError: there is no image.
    """
    right = total = 0
    with evaluating(model), torch.no_grad():
        for inputs, labels in batches:
            right += int((model(inputs).argmax(dim=1) == labels).sum())
            total += len(labels)
    if total == 0:
        raise ValueError("accuracy: batches must hold at least one image, got none")
    return 100.0 * right / total


def sparsity(model: nn.Module) -> float:
    """Return the share of exact zeros among the weights of all linear and convolution layers.

    Of a prepared layer the weight as it computes with counts, masked and rounded; of a converted
    one the stored integers, where they stand for zero. Biases and norms do not count.

    Args:
        model: float, prepared or converted.

    Returns:
        The share, 0 to 1.

    Raises:
        ValueError: there is no such layer.
    """
    zeros = total = 0
    with evaluating(model), torch.no_grad():
        for module in model.modules():
            if isinstance(module, SparseQuantEmbedding):
                continue  # a table, as a float one is
            if isinstance(module, SparseQuantLayer):
                weight = module.packed().dequantize()
            elif isinstance(module, _WEIGHED):
                weight = module.weight
            else:
                continue
            zeros += int((weight == 0).sum())
            total += weight.numel()
    if total == 0:
        raise ValueError("sparsity: model must have a linear or convolution layer, got none")
    return zeros / total
