"""A small pack on disk, as a folder and as one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_sel.pack.manifest import MANIFEST
from edge_sel.pack.writer import write_pack
from tests.tiny import tiny_pack


@pytest.fixture(scope="session")
def contents():
    """Manifest, weights and graphs."""
    return tiny_pack()


@pytest.fixture(params=("pack", "one.edgepack"))
def place(request, tmp_path: Path, contents) -> Path:
    """A freshly written pack, in both forms."""
    write_pack(tmp_path / request.param, *contents)
    return tmp_path / request.param


@pytest.fixture
def folder(tmp_path: Path, contents) -> Path:
    write_pack(tmp_path / "folder", *contents)
    return tmp_path / "folder"


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest's JSON and sign it again, as somebody who means to would."""
    body = json.loads((folder / MANIFEST).read_text())
    del body["digest"]
    replaced = change(body)
    body = body if replaced is None else replaced
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    (folder / MANIFEST).write_text(json.dumps({**body, "digest": hashlib.sha256(canonical).hexdigest()}))
