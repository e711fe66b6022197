"""What training changes while it runs: the state of the stage it stands in, and what it remembers of the images."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.engines.base import StepResult
from edge_sel.sel import hardness, selection
from edge_sel.sel.embarrassment import EmbarrassmentSums, entropy, init_sums
from edge_sel.sel.hardness import HardnessState
from edge_sel.sel.selection import Ages
from edge_sel.sel.sundew import SundewState

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
        prefixed: images that went through the frozen backbone.
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
    prefixed: int = 0
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
