"""What a run writes stands in its folder: a symbolic link that somebody put there is refused, and its target unchanged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edge_sel.errors import SetupError
from edge_sel.files import open_no_link, write_durably, write_json
from edge_sel.runs.checkpoint import save_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="needs POSIX")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "run").mkdir()
    return tmp_path / "target"


@pytest.mark.parametrize("name", ["run.json", ".run.json.tmp"])
def test_a_file_is_not_written_through_a_link(name, target, tmp_path):
    (tmp_path / "run" / name).symlink_to(target)
    with pytest.raises(SetupError, match=r"symbolic link.*run\.json"):
        write_json(tmp_path / "run" / "run.json", {})
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize("mode", ["wb", "ab", "r+b"])
@pytest.mark.parametrize("to", ["target", "nothing"])
def test_no_mode_follows_a_link(mode, to, target, tmp_path):
    (tmp_path / "run" / "link").symlink_to(tmp_path / to)
    with pytest.raises(OSError, match="symbolic link"):
        open_no_link(tmp_path / "run" / "link", mode)
    assert target.read_bytes() == b"mine" and not (tmp_path / "nothing").exists()


def test_the_system_refuses_a_link_that_comes_in_between(target, tmp_path, monkeypatch):
    (tmp_path / "run" / "link").symlink_to(target)
    monkeypatch.setattr(Path, "is_symlink", lambda self: False)
    for mode in ("wb", "ab", "r+b"):
        with pytest.raises(OSError):
            open_no_link(tmp_path / "run" / "link", mode)
    with pytest.raises(SetupError):
        (tmp_path / "run" / ".other.tmp").symlink_to(target)
        write_durably(tmp_path / "run" / "other", b"theirs")
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize("mode", ["wb", "ab", "r+b"])
def test_a_plain_file_is_made_and_opened_as_ever(mode, tmp_path):
    for _ in range(2):
        with open_no_link(tmp_path / "file", mode) as file:
            file.write(b"ab")
    assert (tmp_path / "file").read_bytes() == (b"abab" if mode == "ab" else b"ab")


def test_checkpoints_are_not_written_into_another_folder(target, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SetupError, match=r"symbolic link.*checkpoints"):
        save_checkpoint(tmp_path / "run" / "checkpoints", {"a": np.zeros(1)}, {}, {})
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_run_folder_may_be_a_link_of_its_owner(target, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "run")
    write_json(tmp_path / "out" / "run.json", {})
    assert (tmp_path / "run" / "run.json").exists()
