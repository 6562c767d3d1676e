"""The Python fences of README and docs run, each page's in order, in one namespace."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
PAGES = {
    path: FENCE.findall(path.read_text())
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
LEFT = {  # what a page's last fences write
    "README.md": "fast.onnx",
    "export.md": "model.aoti.pt2",
    "lesson.md": "best.onnx",
    "start.md": "fast.onnx",
}


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")
@pytest.mark.filterwarnings(
    "ignore:torch.quantize_per_tensor, torch.quantize_per_channel:UserWarning"
)
@pytest.mark.parametrize("page", [p for p, fences in PAGES.items() if fences], ids=lambda p: p.name)
def test_fences_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for number, fence in enumerate(PAGES[page]):
        exec(compile(fence, f"{page.name}, fence {number + 1}", "exec"), namespace)
    assert page.name not in LEFT or (tmp_path / LEFT[page.name]).is_file()


def test_pages_have_fences() -> None:
    counts = {page.name: len(fences) for page, fences in PAGES.items()}
    assert counts["README.md"] >= 5 and counts["export.md"] >= 5 and counts["lesson.md"] >= 30
    assert [page for page, count in counts.items() if not count] == []
