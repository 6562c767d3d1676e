"""The site builds strictly, works without a network, and its reference has every public name."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [path.stem for path in (ROOT / "docs/api").glob("*.md") if path.stem != "index"]
LOADED = re.compile(r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = {page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")}
    built = {page.relative_to(site) for page in site.rglob("*.html")}
    assert {page.with_suffix(".html") for page in pages} == built - {Path("404.html")}


def test_formulas_are_mathml(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        fences = re.findall(r"^```math\n(.*?)^```", page.read_text(), re.M | re.S)
        lines = sum(1 + fence.count("\\\\\n") for fence in fences)
        text = (site / page.name).with_suffix(".html").read_text()
        assert text.count("<math ") == lines, page.name
        assert "<merror" not in text


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert LOADED.findall(page.read_text()) == [], page.name


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(site: Path, package: str) -> None:
    module = importlib.import_module(f"sparseq.{package}")
    found = set(re.findall(r'id="sparseq\.([\w.]+)"', (site / f"api/{package}.html").read_text()))
    names = [n for n in getattr(module, "__all__", ()) if callable(getattr(module, n))]
    # a function may have its module's name: sparseq.sparse.score.score
    missing = [n for n in names if not {f"{package}.{n}", f"{package}.{n}.{n}"} & found]
    assert missing == []


def test_the_flow_is_in_the_reference(site: Path) -> None:
    text = (site / "api/index.html").read_text()
    names = importlib.import_module("sparseq.flow").__all__
    assert [n for n in names if not re.search(rf'id="sparseq\.flow\.\w+\.{n}"', text)] == []


def test_packages_have_pages() -> None:
    left = {"batches", "bench", "cli", "flow", "reference", "run", "testing"}
    folders = {path.parent.name for path in (ROOT / "sparseq").glob("*/__init__.py")}
    assert folders - left <= set(PACKAGES)
