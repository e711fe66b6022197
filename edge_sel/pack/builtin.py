"""The pack that ships with edge-sel: a small digit classifier made by ``tools/make_builtin_pack.py``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from edge_sel.pack.keys import TrustedKeys
from edge_sel.pack.reader import Pack, open_pack


def builtin_pack(trusted: TrustedKeys | None = None) -> Pack:
    """Open the built-in pack; it is not signed, so PackError where that is required."""
    with resources.as_file(resources.files("edge_sel.pack") / "assets" / "digits.edgepack") as path:
        return open_pack(Path(path), trusted)
