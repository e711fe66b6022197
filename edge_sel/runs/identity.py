"""What a run is a run of: a run with another identity is never continued or overwritten."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from edge_sel.errors import UsageError

Identity = dict[str, Any]


def require_same(found: Mapping[str, Any], wanted: Identity, where: Path, ignored: Collection[str] = ()) -> None:
    """Compare the identity of the run at ``where`` with that of the run to continue.

    Args:
        found: as it was stored.
        wanted: of the run to continue; every value survives JSON.
        where: for the message.
        ignored: keys that may differ.

    Raises:
        UsageError: they differ; names the keys.
    """
    different = [key for key, value in wanted.items() if key not in ignored and found.get(key) != value]
    if different:
        raise UsageError(
            f"cannot resume, these are not what the run began with: {', '.join(different)}",
            where=where,
            fix="give the same options and images, or another --out",
        )
