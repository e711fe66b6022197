"""A pack that is damaged, incomplete, foreign or hostile is one PackError, never a traceback and never accepted."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edge_sel.errors import PackError
from edge_sel.pack.manifest import MANIFEST, WEIGHTS
from edge_sel.pack.reader import open_pack
from tests.pack.conftest import rewrite_manifest
from tests.tiny import tiny_pack

NAMES = (MANIFEST, WEIGHTS, *tiny_pack()[2])


def same(pack, reference) -> bool:
    return pack.manifest == reference.manifest and all(
        pack.graph(name) == reference.graph(name) for name in reference.manifest.files
    )


def flips(size: int, count: int, seed: int) -> list[tuple[int, int]]:
    """Positions (the first and last among them) and a non-zero mask for each."""
    rng = np.random.default_rng(seed)
    positions = {0, size - 1, *rng.integers(0, size, count).tolist()}
    return [(position, int(rng.integers(1, 256))) for position in sorted(positions)]


@pytest.mark.parametrize("name", NAMES)
def test_any_changed_byte_of_any_file_is_noticed(folder, name):
    reference = open_pack(folder)
    path = folder / name
    whole = path.read_bytes()
    accepted = 0
    for position, mask in flips(len(whole), 60, seed=len(name)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ mask]) + whole[position + 1 :])
        try:
            pack = open_pack(folder)
        except PackError as error:
            assert error.where == str(folder) and error.fix
        else:
            # Only another way to write the same JSON: white space, or 1E-05 for 1e-05.
            assert name == MANIFEST and same(pack, reference), position
            accepted += 1
    assert accepted < 6


def test_any_changed_byte_of_a_packed_file_is_noticed_or_changes_nothing(tmp_path, contents):
    from edge_sel.pack.writer import write_pack

    path = tmp_path / "one.edgepack"
    write_pack(path, *contents)
    reference = open_pack(path)
    whole = path.read_bytes()
    directory = whole.index(b"PK\x01\x02")  # the central directory is small and holds most ways to confuse a reader
    positions = flips(directory, 80, 1) + [(directory + p, m) for p, m in flips(len(whole) - directory, 200, 2)]
    refused = 0
    for position, mask in positions:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ mask]) + whole[position + 1 :])
        try:
            pack = open_pack(path)
        except PackError as error:
            assert error.where == str(path)
            refused += 1
        else:
            assert same(pack, reference), position
    assert refused > len(positions) / 3


def test_a_file_cut_short_at_any_length_is_noticed(place, contents):
    victims = [place] if place.suffix else [place / name for name in NAMES]
    for path in victims:
        whole = path.read_bytes()
        for length in sorted({0, 1, 4, len(whole) // 3, len(whole) // 2, len(whole) - 22, len(whole) - 1}):
            path.write_bytes(whole[: max(0, length)])
            if path.name == MANIFEST and length == len(whole) - 1:
                open_pack(place)  # only the last line break is gone
                continue
            with pytest.raises(PackError):
                open_pack(place)
        path.write_bytes(whole)
    open_pack(place)


def test_bytes_behind_the_end_are_noticed(folder):
    for name in NAMES:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole + b"\0")
        with pytest.raises(PackError):
            open_pack(folder)
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(folder, tmp_path, name):
    with zipfile.ZipFile(tmp_path / "less.edgepack", "w") as archive:
        for path in folder.iterdir():
            if path.name != name:
                archive.write(path, path.name)
    (folder / name).unlink()
    for place in (folder, tmp_path / "less.edgepack"):
        with pytest.raises(PackError, match=name.replace(".", r"\.")):
            open_pack(place)
    (folder / name).mkdir()  # and a folder of that name does not count
    with pytest.raises(PackError):
        open_pack(folder)


def test_two_files_that_changed_places_are_noticed(folder):
    first, second = folder / "train-head.onnx", folder / "train-full.onnx"
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(PackError, match="damaged"):
        open_pack(folder)


def test_files_that_the_manifest_does_not_list_are_ignored(folder, tmp_path):
    reference = open_pack(folder)
    (folder / "README.txt").write_text("hello")
    (folder / "more").mkdir()
    (folder / "more" / "weights.safetensors").write_text("none")
    assert same(open_pack(folder), reference)
    with pytest.raises(KeyError):
        open_pack(folder).graph("README.txt")
    with zipfile.ZipFile(tmp_path / "more.edgepack", "w") as archive:
        for path in folder.iterdir():
            if path.is_file():
                archive.write(path, path.name)
        archive.writestr("../escape.txt", "x")
    assert same(open_pack(tmp_path / "more.edgepack"), reference)
    assert not (tmp_path.parent / "escape.txt").exists()


def test_a_place_without_a_manifest_is_no_pack(tmp_path):
    with pytest.raises(PackError, match=r"no such pack.*edge-sel export"):
        open_pack(tmp_path / "none")
    with pytest.raises(PackError, match=r"no manifest\.json"):
        open_pack(tmp_path)
    with zipfile.ZipFile(tmp_path / "empty.edgepack", "w"):
        pass
    with pytest.raises(PackError, match=r"no manifest\.json"):
        open_pack(tmp_path / "empty.edgepack")


@pytest.mark.parametrize("content", (b"", b"hello", b"PK\x03\x04" + b"\0" * 100, b"PK\x05\x06" + b"\xff" * 18))
def test_a_file_that_is_no_zip_is_refused(tmp_path, content):
    path = tmp_path / "one.edgepack"
    path.write_bytes(content)
    with pytest.raises(PackError):
        open_pack(path)


OUTSIDE = ("../secret", "sub/secret", "/tmp/secret", "..\\secret", "sub\\secret", "..", ".", "", "./secret", "secret/")


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside_are_refused_unread(folder, tmp_path, monkeypatch, name):
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "sub").mkdir()
    (folder / "sub" / "secret").write_bytes(b"secret")
    info = json.loads((folder / MANIFEST).read_text())["files"][WEIGHTS]
    rewrite_manifest(folder, lambda body: body["files"].update({name: info}))
    opened = []
    read = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(Path(path)) or read(path, *rest))
    with pytest.raises(PackError, match="outside the pack"):
        open_pack(folder)
    assert {p.parent for p in opened} <= {folder} and {p.name for p in opened} <= set(NAMES)
    with zipfile.ZipFile(tmp_path / "hostile.edgepack", "w") as archive:
        for path in folder.iterdir():
            if path.is_file():
                archive.write(path, path.name)
        if name:
            archive.writestr(name, b"secret")
    with pytest.raises(PackError, match="outside the pack"):
        open_pack(tmp_path / "hostile.edgepack")


@pytest.mark.parametrize("key", ("train", "score"))
def test_a_plan_may_only_name_listed_files(folder, key):
    (folder.parent / "other.onnx").write_bytes(b"x")
    rewrite_manifest(folder, lambda body: body["plans"]["head"].update({key: "../other.onnx"}))
    with pytest.raises(PackError, match=r"does not list \.\./other\.onnx"):
        open_pack(folder)


@pytest.mark.parametrize("name", (WEIGHTS, "eval.onnx", "train-head.onnx"))
def test_a_manifest_that_forgets_a_needed_file_is_refused(folder, name):
    def forget(body):
        del body["files"][name]

    rewrite_manifest(folder, forget)
    with pytest.raises(PackError, match=f"does not list {name}"):
        open_pack(folder)


def test_what_may_not_be_read_is_a_pack_error(place, monkeypatch):
    def denied(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(PackError, match="Permission denied"):
        open_pack(place)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs POSIX permissions")
@pytest.mark.parametrize("locked", ("the pack", "a file in it", "the folder above"))
def test_permissions_that_forbid_reading_are_a_pack_error(place, locked):
    inside = place / WEIGHTS if place.is_dir() else place
    victim = {"the pack": place, "the folder above": place.parent, "a file in it": inside}[locked]
    parents = [*place.parents][:3]
    modes = {path: path.stat().st_mode for path in (*parents, victim)}
    user = os.geteuid()
    try:
        for path in parents:
            path.chmod(0o755)
        victim.chmod(0)
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(PackError):
            open_pack(place)
    finally:
        os.seteuid(user)
        for path, mode in modes.items():
            path.chmod(mode)
    open_pack(place)
