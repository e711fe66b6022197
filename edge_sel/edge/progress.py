"""Everything that changes while a session runs. What is here is in the checkpoint; nothing else may matter."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.edge.batch_limit import BatchLimit
from edge_sel.edge.energy import Spent
from edge_sel.edge.train.state import StageState, TrainingMemory, start_memory
from edge_sel.sel.sundew import SundewState


class Predictions(NamedTuple):
    """Logits of the validation images, float32 [N, C]; empty before they are known.

    ``before`` by the model as it came, ``best`` by the weights to keep, ``latest`` after the latest epoch. A head that
    was fitted in closed form gives more: ``left_out``, float32 [M, C], of the training images ``left_out_of``, each
    under the head that was fitted without it, and ``left_out_before``, by the model as it came.
    """

    before: np.ndarray
    best: np.ndarray
    latest: np.ndarray
    left_out: np.ndarray
    left_out_of: np.ndarray
    left_out_before: np.ndarray


def no_logits() -> np.ndarray:
    """Of no image."""
    return np.zeros((0, 0), np.float32)


def no_predictions() -> Predictions:
    """Before the first look."""
    none = no_logits()
    return Predictions(none, none, none, none, np.zeros(0, np.int64), none)


@dataclass(frozen=True)
class Progress:
    """The state of a session at a step boundary.

    The session alone replaces it. A stage writes into ``stage``, ``memory`` and ``batch_limit``, and into nothing else.

    Attributes:
        weights: every weight as of the best finished stage.
        memory: what training remembers of images and classes.
        stage: where the current stage stands.
        stages_done: finished stages.
        history: an entry for every finished epoch.
        decisions: what the ladder chose, stage by stage, and why.
        before: figures of the model as it came; empty before it was looked at.
        latest_validation: figures of the validation set after the latest epoch.
        best_validation: those of ``weights``.
        predictions: what these figures are made of.
        forecast: what the governor expects a step and the end to take.
        batch_limit: most images in a batch, by what has fitted into memory.
        epoch_spent: joules of the current epoch, ``run_spent`` of the run.
    """

    weights: Arrays
    memory: TrainingMemory
    stage: StageState = field(default_factory=StageState)
    stages_done: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    latest_validation: dict[str, Any] = field(default_factory=dict)
    best_validation: dict[str, Any] = field(default_factory=dict)
    predictions: Predictions = field(default_factory=no_predictions)
    forecast: dict[str, float | None] = field(default_factory=dict)
    batch_limit: BatchLimit = field(default_factory=BatchLimit)
    epoch_spent: Spent = field(default_factory=Spent)
    run_spent: Spent = field(default_factory=Spent)

    def latest_weights(self) -> Arrays:
        """Every weight as of the moment that was saved, inside a stage too."""
        return {name: self.stage.trainer.get(name, value) for name, value in self.weights.items()}

    def with_test_of_best(self, accuracy: float) -> Progress:
        """With what the weights of the best epoch get right of the test images, 0..1, in that epoch's entry."""
        best = self.best_validation.get("epoch")
        history = [e | {"test_full": accuracy} if n == best else e for n, e in enumerate(self.history, 1)]
        return replace(self, history=history)


def start_progress(weights: Arrays, images: int, classes: int, gate: SundewState) -> Progress:
    """The state before anything has happened."""
    return Progress(weights, start_memory(images, classes, gate))
