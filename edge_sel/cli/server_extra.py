"""The one check that server commands share: is torch here?"""

from __future__ import annotations

import importlib.util

from edge_sel.errors import SetupError


def require_server_extra(command: str) -> None:
    """Raise SetupError, naming the pip command, when the server extra is not installed."""
    missing = [name for name in ("torch", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(f"`edge-sel {command}` needs {' and '.join(missing)}", fix="pip install 'edge-sel[server]'")
