"""The folder of a run: what is there already, the checkpoints, and the results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_sel.arrays import Arrays
from edge_sel.edge.outputs import files
from edge_sel.edge.outputs.history import write_history
from edge_sel.edge.outputs.identity import finished_run, unfinished_run
from edge_sel.edge.progress import Progress
from edge_sel.engines.base import Engine
from edge_sel.pack.reader import Pack
from edge_sel.runs.checkpoint import list_checkpoints, save_checkpoint
from edge_sel.runs.identity import Identity
from edge_sel.runs.state import flatten
from edge_sel.runs.tables import write_json


class RunFolder:
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
        files.write_weights(self.path / "weights.safetensors", weights, classes)
        files.write_model(self.path / "model.onnx", pack, weights, classes)
        files.verify_model(self.path / "model.onnx", engine.predictor(pack, weights), pack.manifest.model)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """``run.json``: from now on the run is finished."""
        write_json(self.path / "run.json", summary)
