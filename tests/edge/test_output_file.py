"""A file is there whole or not at all."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from edge.errors import ConfigError
from edge.outputs.output_file import OutputFile


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "f.csv"
    with OutputFile(path, "--csv") as output:
        output.file.write(b"all")
        assert not path.exists()
    assert path.read_bytes() == b"all"
    assert [entry.name for entry in path.parent.iterdir()] == ["f.csv"]


def test_what_was_there_stays_where_the_work_fails(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(b"old")

    def fail_half_way() -> None:
        with OutputFile(path, "--csv") as output:
            output.file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.csv"]


def test_a_disk_that_takes_no_more_leaves_no_part_behind(tmp_path: Path) -> None:
    def write_too_much() -> None:
        with OutputFile(tmp_path / "f.csv", "--csv") as output:
            output.file.write(bytes(2000))  # waits in the buffer

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_too_much()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with OutputFile(link, "--csv") as output:
        output.file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("name", [".", "/dev/null"])
def test_what_is_no_file_is_never_replaced(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"--csv: got .*, which is no file; expected the name of a file to write"):
        OutputFile(tmp_path / name, "--csv")


def test_a_path_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"--csv: got .*, which cannot be written \(.+\); expected another path"):
        OutputFile(tmp_path / "file" / "f.csv", "--csv")
