"""What a session is a session of, and what of it may change when it is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_sel.config.settings import Resolved
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.outputs.learnt import Learnt
from edge_sel.pack.manifest import WEIGHTS
from edge_sel.pack.reader import Pack
from edge_sel.runs.checkpoint import Identity, require_same
from edge_sel.version import __version__

MAY_CHANGE = {
    "engine", "device", "spinning", "checkpoint_every_s", "meter", "require_measured", "energy_budget_j", "max_temp_c",
    "battery_floor", "deadline_s", "power_cap_w", "on_ac_only", "quiet_hours", "max_pixels", "require_signature",
    "feature_store", "feature_store_mb",
}  # fmt: skip
"""Settings that a resumed run may be given anew: none of them says what is computed, the governor's only how far.

The engine is told by the name of the one that runs, and the images that were decoded are compared by theirs. Which keys
may have signed may change, as keys do; ``SIGNED`` sees to it that a signature is required as long as it was.
"""

ENGINE = "engine"
"""Key of an identity: every engine goes on from the state of another, though not with the same last bits."""

TUNED = "tuned"
"""Key of an identity: what tuning gave the run. It is kept for those who resume, not compared: the values are."""
SIGNED = "--require-signature"
"""Key of an identity: whether a signature was required. A run goes on under the same requirement or a new one."""


def identify(
    resolved: Resolved, pack: Pack, images: ImageSet, test: ImageSet | None, engine: str, expert: str | None = None,
    learnt: Learnt | None = None,
) -> Identity:  # fmt: skip
    """What the run is a run of; each value survives JSON."""
    values = {key: entry["value"] for key, entry in resolved.to_json().items() if key not in MAY_CHANGE}
    return {
        "edge_sel": __version__,
        "pack": pack.digest,
        "from": None if pack.begun_from is None else pack.manifest.files[WEIGHTS].sha256[:16],
        "learnt": None if learnt is None else learnt.digest,
        "images": images.fingerprint(),
        "test images": None if test is None else test.fingerprint(),
        ENGINE: engine,
        "expert": expert,
        **values,
        SIGNED: True if resolved.settings.require_signature else None,  # null in runs of before there were signatures
        TUNED: {key: getattr(resolved.settings, key) for key, at in resolved.origins.items() if at == "tuned"},
    }


def require_same_session(found: Mapping[str, Any], identity: Identity, where: Path) -> None:
    """As ``require_same``; the engine may change, and a signature be required that was not."""
    ignored = (TUNED, ENGINE, SIGNED) if identity[SIGNED] else (TUNED, ENGINE)
    require_same(found, identity, where, ignored=ignored)
