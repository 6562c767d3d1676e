"""Fixtures that build a simulated GPU, see simulated.Gpu, and that guard tests of line coverage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pytest
from simulated import Gpu

ROOT = Path(__file__).parents[2]
Build = Callable[..., Gpu]
DESELECTED = pytest.StashKey[set[Path]]()


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


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Remembers files of which only some tests will run."""
    for item in items:
        item.config.stash.setdefault(DESELECTED, set()).add(item.path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asks whether a whole folder ran comes after all of it."""
    items.sort(key=lambda item: "whole_folder" in getattr(item, "fixturenames", ()))


def _skip_unless_whole(request: pytest.FixtureRequest, files: Collection[Path]) -> None:
    some = any("::" in argument for argument in request.config.args)
    deselected = request.config.stash.get(DESELECTED, set())
    run = {item.path for item in request.session.items}
    if some or any(file in deselected or file not in run for file in files):
        names = " and ".join(sorted(file.name for file in files))
        pytest.skip(f"only all tests of {names} together run every line")


@pytest.fixture
def whole_file(request: pytest.FixtureRequest) -> None:
    """Skips where only some tests of the file run: they cannot cover every line."""
    _skip_unless_whole(request, [request.path])


@pytest.fixture
def whole_folder(request: pytest.FixtureRequest) -> None:
    """Skips where only some tests of the file's folder run; puts the test after all others."""
    _skip_unless_whole(request, list(request.path.parent.glob("test_*.py")))
