import dataclasses
import importlib.util
import io
import json
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from example_results import CHAINS, NINE, example
from rich.console import Console
from typer.testing import CliRunner

from sparseq import cli
from sparseq.run import report
from sparseq.run.report import charts
from sparseq.run.report.charts import curves, style, tradeoff
from sparseq.run.report.findings import find
from sparseq.run.results import Deployment, Results, Variant

EVIL = '<img src=x onerror=alert(1)> & "Q" | `y` $x_1$ ]]>'
CHARTS = {
    "accuracy-latency", "accuracy-size", "accuracy-macs", "speedups", "effects-QPD", "layers-best",
    "layers-all", "training-loss", "training-accuracy", "sensitivity",
}  # fmt: skip


def renamed(results, old, new):
    """The results with a variant, and whatever else is text, of another name."""
    variants = tuple(
        dataclasses.replace(v, name=new) if v.name == old else v for v in results.variants
    )
    layers = tuple(dataclasses.replace(layer, name=new) for layer in variants[0].layers[:1])
    variants = (dataclasses.replace(variants[0], layers=layers), *variants[1:])
    best = dataclasses.replace(
        results.best, name=new, verified=new, kernels=new, engine=new, engine_note=new
    )
    return dataclasses.replace(
        results, variants=variants, best=best, data=new, recipe={"model": new, new: new},
        environment={new: new}, sensitivity={new: {new: 1.0}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new" / "out"
    return folder, report.write(example(), folder)


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evil")
    report.write(renamed(example(names=("baseline", "Q", "D"), best="Q"), "Q", EVIL), folder)
    return folder


class Page(HTMLParser):
    """What a page's tags are and which addresses they name."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.ids, self.stack, self.texts = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "poster", "data", "action"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.texts.append(data)


def test_files(written):
    folder, paths = written
    files = {path for path in folder.rglob("*") if path.is_file()}
    assert files == set(paths) and len(paths) == len(set(paths))
    assert {path.stem for path in (folder / "charts").iterdir()} == CHARTS
    for path in (folder / "charts").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert report.read(folder / "results.json") == example()


def test_markdown(written):
    folder, _ = written
    text = (folder / "report.md").read_text()
    for name in NINE:
        assert f"\n| {name} |" in text or f"\n| **{name}** |" in text
    assert text.startswith("# resnet18 on cifar10 (50,000 + 10,000 images)\n\n**Deploy Q+D: ")
    pictures = re.findall(r"^!\[[^\]]+\]\(([^)]+)\)$", text, re.MULTILINE)
    assert {f"charts/{name}.png" for name in CHARTS} == set(pictures)
    assert len(pictures) == len(CHARTS) and all((folder / file).is_file() for file in pictures)
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 5
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, lines
    assert "conv1  Conv2d  int8" in text and "It took 1 h 27 min." in text


def test_the_page_needs_nothing_else(written):
    folder, _ = written
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.stack == []
    assert all(address.startswith("#") for address in page.addresses)
    assert {address[1:] for address in page.addresses} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img", "object"}
    for reference in re.findall(r"url\(#([^)]+)\)", text):
        assert reference in page.ids


def test_the_page_is_told_to_those_who_do_not_see_it(written):
    page = Page((written[0] / "report.html").read_text())
    names = [tag for tag, _ in page.tags]
    assert page.tags[0][0] == "html" and page.tags[0][1]["lang"] == "en"
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) == len(CHARTS)
    assert all(p["role"] == "img" and len(p["aria-label"]) > 20 for p in pictures)
    levels = [int(name[1]) for name in names if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    for tag, attributes in page.tags:
        assert tag != "th" or attributes["scope"] in ("row", "col")
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0"  # the keyboard scrolls it


def test_what_users_name_is_text(evil):
    text = (evil / "report.html").read_text()
    page = Page(text)
    assert page.stack == []
    assert "img" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert any(EVIL in said for said in page.texts)
    markdown = (evil / "report.md").read_text()
    fenced = markdown[markdown.index("```text") : markdown.rindex("```")]
    assert "<img" not in markdown.replace(fenced, "").replace("\\<img", "")


def test_a_failing_writer_leaves_the_old_files(tmp_path, monkeypatch):
    few = poor()
    report.write(few, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    calls = []

    def half(figure, path):
        calls.append(path)
        path.write_bytes(b"\x89PNG")
        if len(calls) == 2:
            raise OSError("disk full")

    monkeypatch.setattr("sparseq.run.report.files.save_png", half)
    with pytest.raises(OSError, match="disk full"):
        report.write(dataclasses.replace(few, seconds=1.0), tmp_path)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before and len(calls) == 2


def test_a_file_in_the_folder_s_place_is_an_error(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OSError, match="out"):
        report.write(example(), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def poor():
    """Results with nothing but what they cannot lack: one variant, one seed, no histories."""
    run = dataclasses.replace(example().variants[0].runs[0], train_losses={}, accuracies={})
    variant = dataclasses.replace(
        example().variants[0], runs=(run,), spread=0.0, drop=0.0, macs=None, layers=()
    )
    best = dataclasses.replace(example().best, name="baseline", passed=False)
    return dataclasses.replace(
        example(), variants=(variant,), best=best, sensitivity={}, environment={}, recipe={},
        data="some",
    )  # fmt: skip


def test_results_that_have_little(tmp_path):
    paths = report.write(poor(), tmp_path)
    names = {path.stem for path in paths if path.suffix == ".png"}
    assert names == {"accuracy-latency", "accuracy-size", "speedups"}
    text = (tmp_path / "report.html").read_text()
    assert Page(text).stack == [] and "differs" in text and 'id="layers"' not in text
    assert report.read(tmp_path / "results.json") == poor()


def shown(results, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(report.table(results))
    return console.file.getvalue()


def test_table_fits_into_80_columns_unshortened():
    results = example()
    text = shown(results)
    assert "…" not in text
    for variant in results.variants:
        line = next(line for line in text.splitlines() if line.split()[:1] == [variant.name])
        assert f"{variant.accuracy:.2f}±{variant.spread:.2f}" in line
        assert f"{variant.ms_per_image:.3f}" in line and f"{variant.parameters:,}" in line
    assert "[bold]" in shown(renamed(results, "Q", "[bold]"), width=200)  # no markup


def overlaps(boxes):
    return [
        (one, two) for i, one in enumerate(boxes) for two in boxes[i + 1 :] if one.overlaps(two)
    ]


@pytest.mark.parametrize("spread", [1.0, 0.3, 0.1])
def test_labels_of_a_trade_off_do_not_overlap(spread):
    first = example(names=(*CHAINS,)).variants
    base = first[0]
    # Crowded results: all within a small part of the plane.
    near = [
        dataclasses.replace(
            v,
            accuracy=base.accuracy - spread * (base.accuracy - v.accuracy),
            ms_per_image=base.ms_per_image - spread * (base.ms_per_image - v.ms_per_image),
        )
        for v in first
    ]
    drawn = tradeoff.trade_off(
        near, lambda v: v.ms_per_image, best="Q+D", limit=2.0, title="t", unit="ms"
    )
    renderer = drawn.canvas.get_renderer()
    (axes,) = drawn.axes
    texts = [text for text in axes.texts if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    assert overlaps(boxes) == []
    for box in boxes:
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 + 1
    assert {"Q+D (best)", *CHAINS} - {"Q+D"} <= {text.get_text() for text in texts}


def test_nothing_sticks_out_of_a_chart_and_every_axis_is_named():
    results = example()
    for chart in charts.draw_all(results, find(results)):
        drawn = chart.figure
        drawn.draw_without_rendering()
        renderer = drawn.canvas.get_renderer()
        box, whole = drawn.get_tightbbox(renderer), drawn.get_size_inches()
        assert -0.02 <= box.x0 and box.x1 <= whole[0] + 0.02, (chart.name, box)
        assert -0.02 <= box.y0 and box.y1 <= whole[1] + 0.02, (chart.name, box)
        named = [axes.get_xlabel() or axes.get_title(loc="left") for axes in drawn.axes]
        assert all(named), chart.name
        smallest = min(text.get_fontsize() for text in drawn.findobj(style_text))
        assert smallest >= 7.5, chart.name


def style_text(artist):
    return hasattr(artist, "get_fontsize") and artist.get_visible() and bool(artist.get_text())


def test_equal_results_can_be_drawn():
    same = [dataclasses.replace(example().variants[0], name=name) for name in NINE]
    drawn = tradeoff.trade_off(same, lambda v: 1.0, best="Q", limit=2.0, title="same", unit="ms")
    low, high = drawn.axes[0].get_ylim()
    assert low < same[0].accuracy < high


def test_shared_stages_are_one_line():
    results = example()
    found = curves.lines(results.variants, "train_losses")
    # everything starts from the baseline; pruning alone and after D; quantisation after five chains
    counts = {}
    for stage, _, _ in found:
        counts[stage] = counts.get(stage, 0) + 1
    assert counts == {
        "baseline": 1, "quantisation": 5, "pruning": 2, "distillation": 1, "2:4 sparsity": 1,
    }  # fmt: skip
    stage, name, values = found[0]
    assert (stage, name) == ("baseline", "baseline") and values.shape == (3, 8)
    runs = results.variants[0].runs
    np.testing.assert_array_equal(values, [run.train_losses["baseline"] for run in runs])


def test_colours_and_ids_of_a_page_s_chart():
    results = example(names=("baseline", "Q"), best="Q")
    chart = next(charts.draw_all(results, find(results)))
    text = charts.inline_svg(chart.figure, "one", 'a "b" <c>')
    assert 'aria-label="a &quot;b&quot; &lt;c&gt;"' in text and "xmlns" not in text
    for colour in (style.INK, style.SOFT, style.GRID, style.LIMIT, *style.CYCLE[:2]):
        assert colour.lower() not in text.lower()
    assert "var(--ink)" in text and "var(--c0)" in text and "var(--c1)" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert ids and all(name.startswith("one-") for name in ids)
    assert "baseline</text>" in text  # letters, not outlines


def test_long_names_are_shortened_in_charts():
    assert style.shortened("abc") == "abc"
    short = style.shortened("layers.0.attention.self.query_projection")
    assert len(short) <= 22 and short.startswith("layers.0.") and short.endswith("projection")


def test_read_says_what_is_wrong(tmp_path):
    path = tmp_path / "results.json"
    for text in ("{", "[]", "{}", json.dumps({"data": 3})):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"results\.json: must be a results\.json of"):
            report.read(path)
    with pytest.raises(OSError, match="missing"):
        report.read(tmp_path / "missing.json")


def test_the_command_makes_the_report_again(written, tmp_path):
    folder, paths = written
    source = folder / "results.json"
    done = CliRunner().invoke(cli.app, ["report", str(source), "--out", str(tmp_path / "again")])
    assert done.exit_code == 0, done.output
    for path in paths:
        again = tmp_path / "again" / path.relative_to(folder)
        assert again.read_bytes() == path.read_bytes()
        assert f"wrote {again}" in done.output
    assert "Q+P+D" in done.output


def test_the_command_s_errors_are_one_line(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("{}")
    for argument in (path, tmp_path / "none.json"):
        done = CliRunner().invoke(cli.app, ["report", str(argument)])
        assert done.exit_code == 2 and done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)
def test_tensorboard_logs_hold_the_histories(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results = example(names=("baseline", "Q+D"), seeds=(0, 3), best="Q+D")
    folder = report.tensorboard(results, tmp_path / "logs")
    for variant in results.variants:
        for run in variant.runs:
            events = EventAccumulator(str(folder / variant.name / f"seed-{run.seed}"))
            events.Reload()
            for kind, histories in (("loss", run.train_losses), ("accuracy", run.accuracies)):
                for stage, values in histories.items():
                    scalars = events.Scalars(f"{kind}/{stage}")
                    assert [s.step for s in scalars] == list(range(1, len(values) + 1))
                    np.testing.assert_allclose([s.value for s in scalars], values, rtol=1e-6)
            (accuracy,) = events.Scalars("result/accuracy")
            assert accuracy.value == pytest.approx(run.accuracy)
    assert (folder / "analysis").is_dir()


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sparseq\[tensorboard\]'"):
        report.tensorboard(example(), tmp_path / "logs")
    assert list(tmp_path.iterdir()) == []


def test_the_example_is_what_an_exercise_leaves():
    results = example()
    assert isinstance(results, Results) and isinstance(results.best, Deployment)
    assert all(isinstance(v, Variant) and len(v.runs) == 3 for v in results.variants)
    assert Results.from_dict(json.loads(json.dumps(results.to_dict()))) == results
