"""The packages that only export needs, imported on first use."""

from __future__ import annotations

import importlib
from typing import Any


def require(name: str) -> Any:
    """Import onnx, onnxscript, onnxruntime or a part of them.

    Raises:
        ModuleNotFoundError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise ModuleNotFoundError(
            f"sparseq.export needs the package {package}: pip install 'sparseq[export]'"
        ) from error
