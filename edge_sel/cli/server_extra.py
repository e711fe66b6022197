"""The one check that server commands share: is torch here?"""

from __future__ import annotations

import importlib.util

from edge_sel.errors import SetupError


def require_server_extra(command: str, *packages: str) -> None:
    """Raise SetupError, naming the pip command, when these packages of the server extra are missing; none: all."""
    missing = [name for name in packages or ("torch", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(f"`edge-sel {command}` needs {' and '.join(missing)}", fix="pip install 'edge-sel[server]'")
