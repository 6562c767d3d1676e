"""TensorRT 10 and 11 by a stand-in with their names: what is asked of them, and what is told."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine_cases import exported

from sparseq import export

FAKES = Path(__file__).parent / "fakes"
LAYER, NODE = "blocks.1.conv1", "blocks.1.conv1.product"


class Fake:
    def __init__(self, folder, monkeypatch, version):
        self.log, self.monkeypatch, self.version = folder / "log", monkeypatch, version
        self.engine = folder / "out" / "m.engine"
        self.engine.parent.mkdir()
        monkeypatch.setenv("PYTHONPATH", str(FAKES))
        monkeypatch.syspath_prepend(str(FAKES))
        self.configure()

    def configure(self, **more):
        config = {"version": self.version, "log": str(self.log)} | more
        self.monkeypatch.setenv("FAKE_TENSORRT", json.dumps(config))

    def build(self, case="demo 2:4", **arguments):
        return export.tensorrt(exported(case)[1], self.engine, runtime="tensorrt", **arguments)

    def calls(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def left(self):
        return [p.name for p in self.engine.parent.iterdir()]


@pytest.fixture(params=["10.16.0.1", "11.1.0.2"])
def fake(request, tmp_path, monkeypatch):
    return Fake(tmp_path, monkeypatch, request.param)


def test_what_is_asked_of_tensorrt(fake):
    cache = fake.engine.parent / "times"
    cache.write_bytes(b"older")
    table = fake.build(
        sparse=True,
        batch=(1, 4, 16),
        workspace=1 << 30,
        timing_cache=cache,
        hardware_compatibility="ampere_plus",
        progress=lambda *call: phases.append(call),
    ) if (phases := []) is not None else None  # fmt: skip
    shapes = {"input": [[1, 3, 32, 32], [4, 3, 32, 32], [16, 3, 32, 32]]}
    assert fake.calls() == [
        ["create_network", ["STRONGLY_TYPED"]],
        ["set_memory_pool_limit", "WORKSPACE", 1 << 30],
        ["set_flag", "SPARSE_WEIGHTS"],
        ["profiling_verbosity", "DETAILED"],
        ["hardware_compatibility_level", "AMPERE_PLUS"],
        ["add_optimization_profile", shapes],
        ["create_timing_cache", "older"],
        ["set_timing_cache", False],
        ["build_serialized_network"],
    ]
    assert phases == [("Building Engine", *step) for step in ((0, 2), (1, 2), (2, 2))]
    assert cache.read_bytes() == b"measured"
    assert fake.engine.read_bytes().startswith(b"ftrt")
    assert all((row.input, row.weight, row.sparse_kernel) == ("int8", "int8", True)
               for row in table.layers)  # fmt: skip
    assert {row.verbatim for row in table.layers} == {None}
    assert "sm80_xmma_fprop_sparse_conv" in str(table)


def test_the_least_that_is_asked(fake):
    table = fake.build()
    assert [call[0] for call in fake.calls()] == [
        "create_network", "profiling_verbosity", "add_optimization_profile",
        "build_serialized_network",
    ]  # fmt: skip
    assert {row.sparse_kernel for row in table.layers} == {False}
    assert fake.build(audit=False) is None


def test_a_layer_in_float(fake):
    fake.configure(float=NODE)
    with pytest.raises(export.EngineAuditError, match=f"layer {LAYER}: it runs on float inputs"):
        fake.build()
    assert fake.left() == []
    assert fake.build(allow_float=[LAYER]).problems().keys() == {LAYER}


FAILURES = {
    "parse": (
        export.EngineBuildError,
        rf"does not take Conv \({NODE}\) at layer {LAYER}: the axis is beyond all bounds\. ",
    ),
    "build": (export.EngineBuildError, "did not build the engine: out of tactics"),
    "crash": (export.EngineBuildError, r"process ended \(-11\): a message of a library"),
    "profile": (ValueError, r"batch: TensorRT does not take \{'input': "),
    "cache": (ValueError, "is not a timing cache of this version and GPU; delete it"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_failures(fake, failure):
    fake.configure(fail=failure)
    kind, text = FAILURES[failure]
    with pytest.raises(kind, match=text) as caught:
        fake.build(timing_cache=fake.engine.parent / "times")
    assert "\n" not in str(caught.value)
    assert fake.left() == []


def test_what_a_version_lacks_is_told(fake, monkeypatch):
    """A name that a future version drops: one line, not a traceback from another process."""
    folder = fake.engine.parent.parent / "newer"
    folder.mkdir()
    source = (FAKES / "tensorrt.py").read_text().replace('"SPARSE_WEIGHTS")', '"SOMETHING")')
    (folder / "tensorrt.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    with pytest.raises(export.EngineBuildError, match=r"tensorrt failed: .*SPARSE_WEIGHTS"):
        fake.build(sparse=True)
    assert fake.left() == []


def test_the_builder_ends_with_the_users_process(fake):
    """Killed outright, it leaves neither a file nor a process."""
    slow = fake.engine.parent.parent / "slow"
    slow.mkdir()
    source = (FAKES / "tensorrt.py").read_text()
    wait = '_log("pid", os.getpid())\n        import time; time.sleep(600)\n        plan = {'
    (slow / "tensorrt.py").write_text(source.replace("plan = {", wait, 1))
    program = (
        "from sparseq import export; "
        f"export.tensorrt({str(exported('demo')[1])!r}, {str(fake.engine)!r}, runtime='tensorrt')"
    )
    here = [str(slow), *sys.path]
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in here if p)},
        cwd=Path(export.__file__).parents[2],
        stderr=subprocess.DEVNULL,
    )
    try:
        while not fake.log.exists() or fake.calls()[-1][0] != "pid":
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    builder = fake.calls()[-1][1]
    for _ in range(400):
        if not Path(f"/proc/{builder}").exists() or _is_zombie(builder):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the builder lives on")
    assert fake.left() == []


def _is_zombie(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
