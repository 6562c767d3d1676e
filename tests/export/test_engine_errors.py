"""What `export.tensorrt` refuses before it builds; the command lines of TensorRT's own tools."""

import importlib.util

import pytest
from engine_cases import exported, needs_rtx

from sparseq import export
from sparseq.export.engine import runtime


def test_tensorrt_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "installed", lambda name: False)
    _, path = exported("demo")
    for name, wanted in (
        (None, r"needs TensorRT: pip install 'sparseq\[tensorrt\]'"),
        ("tensorrt", r"the package tensorrt: pip install 'sparseq\[tensorrt\]'"),
        ("tensorrt_rtx", r"the package tensorrt_rtx: pip install 'sparseq\[tensorrt-rtx\]'"),
    ):
        with pytest.raises(ModuleNotFoundError, match=wanted):
            export.tensorrt(path, tmp_path / "m.engine", runtime=name)
    assert not list(tmp_path.iterdir())


@needs_rtx
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch": (4, 1, 2)}, ValueError, "batch"),
        ({"batch": (0, 1, 2)}, ValueError, "batch"),
        ({"batch": (1, 2)}, ValueError, "batch"),
        ({"workspace": 0}, ValueError, "workspace"),
        ({"compute_capabilities": ("eight",)}, ValueError, "compute_capabilities"),
        ({"runtime": "tflite"}, ValueError, "runtime must be one of"),
        ({"hardware_compatibility": "all"}, ValueError, "hardware_compatibility"),
    ],
)
def test_arguments(options, error, message, tmp_path):
    _, path = exported("demo")
    given = {"runtime": "tensorrt_rtx"} | options
    with pytest.raises(error, match=message) as caught:
        export.tensorrt(path, tmp_path / "m.engine", **given)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@needs_rtx
def test_files(tmp_path):
    _, path = exported("demo")
    out = tmp_path / "m.engine"
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        export.tensorrt(tmp_path / "none.onnx", out, runtime="tensorrt_rtx")
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.onnx"):
        export.tensorrt(tmp_path / "cut.onnx", out, runtime="tensorrt_rtx")
    with pytest.raises(OSError, match="no such"):
        export.tensorrt(path, tmp_path / "no such" / "m.engine", runtime="tensorrt_rtx")
    assert [p.name for p in tmp_path.iterdir()] == ["cut.onnx"]


SHAPES = [f"--{w}Shapes=input:{n}x3x32x32" for w, n in (("min", 1), ("opt", 4), ("max", 8))]
END = ["--profilingVerbosity=detailed", "--skipInference"]


def test_the_command_line_of_trtexec(tmp_path):
    _, path = exported("demo")
    options = {"batch": (1, 4, 8), "workspace": 1 << 30, "sparse": True}
    for version, typed in ((10, ["--stronglyTyped"]), (11, [])):
        command = export.trtexec_command(
            path,
            "out/my engine",
            version=version,
            timing_cache="t.cache",
            hardware_compatibility="ampere_plus",
            **options,
        )
        assert command == [
            "trtexec",
            f"--onnx={path}",
            "--saveEngine=out/my engine",
            *typed,
            "--sparsity=enable",
            *SHAPES,
            "--memPoolSize=workspace:1073741824B",
            "--timingCacheFile=t.cache",
            "--hardwareCompatibilityLevel=ampere+",
            *END,
        ]
        assert "'--saveEngine=out/my engine'" in str(command)


def test_the_command_line_of_tensorrt_rtx():
    _, path = exported("demo")
    command = export.trtexec_command(
        path, "m.engine", runtime="tensorrt_rtx", compute_capabilities=("8.6", "12.0")
    )
    assert command[0] == "tensorrt_rtx" and "--computeCapabilities=86,120" in command
    assert not any("stronglyTyped" in word for word in command)


def test_a_version_that_does_not_exist():
    with pytest.raises(ValueError, match="version must be 10, 11 or None, got 9"):
        export.trtexec_command(exported("demo")[1], "m.engine", version=9)


def test_the_package_is_only_loaded_where_it_is_used():
    import subprocess
    import sys

    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    script = "import sys, sparseq.export; assert 'tensorrt_rtx' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
