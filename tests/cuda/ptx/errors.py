"""What the interpreter raises."""

from __future__ import annotations


class PtxError(Exception):
    """A fault of the PTX or the launch; says which kernel, thread, PTX line and source line."""
