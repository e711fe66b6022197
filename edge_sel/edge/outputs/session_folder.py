"""The folder of a run: whether one is there and whether it is this one, its checkpoints, and its results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_sel import __version__
from edge_sel.arrays import Arrays
from edge_sel.config.settings import Resolved
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.outputs import model_files
from edge_sel.edge.outputs.history import write_history
from edge_sel.edge.progress import Progress
from edge_sel.engines.base import Engine
from edge_sel.errors import UsageError
from edge_sel.pack.reader import Pack
from edge_sel.runs.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from edge_sel.runs.flatten import flatten, unflatten
from edge_sel.runs.identity import Identity, require_same
from edge_sel.runs.tables import write_json

FILES = ("run.json", "history.csv", "events.jsonl", "model.onnx", "weights.safetensors")
"""What a session leaves behind, beside its checkpoints."""

MAY_CHANGE = {
    "engine", "spinning", "checkpoint_every_s", "meter", "require_measured", "energy_budget_j", "max_temp_c",
    "battery_floor", "deadline_s", "power_cap_w", "on_ac_only", "quiet_hours", "max_pixels",
}  # fmt: skip
"""Settings that a resumed run may be given anew: none of them says what is computed, the governor's only how far.

The engine is compared by the name of the one that runs, and the images that were decoded by theirs.
"""

TUNED = "tuned"
"""Key of an identity: what tuning gave the run. It is kept for those who resume, not compared: the values are."""


def identify(
    resolved: Resolved, pack: str, images: ImageSet, test: ImageSet | None, engine: str, expert: str | None = None
) -> Identity:
    """What the run is a run of; each value survives JSON."""
    values = {key: entry["value"] for key, entry in resolved.to_json().items() if key not in MAY_CHANGE}
    return {
        "edge_sel": __version__,
        "pack": pack,
        "images": images.fingerprint(),
        "test images": None if test is None else test.fingerprint(),
        "engine": engine,
        "expert": expert,
        **values,
        TUNED: {key: getattr(resolved.settings, key) for key, at in resolved.origins.items() if at == "tuned"},
    }


def tuned_at_start(out: Path) -> dict[str, Any] | None:
    """What tuning gave the run in ``out`` when it began; None if there is no run to resume.

    A run keeps these settings to its end, whatever is measured meanwhile.
    """
    try:
        return dict(json.loads((out / "run.json").read_text(encoding="utf-8"))["identity"].get(TUNED, {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        loaded = load_checkpoint(out / "checkpoints")
    return None if loaded is None else dict(loaded[2].get(TUNED, {}))


def finished_run(out: Path, identity: Identity) -> dict[str, Any] | None:
    """The result of the run that ended in ``out``; None if there is none, or a limit stopped it early.

    Raises:
        UsageError: it is not the result of this run.
    """
    path = out / "run.json"
    if not path.exists():
        return None
    try:
        finished: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found, stopped = dict(finished["identity"]), finished["stopped"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError("not the result of a run of edge-sel", where=path, fix="another --out") from error
    require_same(found, identity, out, ignored=(TUNED,))
    return finished if stopped == "done" else None


def unfinished_run(out: Path, identity: Identity, *, resume: bool) -> Progress | None:
    """The state to continue from; None if there is nothing here.

    Raises:
        UsageError: there is, but it is not to be resumed, or it is another run's.
    """
    folder = out / "checkpoints"
    used = any((out / name).exists() for name in FILES) or list_checkpoints(folder)
    if used and not resume:
        raise UsageError("the folder holds a run already", where=out, fix="--resume, or another --out")
    loaded = load_checkpoint(folder) if resume else None
    if loaded is None:
        return None
    tensors, scalars, found, path = loaded
    require_same(found, identity, path, ignored=(TUNED,))
    try:
        return unflatten(Progress, tensors, scalars)
    except (KeyError, TypeError) as error:
        what = f"the checkpoint is of another version of edge-sel ({error} is missing)"
        raise UsageError(what, where=path, fix="begin anew with another --out") from error


class SessionFolder:
    """One run's folder; looking at it changes nothing.

    Args:
        path: of the folder; it may not exist yet.
        identity: what the run is a run of.
        resume: whether a run that is there may be continued.

    Attributes:
        finished: the result of the run, if it has come to its end.
        found: where to continue; None if there is nothing to continue from.
        damaged: there are checkpoints, and none of them can be read.

    Raises:
        UsageError: the folder holds another run, or one that is not to be continued.
    """

    def __init__(self, path: Path, identity: Identity, *, resume: bool) -> None:
        self.path, self._identity = path, identity
        self.finished = finished_run(path, identity) if resume else None
        self.found = None if self.finished else unfinished_run(path, identity, resume=resume)
        checkpoints = list_checkpoints(path / "checkpoints")
        self.damaged = self.finished is None and self.found is None and bool(checkpoints)

    def save(self, progress: Progress) -> str:
        """Write a checkpoint; its name."""
        return save_checkpoint(self.path / "checkpoints", *flatten(progress), self._identity).name

    def write_history(self, progress: Progress, classes: tuple[str, ...]) -> None:
        """``history.csv``."""
        write_history(self.path / "history.csv", progress.history, classes)

    def write_model(self, pack: Pack, engine: Engine, weights: Arrays, classes: tuple[str, ...]) -> None:
        """``weights.safetensors`` and ``model.onnx``, which is loaded once to see that it computes the same."""
        model_files.write_weights(self.path / "weights.safetensors", weights, classes)
        model_files.write_model(self.path / "model.onnx", pack, weights, classes)
        model_files.verify_model(self.path / "model.onnx", engine.predictor(pack, weights), pack.manifest.model)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """``run.json``: from now on the run is finished."""
        write_json(self.path / "run.json", summary)
