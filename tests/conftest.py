import pytest
import sparseq._C as core
import torch
from hypothesis import settings

from sparseq import testing

settings.register_profile("sparseq", deadline=None, derandomize=True, database=None)
settings.load_profile("sparseq")

# folders, from the repository's root, in which a test asks what all others together did
TOGETHER = ("tests/cuda/gemm/",)


def pytest_report_header():
    return f"sparseq._C: {core.__file__}"  # `make sanitize` tests another one


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config, log):
    """With `-n`, the tests of a file share a process, and so do those of a folder of TOGETHER."""
    if config.getvalue("dist") not in ("load", "loadfile"):
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return next((f for f in TOGETHER if nodeid.startswith(f)), super()._split_scope(nodeid))

    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):  # not the keyword: folders have it too
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def steady(monkeypatch, tmp_path_factory):
    """The same random numbers, threads and kernel choices in every test."""
    torch.manual_seed(0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "no tuned table"))
    with testing.threads(2):
        yield


@pytest.fixture(params=core.supported_isas())
def isa(request):
    """Runs the test once on each ISA of this machine."""
    with testing.isa(request.param) as name:
        yield name
