"""What the commands are given, as text: a network, its inputs, sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.bench.files import find_architecture

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
BATCHES, BATCH = 4, 8  # how many random inputs stand in where no data is named


def architecture(name: str, arguments: Iterable[str]) -> Callable[[], nn.Module]:
    """What makes a float network.

    Args:
        name: "module:callable", such as "torchvision.models:resnet18", or the name of a network of
            torchvision or timm.
        arguments: "key=value" each for the callable; a value is JSON, else text.

    Raises:
        ValueError: the module, the callable or an argument does not serve.
    """
    keywords: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"argument: must be KEY=VALUE, got {argument!r}")
        try:
            keywords[key] = json.loads(value)
        except ValueError:
            keywords[key] = value
    made = find_architecture("sparseq", name, keywords)
    assert made is not None
    return made


def network(name: str, arguments: Iterable[str]) -> nn.Module:
    """Build the float network that a saved file belongs to, in evaluation mode.

    Args:
        name: see `architecture`.
        arguments: see `architecture`.

    Raises:
        ValueError: the module, the callable or an argument does not serve.
    """
    made = architecture(name, arguments)
    try:
        model = made()
    except TypeError as error:
        raise ValueError(f"model: {name} does not take these arguments: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: {name} must make an nn.Module, got {type(model).__name__}")
    return model.eval()


def shape(text: str) -> tuple[int, ...]:
    """Whole numbers, "3,224,224" or "3x224x224".

    Raises:
        ValueError: anything else.
    """
    if not re.fullmatch(r"[1-9]\d*([x,][1-9]\d*)*", text):
        raise ValueError(f"shape: must be sizes without the batch, such as 3,224,224, got {text!r}")
    return tuple(int(size) for size in re.split("[x,]", text))


def size(text: str) -> int:
    """Bytes: a number with K, M or G behind it, powers of 1024.

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise ValueError(f"size: must be a number of bytes such as 512M or 2G, got {text!r}")
    return int(float(match[1]) * UNITS[match[2]])


def inputs(sizes: str | None, data: str | None) -> Iterator[Tensor]:
    """Batches for a model: the test images of a data set, or random ones of a shape.

    Args:
        sizes: see `shape`; random normal numbers, the same in every run.
        data: see `sparseq.run.data.load`; its test images, normalised.

    Raises:
        ValueError: neither or both are given, or what is given does not serve.
    """
    if (sizes is None) == (data is None):
        raise ValueError("give either --shape or --data")
    if data is not None:
        from sparseq.run.data import load

        return (images for images, _ in load(data).test_batches())
    assert sizes is not None
    each = shape(sizes)
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(BATCH, *each, generator=generator) for _ in range(BATCHES))
