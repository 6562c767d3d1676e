"""What `export.tensorrt` refuses before it builds; the command lines of TensorRT's own tools."""

import importlib.util

import onnx
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
        ({"hardware_compatibility": "ampere_plus"}, ValueError, "RTX has no hardware_compatib"),
        ({"timing_cache": "t.cache"}, ValueError, "TensorRT-RTX has no timing_cache"),
        ({"compute_capabilities": "8.6"}, ValueError, "different strings like '8.6'"),
        ({"compute_capabilities": ()}, ValueError, "different strings like '8.6'"),
        ({"compute_capabilities": ("8.6", "8.6")}, ValueError, "different strings"),
        ({"allow_float": "fc"}, TypeError, "allow_float must be a sequence of names, got 'fc'"),
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


def test_compute_capabilities_are_for_rtx():
    with pytest.raises(ValueError, match="TensorRT builds for the GPU that it runs on"):
        export.trtexec_command(exported("demo")[1], "m.engine", compute_capabilities=["8.6"])


def test_open_and_fixed_sizes(tmp_path):
    """A batch for a file without one, a file in which another size is open, and no profile."""
    proto = onnx.load(exported("demo")[1])
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    del proto.graph.value_info[:], proto.graph.output[0].type.tensor_type.shape.dim[:]
    dims[0].dim_value = 2
    onnx.save(proto, tmp_path / "fixed.onnx")
    with pytest.raises(
        ValueError, match=r"batch is \(1, 2, 4\), but .* fixed at 2; export with dyn"
    ):
        export.trtexec_command(tmp_path / "fixed.onnx", "m.engine", batch=(1, 2, 4))
    command = export.trtexec_command(tmp_path / "fixed.onnx", "m.engine", batch=(2, 2, 2))
    assert not any("Shapes" in word for word in command)
    dims[2].dim_param = "height"
    onnx.save(proto, tmp_path / "open.onnx")
    with pytest.raises(ValueError, match=r"only the batch may be open, but the input 'input' is"):
        export.trtexec_command(tmp_path / "open.onnx", "m.engine")


@needs_rtx
def test_a_folder_without_permission(tmp_path, monkeypatch):
    """Told before the build."""

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sparseq.export.engine.build.tempfile.NamedTemporaryFile", refuse)
    monkeypatch.setattr("sparseq.export.engine.build._run_worker", None)
    with pytest.raises(PermissionError, match=r"engine cannot be written to .*: Permission denied"):
        export.tensorrt(exported("demo")[1], tmp_path / "m.engine", runtime="tensorrt_rtx")


@needs_rtx
def test_a_full_disk(tmp_path, monkeypatch):
    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    _, path = exported("demo")
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        export.tensorrt(path, tmp_path / "m.engine", runtime="tensorrt_rtx")
    assert not list(tmp_path.iterdir())


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
