"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mambavision.files import naming, replacing, scratch_folder, write_atomic


@pytest.mark.parametrize("content", ["Größe\n", b"\x00\xff"])
def test_a_file_is_replaced_and_nothing_else_is_left(content: str | bytes, tmp_path: Path) -> None:
    for _ in range(2):
        write_atomic(tmp_path / "file", content)
    data = content.encode() if isinstance(content, str) else content
    assert (tmp_path / "file").read_bytes() == data
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(error: type[BaseException], unique: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(error):
        fail_half_way(tmp_path / "file", error, unique)
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def fail_half_way(path: Path, error: type[BaseException], unique: bool) -> None:
    with replacing(path, unique=unique) as scratch:
        scratch.write_text("half")
        raise error


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_file_has_the_rights_of_any_other(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_names_of_files_under_way(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as other:
        assert one != other
        assert {path.parent for path in (one, other)} == {tmp_path}, "one file system, so that renaming is one step"
        one.write_text("first")
        other.write_text("second")
    assert (tmp_path / "file").read_text() == "first", "its block ended last"
    for text in ("third", "fourth"):
        with replacing(tmp_path / "file", unique=False) as one:
            one.write_text(text)
            assert one == tmp_path / ".file.new"


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_is_on_the_disk_before_it_gets_its_name(
    sync: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda _: steps.append("sync"))
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("rename"), replace(*paths)))
    with replacing(tmp_path / "file", sync=sync) as scratch:
        scratch.write_text("text")
    assert steps == (["sync", "rename"] if sync else ["rename"])


def test_what_cannot_be_replaced_is_written_in_place(tmp_path: Path) -> None:
    code = "import pathlib, mambavision.files as files; files.write_atomic(pathlib.Path('/dev/stdout'), 'x')"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"x"
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "folder", "x")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_scratch_folder_lies_beside_and_goes(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "name") as folder:
        (folder / "file").write_text("x")
        assert folder.parent == tmp_path
        assert folder.name.startswith(".name-")
    assert not os.listdir(tmp_path)


def test_an_error_names_the_file_and_keeps_its_number() -> None:
    message = r"^page.html: cannot be written \(No space left on device\)$"
    with pytest.raises(OSError, match=message) as caught, naming(Path("page.html")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
