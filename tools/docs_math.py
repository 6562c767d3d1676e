"""MkDocs hook: fences of `math` become MathML, which browsers show without scripts or network.

GitHub renders the same fences, so a formula is written once, in LaTeX.
"""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from pymdownx.superfences import SuperFencesException


def formula(source: str, *_: Any, **__: Any) -> str:
    r"""A fence's LaTeX, one formula a line that ends in `\\`, as a block of MathML.

    Raises:
        SuperFencesException: the LaTeX cannot be read; any other error would leave it as text.
    """
    try:
        lines = [convert(line, display="block") for line in source.split("\\\\\n")]
    except Exception as error:
        raise SuperFencesException(f"math: {error!r} in {source!r}") from error
    return f'<div class="formula">{"".join(lines)}</div>'


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Hand `math` fences to `formula`."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    fences.setdefault("custom_fences", []).append(
        {"name": "math", "class": "math", "format": formula}
    )
    return config
