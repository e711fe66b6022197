"""Everything that changes while a session runs. What is here is in the checkpoint; nothing else may matter."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.power.figure import EnergyFigure
from edge_sel.sel import hardness, selection, sundew
from edge_sel.sel.embarrassment import EmbarrassmentSums, init_sums
from edge_sel.sel.hardness import HardnessState
from edge_sel.sel.selection import Ages
from edge_sel.sel.sundew import SundewState


@dataclass
class Tally:
    """Sums over the current epoch."""

    candidates: int = 0
    passed: int = 0
    trained: int = 0
    steps: int = 0
    correct: int = 0
    loss_sum: float = 0.0
    kept: int = 0
    computed: int = 0
    forwards: int = 0
    prefixed: int = 0
    probe_flops: int = 0
    last_loss: float = float("nan")


@dataclass
class Spent:
    """Joules so far, over all resumed parts of the run; ``source`` is that of the weakest part."""

    total_j: float | None = 0.0
    net_j: float | None = 0.0
    seconds: float = 0.0
    source: str | None = None
    uncertainty_j: float | None = 0.0
    phases: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """``total_j``, ``net_j`` and ``seconds`` of load, prefix, score, train, evaluate, checkpoint, idle and other."""

    def plus(self, figure: EnergyFigure) -> Spent:
        """With another stretch added; unknown plus anything is unknown."""
        order = (None, "measured", "modelled", "unavailable")
        phases = dict(self.phases)
        for name, part in figure.phases.items():
            before = phases.get(name, {"total_j": 0.0, "net_j": 0.0, "seconds": 0.0})
            more = {"total_j": part.total_j, "net_j": part.net_j, "seconds": part.seconds}
            phases[name] = {key: _sum(before[key], more[key]) for key in more}
        return Spent(
            total_j=_sum(self.total_j, figure.total_j),
            net_j=_sum(self.net_j, figure.net_j),
            seconds=self.seconds + figure.seconds,
            source=max(self.source, figure.source, key=order.index),
            uncertainty_j=_sum(self.uncertainty_j, figure.uncertainty_j),
            phases=phases,
        )


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


@dataclass
class Progress:
    """The state of a session at a step boundary.

    Attributes:
        rung: finished rungs.
        epoch: finished epochs of the current rung.
        stage: curriculum stage of the current rung; ``stage_epoch`` counts its finished epochs.
        cursor: candidates of the current epoch that have been dealt with.
        step: steps of the current rung.
        queue: images that passed the gate and wait for a full batch, and the weights of their losses.
        ages: gate decisions that each image has waited for.
        weights: every weight as of the last finished rung.
        trainer: the engine's state inside a rung; empty between rungs.
        precision: of the current rung's frozen prefix, "fp32" or "int8"; empty before the choice.
        featured: which features of the current rung's frozen prefix have been computed and kept; see ``Features``.
        pool_loss: loss of every image at the start of the rung (orders the curriculum).
        outlook: what the governor expects a step and the end to take.
        decisions: what the ladder chose, rung by rung, and why.
        rung_plan: the plan of the rung it stands in, empty between rungs; ``rung_epochs`` how many it was given.
        latest_guard: figures of the guard set after the latest epoch; ``best_guard`` those of ``weights``.
        class_e: last known E_c of training; NaN before the first.
    """

    weights: Arrays
    memory: HardnessState
    entropy: np.ndarray
    gate: SundewState
    ages: Ages
    rung: int = 0
    epoch: int = 0
    stage: int = 0
    stage_epoch: int = 0
    cursor: int = 0
    step: int = 0
    queue: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    queue_weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    trainer: Arrays = field(default_factory=dict)
    pool_loss: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    featured: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    class_e: np.ndarray = field(default_factory=lambda: np.zeros(0))
    sums: EmbarrassmentSums = field(default_factory=lambda: init_sums(0))
    tally: Tally = field(default_factory=Tally)
    history: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    precision: str = ""
    rung_plan: str = ""
    rung_epochs: int = 0
    latest_guard: dict[str, Any] = field(default_factory=dict)
    best_guard: dict[str, Any] = field(default_factory=dict)
    outlook: dict[str, float | None] = field(default_factory=dict)
    epoch_spent: Spent = field(default_factory=Spent)
    run_spent: Spent = field(default_factory=Spent)

    def latest_weights(self) -> Arrays:
        """Every weight as of the moment that is saved here, inside a rung too."""
        return {name: self.trainer.get(name, value) for name, value in self.weights.items()}


_SCALARS = (
    "rung", "epoch", "stage", "stage_epoch", "cursor", "step", "history", "decisions", "before", "outlook", "rung_plan",
    "rung_epochs", "latest_guard", "best_guard", "precision",
)  # fmt: skip
_ARRAYS = ("entropy", "queue", "queue_weights", "pool_loss", "featured", "class_e")


def start_progress(weights: Arrays, images: int, classes: int, gate: SundewState) -> Progress:
    """The state before anything has happened."""
    return Progress(
        weights=weights,
        memory=hardness.init(images),
        entropy=np.zeros(images, np.float32),
        gate=gate,
        ages=selection.init_ages(images),
        class_e=np.full(classes, np.nan),
        sums=init_sums(classes),
    )


def to_tensors(progress: Progress) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and JSON-able scalars; floats survive JSON exactly (shortest round-trip repr)."""
    tensors = {f"weights/{name}": value for name, value in progress.weights.items()}
    tensors |= {f"trainer/{name}": value for name, value in progress.trainer.items()}
    tensors |= {f"memory/{name}": value for name, value in progress.memory._asdict().items()}
    tensors |= {f"sums/{name}": value for name, value in progress.sums._asdict().items()}
    tensors |= {f"gate/{name}": np.asarray(value) for name, value in progress.gate._asdict().items()}
    tensors |= {f"ages/{name}": value for name, value in progress.ages._asdict().items()}
    tensors |= {f"array/{name}": getattr(progress, name) for name in _ARRAYS}
    scalars = {name: getattr(progress, name) for name in _SCALARS}
    scalars |= {name: asdict(getattr(progress, name)) for name in ("tally", "epoch_spent", "run_spent")}
    return tensors, scalars


def from_tensors(tensors: Arrays, scalars: dict[str, Any]) -> Progress:
    """The inverse of ``to_tensors``."""

    def part(prefix: str) -> Arrays:
        return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}

    return Progress(
        weights=part("weights/"),
        trainer=part("trainer/"),
        memory=hardness.HardnessState(**part("memory/")),
        gate=sundew.SundewState(**part("gate/")),
        ages=Ages(**part("ages/")),
        sums=EmbarrassmentSums(**part("sums/")),
        **cast("dict[str, Any]", part("array/")),
        **{name: scalars[name] for name in _SCALARS},
        tally=Tally(**scalars["tally"]),
        epoch_spent=Spent(**scalars["epoch_spent"]),
        run_spent=Spent(**scalars["run_spent"]),
    )
