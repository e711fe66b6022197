"""Packs that somebody meant to be harmful: every hash is right, so that only the closed description can refuse them."""

from __future__ import annotations

import functools
import hashlib
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from edge_sel.errors import PackError
from edge_sel.pack import reader
from edge_sel.pack.manifest import MANIFEST, WEIGHTS
from edge_sel.pack.reader import open_pack

BUILTIN = Path(reader.__file__).parent / "assets" / "digits.edgepack"
Files = dict[str, bytes]
MOST_CPU_S = 2.0


@functools.cache
def _unpacked() -> Files:
    with zipfile.ZipFile(BUILTIN) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def builtin_files() -> tuple[Files, dict[str, Any]]:
    """The built-in pack: its files, and its manifest without the digest."""
    files = dict(_unpacked())
    body = json.loads(files.pop(MANIFEST))
    del body["digest"]
    return files, body


def sealed(files: Files, body: dict[str, Any]) -> Files:
    """All files with a manifest whose sizes, hashes and digest are right."""
    listed = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()}
    body = {**body, "files": listed}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    manifest = json.dumps({**body, "digest": hashlib.sha256(canonical).hexdigest()}).encode()
    return {**files, MANIFEST: manifest}


def write_zip(path: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_folder(path: Path, files: Files) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def with_graph(name: str, change: Callable[[onnx.ModelProto], object]) -> Files:
    """The built-in pack with one graph changed."""
    files, body = builtin_files()
    model = onnx.load_model_from_string(files[name])
    change(model)
    return sealed({**files, name: model.SerializeToString()}, body)


def with_file(name: str, content: bytes) -> Files:
    files, body = builtin_files()
    return sealed({**files, name: content}, body)


def with_manifest(change: Callable[[dict[str, Any]], object]) -> Files:
    files, body = builtin_files()
    change(body)
    return sealed(files, body)


def split_tensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def join_tensors(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_header(change: Callable[[dict[str, Any]], object], name: str = WEIGHTS) -> Files:
    """The built-in pack with the header of its weights, or anchors, changed."""
    header, data = split_tensors(builtin_files()[0][name])
    change(header)
    return with_file(name, join_tensors(header, data))


def refused(path: Path, *words: str) -> None:
    before_s = time.process_time()
    with pytest.raises(PackError) as caught:
        open_pack(path)
    line = str(caught.value)
    assert time.process_time() - before_s < MOST_CPU_S
    assert "\n" not in line and line.isprintable() and len(line) < 1500, line
    assert caught.value.exit_code == 4 and str(path) in line
    for word in words:
        assert word in line, (word, line)
