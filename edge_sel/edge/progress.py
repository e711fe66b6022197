"""Everything that changes while a session runs. What is here is in the checkpoint; nothing else may matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.edge.energy import Spent
from edge_sel.edge.memory import BatchLimit
from edge_sel.engines.base import StepResult
from edge_sel.pack.manifest import ModelInfo
from edge_sel.pack.reader import Pack
from edge_sel.sel import hardness, selection
from edge_sel.sel.embarrassment import EmbarrassmentSums, entropy, init_sums
from edge_sel.sel.hardness import HardnessState
from edge_sel.sel.selection import Ages
from edge_sel.sel.sundew import SundewState

# --- Weights


START = 0.1
"""Of a new class's logit where ReLU makes the logits."""


def extend_head(weights: Mapping[str, np.ndarray], model: ModelInfo, classes: int) -> dict[str, np.ndarray]:
    """The weights with a head of ``classes`` logits; new rows are the mean of the known ones.

    The mean row starts a new class at the average logit: it neither wins nor loses everywhere before it was trained.
    Behind ReLU the average logit is mostly below 0, where nothing is learnt; the new row makes ``START`` of any image.

    Args:
        weights: of a whole model.
        model: whose C classes and whose head they are: weights [C, F] or [C, F, 1, 1], biases [C].
        classes: how many logits are wanted, at least C.
    """
    extended = dict(weights)
    for name in model.head:
        known = weights[name]
        mean = known.mean(0, keepdims=True)
        if model.rectified:
            mean = np.full_like(mean, START if known.ndim == 1 else 0.0)
        new = np.repeat(mean, classes - len(known), axis=0)
        extended[name] = np.concatenate([known, new.astype(known.dtype)])
    return extended


def changed_in(weights: Mapping[str, np.ndarray], pack: Pack) -> set[str]:
    """Which of the body's weights and statistics are no longer the pack's."""
    head = pack.manifest.model.head
    return {n for n, v in pack.weights().items() if n not in head and not np.array_equal(weights[n], v)}


def original_weights(pack: Pack, classes: int) -> dict[str, np.ndarray]:
    """The pack's weights, with room for the device's own classes."""
    return extend_head(pack.weights(), pack.manifest.model, classes)


# --- Training


HARDNESS_GAMMA = 0.9
"""Weight of a new loss in the hardness memory: on a device each image is seen a few times only."""


@dataclass
class EpochTotals:
    """Sums over the current epoch.

    Attributes:
        candidates: images that the gate was asked about; ``passed`` of them passed, ``trained`` were trained on.
        steps: updates.
        correct: images of ``trained`` that were classified correctly.
        loss_sum: of the same, nats.
        kept: gradient elements that passed the guilt mask, of ``computed``.
        scored: images that got a forward pass alone.
        backbone_images: images that went through the frozen backbone.
        probe_flops: of probing for guilty channels, or of the statistics before a head in closed form.
    """

    candidates: int = 0
    passed: int = 0
    trained: int = 0
    steps: int = 0
    correct: int = 0
    loss_sum: float = 0.0
    kept: int = 0
    computed: int = 0
    scored: int = 0
    backbone_images: int = 0
    probe_flops: int = 0

    def add(self, result: StepResult, labels: np.ndarray) -> None:
        """Another batch was trained on."""
        self.trained += len(labels)
        self.correct += int((result.logits.argmax(1) == labels).sum())
        self.loss_sum += float(result.losses.sum(dtype=np.float64))
        self.kept += result.kept
        self.computed += result.computed

    @property
    def accuracy(self) -> float:
        """Share of the images trained on that were classified correctly; NaN without any."""
        return self.correct / self.trained if self.trained else float("nan")

    @property
    def mean_loss(self) -> float:
        """In nats; NaN without any image."""
        return self.loss_sum / self.trained if self.trained else float("nan")


@dataclass
class StageState:
    """Where the current stage stands; a new one begins with a new object.

    Attributes:
        plan: of the stage; empty between two stages. ``epochs``: how many it was given.
        epoch: finished epochs.
        curriculum_stage: window of the curriculum; ``curriculum_epoch`` counts its finished epochs.
        cursor: candidates of the current epoch that have been dealt with.
        step: steps so far.
        queue: images that passed the gate and wait for a full batch, and the weights of their losses.
        trainer: the engine's state as of the latest checkpoint.
        pool_loss: loss of every image at the start (orders the curriculum); empty before that is known.
        featured: which features of the frozen backbone have been computed and kept; see ``FeatureCache``.
        left_out: logits of the images ``left_out_of`` under the head that was fitted without each; empty without such.
        left_out_begun: the same by the weights that the stage began with, where its features tell; else empty.
        guilt: of a plan with a budget, gradient norm of each channel or head, which the epoch's choice was made by.
        statistics: of a head in closed form, "old" or "new"; empty before the choice.
        precision: of the frozen backbone, "fp32" or "int8"; empty before the choice.
        sums: of embarrassment over the current epoch.
    """

    plan: str = ""
    epochs: int = 0
    epoch: int = 0
    curriculum_stage: int = 0
    curriculum_epoch: int = 0
    cursor: int = 0
    step: int = 0
    queue: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    queue_weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    trainer: Arrays = field(default_factory=dict)
    pool_loss: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    featured: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    left_out: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    left_out_of: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    left_out_begun: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    guilt: Arrays = field(default_factory=dict)
    statistics: str = ""
    precision: str = ""
    sums: EmbarrassmentSums = field(default_factory=lambda: init_sums(0))
    totals: EpochTotals = field(default_factory=EpochTotals)


@dataclass
class TrainingMemory:
    """What training remembers from stage to stage.

    Attributes:
        hardness: of every image.
        entropy: of the latest prediction for every image, float32 [N] in nats.
        ages: gate decisions that each image has waited for.
        gate: the gate's controller.
        class_e: last known E_c of training, float64 [classes]; NaN before the first.
        looks_like: the class that an image looks like where its label is in doubt, int64 [N]; -1 elsewhere.
        last_loss: mean loss of the latest batch, nats; NaN before the first.
    """

    hardness: HardnessState
    entropy: np.ndarray
    ages: Ages
    gate: SundewState
    class_e: np.ndarray
    looks_like: np.ndarray
    last_loss: float = float("nan")

    def remember(self, indices: np.ndarray, losses: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> None:
        """What a forward pass has told about these images [n]."""
        # On a first visit nothing is known that could be mixed with.
        gamma = np.where(self.hardness.seen[indices] == 0, 1.0, HARDNESS_GAMMA).astype(np.float32)
        correct = logits.argmax(1) == labels
        self.hardness = hardness.update(self.hardness, indices, losses, correct, gamma=gamma)
        self.entropy[indices] = entropy(logits)


def start_memory(images: int, classes: int, gate: SundewState) -> TrainingMemory:
    """The memory before anything has happened."""
    return TrainingMemory(
        hardness=hardness.init(images),
        entropy=np.zeros(images, np.float32),
        ages=selection.init_ages(images),
        gate=gate,
        class_e=np.full(classes, np.nan),
        looks_like=np.full(images, -1),
    )


# --- The session


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


NO_LOGITS = np.zeros((0, 0), np.float32)
"""Of no image."""
NO_PREDICTIONS = Predictions(NO_LOGITS, NO_LOGITS, NO_LOGITS, NO_LOGITS, np.zeros(0, np.int64), NO_LOGITS)
"""Before the first look."""


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
        decisions: what the schedule chose, stage by stage, and why.
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
    predictions: Predictions = NO_PREDICTIONS
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
