"""Writing a pack replaces an old one whole or not at all, and nothing that is no pack."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path

import pytest

from edge_sel.errors import SetupError, UsageError
from edge_sel.pack.manifest import MANIFEST, WEIGHTS
from edge_sel.pack.reader import open_pack
from edge_sel.pack.writer import write_pack


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("interruption", (OSError(28, "No space left on device"), KeyboardInterrupt()))
def test_an_interrupted_move_leaves_the_old_pack(place, contents, monkeypatch, interruption):
    manifest, weights, graphs = contents
    before = tree(place.parent)
    for moves_that_work in range(1 if place.suffix else 2):  # a folder takes two: the old one away, the new one in
        left = moves_that_work
        for move in (Path.rename, Path.replace):

            def interrupted(self, target, move=move):
                nonlocal left
                left -= 1
                if left == -1:
                    raise interruption
                return move(self, target)

            monkeypatch.setattr(Path, move.__name__, interrupted)
        with pytest.raises(SetupError if isinstance(interruption, OSError) else KeyboardInterrupt) as error:
            write_pack(place, manifest, {n: v + 1 for n, v in weights.items()}, graphs)
        monkeypatch.undo()
        assert left < 0, "the move was never tried"
        assert tree(place.parent) == before and [p.name for p in place.parent.iterdir()] == [place.name]
        open_pack(place)
        if isinstance(interruption, OSError):
            assert "cannot be written" in str(error.value) and "No space left" in str(error.value)


def test_an_interrupted_write_leaves_the_old_pack(place, contents, monkeypatch):
    before = tree(place.parent)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    monkeypatch.setattr(zipfile.ZipFile, "writestr", full_disk)
    with pytest.raises(SetupError, match="No space left"):
        write_pack(place, *contents)
    monkeypatch.undo()
    assert tree(place.parent) == before and [p.name for p in place.parent.iterdir()] == [place.name]


def test_a_new_pack_replaces_an_old_one_whole(place, contents):
    manifest, weights, graphs = contents
    fewer = dataclasses.replace(manifest, plans={"head": manifest.plans["head"]})
    slim = {n: g for n, g in graphs.items() if "full" not in n}
    write_pack(place, fewer, {n: v + 1 for n, v in weights.items()}, slim)
    pack = open_pack(place)
    assert pack.manifest.files.keys() == {WEIGHTS, *slim}
    assert (pack.weights()["head.bias"] == weights["head.bias"] + 1).all()
    if place.is_dir():
        assert {p.name for p in place.iterdir()} == {MANIFEST, WEIGHTS, *slim}
    assert [p.name for p in place.parent.iterdir()] == [place.name]


def test_an_empty_folder_may_become_a_pack(tmp_path, contents):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "not" / "yet" / "there"):
        write_pack(place, *contents)
        assert {path.name for path in place.iterdir()} == {MANIFEST, *open_pack(place).manifest.files}


@pytest.mark.parametrize("name", ("pack", "one.edgepack"))
def test_a_place_that_cannot_be_written(tmp_path, contents, name):
    (tmp_path / "file").write_text("a file is no folder")
    with pytest.raises(SetupError, match="cannot be written"):
        write_pack(tmp_path / "file" / name, *contents)
    assert (tmp_path / "file").read_text() == "a file is no folder"


def test_something_else_is_not_overwritten(tmp_path, contents):
    with zipfile.ZipFile(tmp_path / "thesis.edgepack", "w") as archive:
        archive.writestr("thesis.txt", "three years")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / MANIFEST).write_text("{}")
    before = tree(tmp_path)
    for name in ("thesis.edgepack", "site"):
        with pytest.raises(UsageError, match="is not a pack"):
            write_pack(tmp_path / name, *contents)
    assert tree(tmp_path) == before


def test_files_have_ordinary_permissions(place):
    umask = os.umask(0)
    os.umask(umask)
    for path in [place, *place.rglob("*")]:
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert path.stat().st_mode & 0o777 == wanted, path
