"""Images and labels for the exercise: scikit-learn's digits, CIFAR-10, arrays, image files."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseq.run.image_folder import read_folder

__all__ = ["ARRAYS", "Dataset", "load"]

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_EXPECTED = f"an .npz file with the arrays {', '.join(ARRAYS)}"


@dataclass(frozen=True, repr=False, eq=False)
class Dataset:
    """Labelled images, kept as they came (uint8 or float32); batches are normalised on the way.

    Attributes:
        name: what reports call it.
        x_train: training images, ``(N, C, H, W)``, uint8 or float32.
        y_train: their classes, ``(N,)``, int64.
        x_test: test images, ``(M, C, H, W)``, of the same kind.
        y_test: their classes, ``(M,)``, int64.
        classes: number of classes.
        pad: augmentation shifts a training image by up to this many pixels each way.
        flip: augmentation mirrors half of the training images.
        mean: of the training images by channel, ``(1, C, 1, 1)``, float32.
        std: likewise.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    pad: int
    flip: bool
    mean: Tensor
    std: Tensor

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.x_train.shape[1]

    @property
    def example(self) -> Tensor:
        """One normalised test image, ``(1, C, H, W)``, float32."""
        return self.normalise(self.x_test[:1])

    def normalise(self, images: Tensor) -> Tensor:
        """Return ``(images - mean) / std`` per channel, statistics of the training images.

        Args:
            images: ``(N, C, H, W)``, uint8 or float32.

        Returns:
            float32 of the same shape, in channels-last memory: what CPU convolutions like best.
        """
        out = (images.float() - self.mean) / self.std
        return out.contiguous(memory_format=torch.channels_last)

    def train_batches(
        self, size: int, generator: torch.Generator, rank: int = 0, ranks: int = 1
    ) -> Iterator[Any]:
        """Yield one epoch of shuffled, augmented, normalised ``(images, labels)``.

        Args:
            size: images in a batch; a shorter rest is left out of this epoch, unless it is all.
            generator: source of every random choice; equal on all ranks.
            rank: which part of each batch, from 0.
            ranks: in how many parts the batches are split.
        """
        count = len(self.x_train)
        order = torch.randperm(count, generator=generator)
        for start in range(0, max(count - size, 0) + 1, size):
            index = order[start : start + size]
            mine = slice(rank, None, ranks)
            images = self._augment(self.x_train[index], generator)[mine]
            yield self.normalise(images), self.y_train[index[mine]]

    def test_batches(self, size: int = 256, rank: int = 0, ranks: int = 1) -> Iterator[Any]:
        """Yield the normalised test ``(images, labels)`` in order; of several ranks, a part."""
        for start in range(rank * size, len(self.x_test), ranks * size):
            stop = start + size
            yield self.normalise(self.x_test[start:stop]), self.y_test[start:stop]

    def steps(self, size: int) -> int:
        """Return the number of batches that :meth:`train_batches` yields."""
        return max(len(self.x_train) // size, 1)

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        rows = torch.arange(height).expand(count, height)
        columns = torch.arange(width).expand(count, width)
        if self.flip:
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        if self.pad:
            shift = torch.randint(2 * self.pad + 1, (2, count, 1), generator=generator)
            rows, columns = rows + shift[0], columns + shift[1]
            images = F.pad(images, (self.pad,) * 4)
        # One gather crops and mirrors the whole batch, each image by its own offsets.
        chosen = torch.arange(count)[:, None, None]
        return images.permute(0, 2, 3, 1)[chosen, rows[:, :, None], columns[:, None, :]].permute(
            0, 3, 1, 2
        )


def load(source: str, root: str | os.PathLike[str] = "data", *, image_size: int = 32) -> Dataset:
    """Load a data set by name, from a file or from a folder.

    Args:
        source: ``"digits"`` (1,797 real 8x8 digits that scikit-learn ships), ``"cifar10"``
            (torchvision's, downloaded on first use), the path of an .npz file with the arrays
            x_train, x_test: images ``(N, H, W, C)`` or ``(N, H, W)``, uint8 or floating point,
            and y_train, y_test: classes ``(N,)``, integers from 0; or a folder of images,
            train/CLASS/*.png and test/CLASS/*.png (val/ serves, too).
        root: folder for downloads.
        image_size: a folder's images become squares of so many pixels.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        ValueError: the source is unknown, or the file is damaged or its arrays are not as above.
        OSError: a download failed.
    """
    if source == "digits":
        return _digits()
    if source == "cifar10":
        return _cifar10(root)
    if Path(source).is_dir():
        return _from_arrays(Path(source).name, read_folder(Path(source), image_size), source)
    if not source.endswith(".npz"):
        raise ValueError(
            f"data: must be digits, cifar10, a folder of images, or {_EXPECTED}, got {source!r}"
        )
    return _from_arrays(Path(source).stem, _read(Path(source)), source)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1).astype("float32")
    parts = train_test_split(images, labels, test_size=500, random_state=0, stratify=labels)
    arrays = dict(zip(("x_train", "x_test", "y_train", "y_test"), parts, strict=True))
    return _from_arrays("digits", arrays, "scikit-learn's digits")


def _cifar10(root: str | os.PathLike[str]) -> Dataset:
    from torchvision.datasets import CIFAR10

    try:
        train, test = (CIFAR10(root, train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:  # torchvision reports a bad checksum as RuntimeError
        raise OSError(f"data: CIFAR-10 could not be downloaded to {root}: {error}") from error
    arrays = {"x_train": train.data, "y_train": train.targets}
    arrays |= {"x_test": test.data, "y_test": test.targets}
    return _from_arrays("cifar10", arrays, "torchvision's CIFAR-10")


def _read(path: Path) -> dict[str, Any]:
    import numpy as np

    if not path.is_file():
        raise FileNotFoundError(f"data: {path} is not a file; expected {_EXPECTED}")
    try:
        with path.open("rb") as file:  # np.load leaves a damaged file open if it opens it itself
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            missing = [name for name in ARRAYS if name not in archive.files]
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}; it has {archive.files}")
            return {name: archive[name] for name in ARRAYS}
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"data: {path} is not {_EXPECTED}: {error}") from error


def _from_arrays(name: str, arrays: Mapping[str, Any], origin: str) -> Dataset:
    tensors: dict[str, Tensor] = {}
    for part in ("train", "test"):
        images = _images(arrays[f"x_{part}"], f"{origin}: x_{part}")
        labels = _labels(arrays[f"y_{part}"], len(images), f"{origin}: y_{part}")
        tensors |= {f"x_{part}": images, f"y_{part}": labels}
    train, test = tensors["x_train"], tensors["x_test"]
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise ValueError(
            f"data: {origin}: x_test must hold the same kind of images as x_train, "
            f"{train.dtype} (C, H, W) = {tuple(train.shape[1:])}, "
            f"got {test.dtype} {tuple(test.shape[1:])}"
        )
    classes = int(tensors["y_train"].max()) + 1
    if classes < 2 or int(tensors["y_test"].max()) >= classes:
        raise ValueError(
            f"data: {origin}: y_train must name at least two classes and all that y_test names, "
            f"got classes up to {classes - 1} and {int(tensors['y_test'].max())}"
        )
    std, mean = torch.std_mean(train.float(), dim=(0, 2, 3), keepdim=True, correction=0)
    # Photographs are mirrored and shifted by 4 of 32 pixels as is usual; small glyphs are not
    # mirrored, a digit would become another sign.
    photographs = train.shape[1] == 3
    pad = train.shape[2] // 8
    std = std.clamp_min(1e-6)
    return Dataset(name, **tensors, classes=classes, pad=pad, flip=photographs, mean=mean, std=std)


def _images(array: Any, where: str) -> Tensor:
    import numpy as np

    array = np.asarray(array)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(f"data: {where} must be uint8 or floating point, got {array.dtype}")
    shape = array.shape
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4) or array.size == 0:
        raise ValueError(
            f"data: {where} must have shape (N, H, W) or (N, H, W, C) with C = 1, 3 or 4 "
            f"and at least one image, got {shape}"
        )
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError(f"data: {where} must be finite, got NaN or infinity")
    return torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2)


def _labels(array: Any, count: int, where: str) -> Tensor:
    import numpy as np

    array = np.asarray(array)
    if array.dtype.kind not in "iu":
        raise ValueError(f"data: {where} must be integers, got {array.dtype}")
    if array.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"data: {where} must have shape ({count},), one class per image, got {array.shape}"
        )
    labels = torch.from_numpy(array.reshape(-1).astype(np.int64))
    if int(labels.min()) < 0:
        raise ValueError(f"data: {where} must be >= 0, got {int(labels.min())}")
    return labels
