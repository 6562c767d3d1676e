"""Fixtures that build a simulated GPU: see simulated.Gpu."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from simulated import Gpu

ROOT = Path(__file__).parents[2]
Build = Callable[..., Gpu]


@pytest.fixture(scope="session")
def nvcc() -> None:
    """Skips where there is no compiler for the kernels."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH to compile the kernels with")


@pytest.fixture(scope="session")
def build_gpu(nvcc: None, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compiles .cu and .cpp files, named from the repository's root, into a Gpu of their own."""

    def build(*sources: str, flags: Sequence[str] = ()) -> Gpu:
        folder = tmp_path_factory.mktemp(Path(sources[0]).stem)
        return Gpu(folder, [ROOT / source for source in sources], flags)

    return build


@pytest.fixture
def whole_file(request: pytest.FixtureRequest) -> None:
    """Skips where only some tests of the file run: they cannot cover every line."""
    config = request.config
    some = any("::" in argument for argument in config.args)
    options = ("keyword", "markexpr", "deselect", "lf")
    if some or any(config.getoption(option, None) for option in options):
        pytest.skip("only the whole file runs every line")
