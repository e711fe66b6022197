"""What every engine does: score a batch, make one masked update, hand out and take back its whole state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from edge_sel.arrays import Arrays, Range
from edge_sel.pack.manifest import PlanInfo
from edge_sel.pack.reader import Pack

Predict = Callable[[np.ndarray], np.ndarray]
"""Images [N, 3, H, W] float32 to logits [N, classes]."""

Backbone = Callable[[np.ndarray], np.ndarray]
"""Images [N, 3, H, W] float32 to features [N, …] float32, a row per image."""


class Batch(NamedTuple):
    """Normalised images [N, 3, H, W] float32, labels [N] int64, loss weights [N] float32.

    Where the engine has a backbone for the plan, ``images`` are the features [N, …] that it makes of them.
    """

    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Hyper:
    """Run-time scalars of a step; ``gamma`` below zero switches the guilt mask off."""

    learning_rate: float
    gamma: float = -1.0
    momentum: float = 0.9
    bn_momentum: float = 0.1


class Scores(NamedTuple):
    """Per-sample cross-entropy [N] and logits [N, classes]."""

    losses: np.ndarray
    logits: np.ndarray


class StepResult(NamedTuple):
    """Scores from the step's own forward pass, and how many gradient elements passed the guilt mask."""

    losses: np.ndarray
    logits: np.ndarray
    kept: int
    computed: int


class Trainer(Protocol):
    """One plan's training state on one engine. Not safe for use from several threads.

    What it calls images are features where the engine has a backbone for the plan.
    """

    plan: PlanInfo

    def score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        """Forward only, with the current weights and running statistics."""

    def step(self, batch: Batch, hyper: Hyper) -> StepResult:
        """One update. Losses and logits are those before the update."""

    def guilt(self, batch: Batch) -> Arrays:
        """Gradient norm of each row [O] of what ``measured`` tells: output channels, attention; changes nothing."""

    def set_channels(self, channels: Mapping[str, np.ndarray]) -> None:
        """Choose the guilty output channels (rows of heads) of a budgeted plan: weight → sorted int64 [k].

        A channel that leaves keeps its weights and its optimizer state, and goes on from them when it returns.
        """

    def weights(self) -> Arrays:
        """Copies of every weight and running statistic that the plan changes."""

    def state(self) -> Arrays:
        """Copies of everything a later ``load_state`` needs to continue to the bit."""

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a saved state."""


class Engine(Protocol):
    """A way to execute a pack's graphs.

    The ``weights`` given to it are never changed, but may be read until what was made from them is gone.
    """

    name: str

    def trainer(self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray]) -> Trainer:
        """Start a plan from the given full set of weights."""

    def backbone(
        self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray], *, int8: Range | None = None
    ) -> Backbone | None:
        """The plan's frozen backbone with the given full set of weights; None if the plan's trainer takes images.

        That is so where the plan has none, and in an engine that always computes the whole network. With ``int8``, the
        range of normalised images, its quantized variant; None where it has none.
        """

    def predictor(self, pack: Pack, weights: Mapping[str, np.ndarray]) -> Predict:
        """Inference with the given full set of weights."""


def measured(plan: PlanInfo, name: str, ndim: int) -> bool:
    """Whether the guilt of this weight's rows is of interest: kernels, and queries, keys and values of attention."""
    return ndim == 4 or name in plan.heads


def computed_elements(plan: PlanInfo, weights: Mapping[str, np.ndarray]) -> int:
    """How many gradient elements a step of the plan computes."""
    return sum(plan.channels[n] * weights[n][0].size if n in plan.channels else weights[n].size for n in plan.trainable)


class GuiltyChannels:
    """Which channels of a plan's limited weights take part, and how many steps the plan and each channel made.

    Until guilt has been measured they are the first k of each weight.

    Attributes:
        index: weight → int64 [k], the chosen channels.
        steps: weight → int64 [O], the steps of every channel so far: what Adam corrects its moments by.
        made: the steps of the plan.
    """

    def __init__(self, plan: PlanInfo, weights: Mapping[str, np.ndarray]) -> None:
        self.index: Arrays = {name: np.arange(count, dtype=np.int64) for name, count in plan.channels.items()}
        self.steps: Arrays = {name: np.zeros(len(weights[name]), np.int64) for name in plan.channels}
        self.made = 0

    def choose(self, channels: Mapping[str, np.ndarray]) -> None:
        """Take these from now on."""
        self.index = {name: np.ascontiguousarray(channels[name], np.int64) for name in self.index}

    def next_steps(self) -> Arrays:
        """Weight → float32 [k]: the count of each chosen channel, with the step that is about to be made."""
        return {name: (self.steps[name][index] + 1).astype(np.float32) for name, index in self.index.items()}

    def advance(self) -> None:
        """A step was made."""
        self.made += 1
        for name, index in self.index.items():
            self.steps[name][index] += 1

    def state(self) -> Arrays:
        """Copies of all, as ``index::WEIGHT``, ``steps::WEIGHT`` and ``steps``."""
        saved = {f"index::{name}": index.copy() for name, index in self.index.items()}
        saved |= {f"steps::{name}": steps.copy() for name, steps in self.steps.items()}
        return {**saved, "steps": np.array(self.made, np.int64)}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a saved state, of which these are a part."""
        self.choose({name: state[f"index::{name}"].copy() for name in self.index})
        self.steps = {name: state[f"steps::{name}"].copy() for name in self.steps}
        self.made = int(state["steps"])
