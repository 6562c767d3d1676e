import os
import stat

import pytest

from sparseq.files import atomic_path


def test_written_and_renamed(tmp_path):
    target = tmp_path / "model.onnx"
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".onnx"
        assert temporary.exists() and not target.exists()
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "report.md"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="half way"), atomic_path(str(target)) as temporary:
        temporary.write_text("half")
        raise RuntimeError("half way")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.md"]


def test_an_interrupt_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "x"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_the_old_file_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("a much longer old text")
    with open(target) as reader:
        with atomic_path(target) as temporary:
            temporary.write_text("new")
        assert reader.read() == "a much longer old text"
    assert target.read_text() == "new"


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path: the folder .*nowhere.* does not exist"):
        with atomic_path(tmp_path / "nowhere" / "a.txt"):
            pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_those_of_a_plain_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic_path(tmp_path / "a"):
            pass
        (tmp_path / "b").write_text("")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"]
    assert modes[0] == modes[1]
