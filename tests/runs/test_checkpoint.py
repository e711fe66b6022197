"""Checkpoints outlive power cuts, full disks and failing cards."""

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_sel.errors import SetupError
from edge_sel.files import write_durably
from edge_sel.runs.checkpoint import KEEP, list_checkpoints, load_checkpoint, save_checkpoint
from tests.edge.sessions import full_disk, tree

SHAPES = st.sampled_from([(), (0,), (3,), (2, 3)])
TENSORS = st.dictionaries(
    st.text("abc/:.", min_size=1, max_size=8),
    st.one_of(*(hnp.arrays(kind, SHAPES) for kind in (np.float32, np.float64, np.int64, np.bool_))),
    max_size=5,
)
SCALARS = st.dictionaries(
    st.text(max_size=3), st.none() | st.floats() | st.integers() | st.text(max_size=5), max_size=4
)


def save(folder: Path, number: float) -> Path:
    return save_checkpoint(folder, {"x": np.full(4, number)}, {"number": number}, {"run": "this"})


def numbers(folder: Path) -> list[int]:
    return [number for number, _ in list_checkpoints(folder)]


def latest(folder: Path) -> float:
    loaded = load_checkpoint(folder)
    assert loaded is not None
    assert loaded[0]["x"].tolist() == [loaded[1]["number"]] * 4 and loaded[2] == {"run": "this"}
    return loaded[1]["number"]


@given(tensors=TENSORS, scalars=SCALARS)
def test_round_trip_is_exact(tensors, scalars, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    save_checkpoint(folder, tensors, scalars, {"seed": 1})
    loaded, loaded_scalars, identity, _ = load_checkpoint(folder)
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (value.dtype, value.shape)
        assert loaded[name].tobytes() == value.tobytes()
    assert repr(loaded_scalars) == repr(scalars)  # repr, because NaN is not equal to itself
    assert identity == {"seed": 1}


def test_views_and_transposes_are_saved_as_they_look(tmp_path):
    value = np.arange(12.0).reshape(3, 4).T[::2]
    save_checkpoint(tmp_path, {"x": value}, {}, {})
    assert load_checkpoint(tmp_path)[0]["x"].tolist() == value.tolist()


def test_what_is_loaded_can_be_changed(tmp_path):
    save(tmp_path, 1)
    loaded = load_checkpoint(tmp_path)[0]["x"]
    loaded[0] = 5
    assert loaded.tolist() == [5, 1, 1, 1] and latest(tmp_path) == 1, "what is saved stays as it is"


def test_the_newest_two_are_kept(tmp_path):
    for number in range(1, 6):
        save(tmp_path, number)
        assert numbers(tmp_path) == list(range(max(1, number - KEEP + 1), number + 1))
        assert latest(tmp_path) == number
    assert len(list(tmp_path.iterdir())) == KEEP == 2


def test_a_folder_that_is_not_there_holds_none(tmp_path):
    assert list_checkpoints(tmp_path / "nowhere") == [] and load_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(part, tmp_path):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    content = newest.read_bytes()
    newest.write_bytes(content[: int(part * len(content))])
    assert latest(tmp_path) == 1


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_falls_back_to_the_checkpoint_before(place, bit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    save(folder, 1)
    newest = save(folder, 2)
    content = bytearray(newest.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    newest.write_bytes(content)
    assert latest(folder) == 1
    save(folder, 3)
    assert latest(folder) == 3


def test_a_newest_that_cannot_be_read_falls_back(tmp_path, monkeypatch):
    save(tmp_path, 1)
    newest, read_bytes = save(tmp_path, 2), Path.read_bytes

    def failing_card(path):
        if path == newest:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", failing_card)
    assert latest(tmp_path) == 1


def test_leftovers_and_foreign_files_are_harmless(tmp_path):
    save(tmp_path, 1)
    for name in (".checkpoint-000009-0123456789abcdef.safetensors.tmp", "checkpoint-9.safetensors", "notes.txt"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "folder").mkdir()
    assert latest(tmp_path) == 1
    save(tmp_path, 2)
    assert numbers(tmp_path) == [1, 2]
    left = {path.name for path in tmp_path.iterdir()}
    assert {"notes.txt", "folder", "checkpoint-9.safetensors"} < left, "what is not ours stays"
    assert not any(name.endswith(".tmp") for name in left), "what a power cut left goes with the next checkpoint"


@pytest.mark.parametrize("where", ["open", "fsync", "replace"])
def test_a_full_disk_keeps_what_is_there(where, tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)
    before = tree(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(SetupError, match="No space left") as caught:
        patched.setattr(Path if where == "replace" else os, where, full_disk)
        save(tmp_path, 3)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3
    assert tree(tmp_path) == before
    assert latest(tmp_path) == 2


def test_only_a_full_disk_is_told_to_be_full(tmp_path, monkeypatch):
    for number, fix in ((errno.ENOSPC, "free some space"), (errno.EACCES, "a place that can be written to")):

        def refused(*_, number=number, **__):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patched, pytest.raises(SetupError, match=fix):
            patched.setattr(os, "fsync", refused)
            write_durably(tmp_path / "name", b"content")


def test_a_folder_that_cannot_be_forced_to_the_disk_fails_no_write(tmp_path, monkeypatch):
    fsync = os.fsync

    def of_files_only(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", of_files_only)
    write_durably(tmp_path / "name", b"content")
    assert tree(tmp_path) == {"name": b"content"}


def test_a_place_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "deeper" / "x"):
        with pytest.raises(SetupError, match="cannot write"):
            write_durably(path, b"content")


def test_content_reaches_the_disk_before_its_name_does(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, Path.replace

    def noted_fsync(handle):
        order.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def noted_replace(path, target):
        assert path.read_bytes() == b"content" and path.parent == target.parent
        order.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_durably(tmp_path / "name", b"content")
    assert order == ["file", "rename", "folder"]


@pytest.mark.parametrize("name", ["history.csv", "run.json"])
def test_a_file_that_cannot_be_written_keeps_its_old_content(name, tmp_path, monkeypatch):
    path = tmp_path / name
    write_durably(path, b"old")
    with monkeypatch.context() as patched, pytest.raises(SetupError, match="No space left"):
        patched.setattr(os, "fsync", full_disk)
        write_durably(path, b"new")
    assert tree(tmp_path) == {name: b"old"}
    write_durably(path, b"new")
    assert tree(tmp_path) == {name: b"new"}


def test_an_old_checkpoint_that_cannot_be_removed_stops_nothing(tmp_path, monkeypatch):
    """Where files share blocks, a full disk refuses even that."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", full_disk)
        save(tmp_path, 3)
    assert numbers(tmp_path) == [1, 2, 3] and latest(tmp_path) == 3
    save(tmp_path, 4)
    assert numbers(tmp_path) == [3, 4]
