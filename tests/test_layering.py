"""Imports point one way, and optional packages are imported where they are used."""

import ast
import sys
from pathlib import Path

import pytest

import sparseq

PACKAGE = Path(sparseq.__file__).parent

# What each part may import of sparseq, directly; a part is a module or a folder.
BELOW: dict[str, set[str]] = {
    "spec": set(),
    "program": set(),
    "reference": {"program"},
    "files": set(),
    "modes": set(),
    "table": set(),
    "distill": {"files", "modes"},
}
BELOW["ops"] = {"spec", "program", "reference", "files", "_C"}
BELOW["testing"] = {"_C"}
BELOW["choice"] = {"_C", "files"}
BELOW["quant"] = BELOW["ops"] | {"ops"}
BELOW["batches"] = set()
BELOW["sparse"] = BELOW["ops"] | {"ops", "batches", "modes"}
BELOW["packed"] = BELOW["sparse"] | {"quant", "sparse"}
BELOW["nn"] = BELOW["packed"] | {"packed", "choice"}
BELOW["lower"] = BELOW["nn"] | {"nn"}
BELOW["flow"] = BELOW["lower"] | {"lower"}
BELOW["ptq"] = BELOW["flow"] | {"flow"}
BELOW["structured"] = BELOW["flow"] | {"flow"}
BELOW["export"] = BELOW["flow"] | {"flow"}
BELOW["migrate"] = BELOW["flow"] | {"flow"}
BELOW["bench"] = BELOW["flow"] | {"flow", "export", "table"}
BELOW["analysis"] = BELOW["flow"] | {"flow", "bench", "table"}
BELOW["run"] = BELOW["flow"] | {"flow", "bench", "analysis", "export", "distill", "table", ""}
BELOW["cli"] = BELOW["run"] | {"run"}
BELOW["__main__"] = {"cli"}
ENTRY = "__init__"  # sparseq itself: it names what is public
LATE = {"export", "bench"}  # may ask sparseq itself, for its version, inside a function

ALWAYS = {"torch", "numpy", *sys.stdlib_module_names}  # may be imported at the top of any module
AT_THE_TOP = {"cli": {"typer", "rich"}, "run": {"typer", "rich", "pydantic", "yaml"}}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree):
    """(module, whether it is imported when the file is) of each import but type-checking ones."""
    at_import = set()
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            at_import.add(node)
        pending += list(ast.iter_child_nodes(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in at_import
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "sparseq":
                for alias in node.names:
                    yield f"sparseq.{alias.name}", node in at_import
            else:
                yield node.module, node in at_import


def offences(path, text):
    part = part_of(path)
    tree = ast.parse(text)
    for module, at_import in imports(tree):
        top, _, rest = module.partition(".")
        if top == "sparseq":
            target = rest.split(".")[0]
            known = target in BELOW or target == "_C"
            target = target if known else ""  # a public name of sparseq itself
            late = target == "" and not at_import and part in LATE
            if part not in (ENTRY, target) and target not in BELOW[part] and not late:
                yield f"{part} imports {module}"
        elif at_import and top not in ALWAYS | AT_THE_TOP.get(part, set()):
            yield f"{part} imports {module} when it is imported"
        known = {"torch", "sparseq", "safetensors", *sys.stdlib_module_names}
        if part == "distill" and top not in known:
            yield f"distill imports {module}"


def test_every_part_has_a_place():
    assert {part_of(path) for path in FILES} - {ENTRY} <= set(BELOW)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    assert list(offences(path, path.read_text())) == []


@pytest.mark.parametrize(
    ("file", "text", "wanted"),
    [
        ("spec/quant.py", "from sparseq.ops import minmax", "spec imports sparseq.ops"),
        ("ops/affine.py", "import sparseq.quant", "ops imports sparseq.quant"),
        ("quant/observer.py", "def f():\n    from sparseq import nn", "quant imports sparseq.nn"),
        ("flow/convert.py", "from sparseq import Plan", "flow imports sparseq.Plan"),
        ("flow/storage.py", "import safetensors", "flow imports safetensors when it is imported"),
        ("nn.py", "class A:\n    import onnx", "nn imports onnx when it is imported"),
        ("distill/loss.py", "import numpy", "distill imports numpy"),
        ("distill/hint.py", "from sparseq import ops", "distill imports sparseq.ops"),
        ("export/onnx.py", "import sparseq", "export imports sparseq"),
        ("export/onnx.py", "import rich", "export imports rich when it is imported"),
    ],
)
def test_the_rule_finds_offences(file, text, wanted):
    assert list(offences(PACKAGE / file, text)) == [wanted]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("cli/app.py", "import typer, rich.table"),
        ("export/onnx.py", "def f():\n    import sparseq"),
        ("flow/storage.py", "def f():\n    import safetensors"),
        ("distill/cache.py", "from sparseq.files import atomic_path"),
        ("quant/__init__.py", "from sparseq.quant.observer import Observer\nimport torch"),
        ("export/onnx.py", "if TYPE_CHECKING:\n    import onnx"),
    ],
)
def test_the_rule_lets_the_rest_pass(file, text):
    assert list(offences(PACKAGE / file, text)) == []
