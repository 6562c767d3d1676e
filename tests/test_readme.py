"""The README's Python fences run, in order, in one namespace."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_fences_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fences = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    assert len(fences) >= 5
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for number, fence in enumerate(fences):
        exec(compile(fence, f"README.md, fence {number + 1}", "exec"), namespace)
    assert (tmp_path / "fast.onnx").is_file()
