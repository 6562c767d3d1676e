import dataclasses
import io
import json

import pytest
from rich.console import Console

from sparseq.run import chart, report
from sparseq.run.deploy import Deployment
from sparseq.run.exercise import VARIANTS, Row, Settings, choose_best


def row(name, accuracy, milliseconds, megabytes=1.0):
    return Row(
        name=name,
        accuracy=accuracy,
        drop=99.0 - accuracy,
        ms_per_image=milliseconds,
        p95_ms=milliseconds,
        p99_ms=milliseconds,
        speedup=2.0 / milliseconds,
        size_mb=megabytes,
        sparsity=80.0,
        parameters=123_456,
        threads=2,
    )


@pytest.fixture
def results():
    rows = [
        row("baseline", 99.0, 2.0, 2.8),
        row("Q", 98.8, 1.0, 0.7),
        row("P", 98.8, 1.9, 0.7),
        row("D", 98.0, 0.51, 0.3),
        row("Q+P", 98.7, 1.0, 0.3),
        row("Q+D", 98.0, 0.5, 0.1),
        row("P+D", 98.0, 0.5, 0.1),
        row("Q+P+D", 96.5, 0.4, 0.05),
    ]
    best = Deployment("Q+D", "best.onnx", 0.1, 0.05, True, "Verified.", "fc  int8")
    return report.Results(
        "digits", Settings(), rows, {"baseline: train": [0.5]}, best, 2.0, {"cpu": "some"}, 3.0
    )


def test_best_is_the_fastest_within_the_limit(results):
    assert choose_best(list(results.rows)).name == "Q+D"
    assert choose_best(list(results.rows), limit=3).name == "Q+P+D"
    assert choose_best([row("baseline", 99, 2.0), row("Q", 97.0, 1.0)]).name == "baseline"


def test_files(tmp_path, results):
    paths = report.write(results, tmp_path / "new" / "out")
    folder = tmp_path / "new" / "out"
    assert sorted(folder.iterdir()) == sorted(paths)
    assert {path.name for path in paths} == {"report.md", "results.json", "tradeoff.png"}
    content = json.loads((folder / "results.json").read_text())
    assert [Row(**entry) for entry in content["variants"]] == results.rows
    assert Settings(**content["settings"]) == results.settings
    assert content["best"]["name"] == "Q+D" and content["losses"] == {"baseline: train": [0.5]}
    text = (folder / "report.md").read_text()
    for name in VARIANTS:
        assert f"\n| {name} |" in text
    assert "**Deploy Q+D**" in text and "(tradeoff.png)" in text and "fc  int8" in text
    assert "98.00 % (-1.00 points), 0.500 ms per image (4.00x" in text and "28.0x smaller" in text
    header, rule = text[text.index("| variant") :].splitlines()[:2]
    assert header.count("|") == rule.count("|")
    assert (folder / "tradeoff.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_failing_writer_leaves_the_old_files(tmp_path, results, monkeypatch):
    report.write(results, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def half(rows, path, **options):
        with open(path, "wb") as file:
            file.write(b"\x89PNG")
        raise OSError("disk full")

    monkeypatch.setattr(chart, "draw", half)
    with pytest.raises(OSError, match="disk full"):
        report.write(results, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_the_folder_s_place_is_an_error(tmp_path, results):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OSError, match="out"):
        report.write(results, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_table_fits_into_80_columns_unshortened(results):
    console = Console(file=io.StringIO(), width=80)
    console.print(report.table(results))
    text = console.file.getvalue()
    assert "…" not in text
    for variant in results.rows:
        line = next(line for line in text.splitlines() if line.split()[:1] == [variant.name])
        assert f"{variant.accuracy:.2f}" in line and f"{variant.ms_per_image:.3f}" in line
        assert "123,456" in line


def overlaps(boxes):
    return [
        (one, two) for i, one in enumerate(boxes) for two in boxes[i + 1 :] if one.overlaps(two)
    ]


@pytest.mark.parametrize("spread", [1.0, 0.3, 0.1])
def test_labels_of_the_chart_do_not_overlap(results, spread):
    # Crowded results: all within a small part of the plane.
    near = [
        dataclasses.replace(
            entry,
            accuracy=99 - spread * (99 - entry.accuracy),
            ms_per_image=2 - spread * (2 - entry.ms_per_image),
        )
        for entry in results.rows
    ]
    drawn = chart.figure(near, title="digits", limit=2.0)
    renderer = drawn.canvas.get_renderer()
    for axes in drawn.axes:
        texts = [text for text in axes.texts if text.get_text()]
        boxes = [text.get_window_extent(renderer) for text in texts]
        assert len(boxes) >= len(VARIANTS) and overlaps(boxes) == []
        for box in boxes:
            assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 + 1
    names = {text.get_text() for text in drawn.axes[0].texts}
    assert set(VARIANTS) <= names


def test_chart_of_equal_results_and_of_one(results):
    same = [dataclasses.replace(results.rows[0], name=name) for name in VARIANTS]
    chart.figure(same, title="same", limit=2.0)
    chart.figure(same[:1], title="one", limit=2.0)
    with pytest.raises(ValueError, match="at least one variant"):
        chart.figure([], title="none", limit=2.0)
