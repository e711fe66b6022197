"""Finished runs as they lie on disk, ``OUT/<system>/seed-<n>/run.json``. Read without torch, so on a device too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RUN = "run.json"
_NEEDED = {"system", "seed", "scale", "label", "data_name", "weights", "summary", "identity", "rows"}
"""What comparing reads; a file without it is of something else, such as a fine-tune."""


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of one run; None if it is not over, or its file is none of ours."""
    try:
        found = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= _NEEDED else None


def list_results(out: Path) -> list[dict[str, Any]]:
    """The results of all finished runs in a folder, by system and seed."""
    found = [read_result(path.parent) for path in sorted(out.glob(f"*/seed-*/{RUN}"))]
    return [result for result in found if result is not None]
