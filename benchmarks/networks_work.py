"""The networks of networks.py, with random weights, and the inputs that they are timed on.

Their functions leave batch norms as they are with settle=False: for whoever loads a state anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import minilm
import torch
import torchvision
from torch import Tensor, nn

from sparseq.run import models

IMAGE, TINY, TOKENS = (3, 224, 224), (3, 32, 32), 128


def settled(model: nn.Module, shape: tuple[int, ...], settle: bool) -> nn.Module:
    """Batch norms with the mean and variance of what a few random images make."""
    generator = torch.Generator().manual_seed(1)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all passes
        norm.reset_running_stats()
    model.train(settle)
    with torch.no_grad():
        for _ in range(3 if settle else 0):
            model(torch.randn(4, *shape, generator=generator))
    return model.eval().requires_grad_(False)


def _torchvision(name: str, settle: bool) -> nn.Module:
    torch.manual_seed(0)
    return settled(getattr(torchvision.models, name)(weights=None), IMAGE, settle)


def resnet18(settle: bool = True) -> nn.Module:
    return _torchvision("resnet18", settle)


def resnet50(settle: bool = True) -> nn.Module:
    return _torchvision("resnet50", settle)


def mobilenet_v2(settle: bool = True) -> nn.Module:
    return _torchvision("mobilenet_v2", settle)


def resnet18_cifar(settle: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return settled(models.build("resnet18", 3, 10), TINY, settle)


def small(settle: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return settled(models.build("small", 3, 10, student=True), (3, 16, 16), settle)


def encoder(settle: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return minilm.Encoder().eval().requires_grad_(False)


def small_encoder(settle: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = minilm.Encoder(width=32, heads=2, depth=1, inner=64, vocabulary=100)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Work:
    """A network and the inputs that it is timed on."""

    title: str
    build: Callable[[], nn.Module]  # a function of this module: other processes import it
    shape: tuple[int, ...]  # of one input
    batch: int = 1
    vocabulary: int = 0  # of tokens; 0 for images

    def inputs(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (self.batch, *self.shape)
        if self.vocabulary:
            return torch.randint(self.vocabulary, shape, generator=generator)
        return torch.randn(shape, generator=generator)


WORKS = {
    "resnet18": Work("ResNet-18, 224 x 224, batch 1", resnet18, IMAGE),
    "resnet18-cifar-1": Work("ResNet-18 for CIFAR, 32 x 32, batch 1", resnet18_cifar, TINY),
    "resnet18-cifar-32": Work("ResNet-18 for CIFAR, 32 x 32, batch 32", resnet18_cifar, TINY, 32),
    "resnet50": Work("ResNet-50, 224 x 224, batch 1", resnet50, IMAGE),
    "mobilenet_v2": Work("MobileNetV2, 224 x 224, batch 1", mobilenet_v2, IMAGE),
    "minilm": Work(
        "MiniLM-class encoder, 128 tokens", encoder, (TOKENS,), vocabulary=minilm.VOCABULARY
    ),
}
SMOKE = {
    "small": Work("small ResNet, 16 x 16, batch 2", small, (3, 16, 16), 2),
    "small encoder": Work("small encoder, 8 tokens", small_encoder, (8,), vocabulary=100),
}
