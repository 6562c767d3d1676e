"""A folder of image files, a subfolder for each class, as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["read_folder"]

_LAYOUT = "train/CLASS/*.png and test/CLASS/*.png"


def read_folder(folder: Path, size: int) -> dict[str, Any]:
    """Read torchvision's ImageFolder layout, once for training and once for the test.

    Args:
        folder: holds train/ and test/ (or val/), each with a subfolder of images for each class.
        size: images are scaled so that their shorter side has so many pixels, and cut to a square
            around their middle.

    Returns:
        x_train, x_test: ``(N, size, size, 3)``, uint8; y_train, y_test: ``(N,)``, the classes in
        alphabetical order.

    Raises:
        ValueError: a part is missing or empty, the classes of the two differ, or a file is no
            image: names it.
    """
    names = {"train": "train", "test": "test" if (folder / "test").is_dir() else "val"}
    parts = {part: _Part(folder / name) for part, name in names.items()}
    classes = parts["train"].classes
    if parts["test"].classes != classes:
        raise ValueError(
            f"data: {folder / names['test']} must hold the classes of {folder / 'train'}: "
            f"{', '.join(classes)}; got {', '.join(parts['test'].classes)}"
        )
    arrays: dict[str, Any] = {}
    for name, part in parts.items():
        arrays[f"x_{name}"], arrays[f"y_{name}"] = part.arrays(size)
    return arrays


class _Part:
    """The images of train/ or of test/."""

    def __init__(self, folder: Path) -> None:
        from torchvision.datasets import ImageFolder

        if not folder.is_dir():
            raise ValueError(
                f"data: {folder.parent} must hold {_LAYOUT}; there is no folder {folder.name}"
            )
        try:
            found = ImageFolder(folder)
        except FileNotFoundError as error:  # no class, or one without images
            raise ValueError(f"data: {folder} must hold CLASS/*.png: {error}") from error
        self.classes: list[str] = found.classes
        self.files: list[tuple[str, int]] = found.samples

    def arrays(self, size: int) -> tuple[Any, Any]:
        """Images and classes."""
        import numpy as np
        from PIL import Image, ImageOps

        images = np.empty((len(self.files), size, size, 3), np.uint8)
        for image, (path, _) in zip(images, self.files, strict=True):
            try:
                with Image.open(path) as file:
                    fitted = ImageOps.fit(file.convert("RGB"), (size, size))
            except (OSError, SyntaxError, ValueError) as error:  # PIL raises all of these
                raise ValueError(f"data: {path} must be an image: {error}") from error
            image[:] = np.asarray(fitted)
        return images, np.array([label for _, label in self.files], np.int64)
