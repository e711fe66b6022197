"""Staged Embarrassment Learning: windows from easy to hard, and gradients below the guilt threshold set to zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edge_sel.reference.policy import Policy, Pool, RunView
from edge_sel.reference.setup import Schedule
from edge_sel.sel.curriculum import SAMPLES_PER_CLASS, Stage, scale_epochs, stage_passed, stage_pool
from edge_sel.sel.guilt import calibrate_gamma, decayed_gamma, element_mask, kept_fraction

_CALIBRATION_IMAGES = 256
_PATIENCE = 2
"""A stage that does not reach its threshold is left after this many times its epochs, or the run might never end."""


class Sel(Policy):
    """Warmup epochs, if any; then difficulties and gamma from the model as it is; then the stages.

    Args:
        stages: windows, thresholds and epochs.
        percentile: of the gradient magnitudes that becomes gamma; None masks nothing.
        warmup_epochs: dense ones before.
        warmup_share: of the images that each of those visits.
        thresholds: whether a stage must reach its training accuracy before the next begins.
        schedule: of the stages; None keeps the setup's.

    Source: SEL README v3 (thresholds, p20), SEL benchmark README (p40, warmup).
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        percentile: float | None,
        warmup_epochs: int = 0,
        warmup_share: float = 0.2,
        thresholds: bool = False,
        schedule: Schedule | None = "sel",
    ) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.percentile, self.warmup_epochs, self.warmup_share = percentile, warmup_epochs, warmup_share
        self.thresholds, self.schedule = thresholds, schedule
        self.memory = {name: torch.zeros((), dtype=torch.int64) for name in ("stage", "spent", "done")}
        self._gamma: torch.Tensor | None = None

    def epochs(self, planned: int) -> int:
        """Of the warmup and the stages; more where a threshold held a stage back."""
        stage, spent, done = (int(self.memory[name]) for name in ("stage", "spent", "done"))
        if done < self.warmup_epochs:
            return self.warmup_epochs + sum(s.epochs for s in self.stages)
        if stage == len(self.stages):
            return done
        return done + max(1, self.stages[stage].epochs - spent) + sum(s.epochs for s in self.stages[stage + 1 :])

    def planned_samples(self, images: int, epochs: int) -> int | None:
        """Not known: it depends on the classes."""
        return None

    def planned_sparsity(self) -> float | None:
        """Not known: it depends on the gradients."""
        return None

    def start_epoch(self, run: RunView, epoch: int) -> Pool:
        """The stage's window of every class."""
        self._gamma = None
        if epoch <= self.warmup_epochs:
            return Pool(run.sample(max(1, round(self.warmup_share * len(run.labels)))), name="warmup")
        if epoch == self.warmup_epochs + 1:
            self.prepare(run)
        number = int(self.memory["stage"])
        stage = self.stages[number]
        if self.percentile is not None:
            self._gamma = decayed_gamma(self.memory["gamma"], number, len(self.stages))
        pool = stage_pool(self.difficulty(run), run.labels, stage, per_class_cap=SAMPLES_PER_CLASS)
        return Pool(pool, stage=number + 1, name=stage.name, schedule=self.schedule)

    def prepare(self, run: RunView) -> None:
        """Learn from the model as it is what is easy, and what counts as guilt."""
        self.memory["losses"] = run.score()
        if self.percentile is not None:
            self.memory["gamma"] = calibrate_gamma([run.calibrate(_CALIBRATION_IMAGES)], self.percentile).clone()

    def difficulty(self, run: RunView) -> torch.Tensor:
        """What the windows are cut by, float[N]."""
        return self.memory["losses"]

    def mask(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """Zero what is not above gamma."""
        if self._gamma is None:
            return None
        kept = element_mask(gradient, self._gamma)
        gradient.mul_(kept)
        return 1 - kept_fraction(kept)

    def end_epoch(self, train_accuracy: float) -> None:
        """Go on to the next stage if this one is over."""
        done = int(self.memory["done"]) + 1
        stage, spent = int(self.memory["stage"]), int(self.memory["spent"])
        if done > self.warmup_epochs:
            spent += 1
            now = self.stages[stage]
            passed = not self.thresholds or stage_passed(train_accuracy, now) or spent >= _PATIENCE * now.epochs
            if spent >= now.epochs and passed:
                stage, spent = stage + 1, 0
        self.memory |= {
            name: torch.tensor(value) for name, value in (("stage", stage), ("spent", spent), ("done", done))
        }


class RandomPools(Sel):
    """The control: as many images of every class as SEL's stage takes, but any of them, and no mask."""

    def __init__(
        self, stages: Sequence[Stage], *, warmup_epochs: int = 0, warmup_share: float = 0.2, schedule: Schedule
    ) -> None:
        super().__init__(
            stages, percentile=None, warmup_epochs=warmup_epochs, warmup_share=warmup_share, schedule=schedule
        )

    def planned_sparsity(self) -> float | None:
        """Nothing is masked."""
        return 0.0

    def prepare(self, run: RunView) -> None:
        """Nothing to learn."""

    def difficulty(self, run: RunView) -> torch.Tensor:
        """Chance."""
        return run.uniform(len(run.labels))


def staged(stages: Sequence[Stage], epochs: int, warmup: int = 0) -> tuple[tuple[Stage, ...], int]:
    """The stages and the warmup in ``epochs`` epochs together: as published if they fit, else in proportion."""
    published = sum(stage.epochs for stage in stages)
    if epochs == published + warmup:
        return tuple(stages), warmup
    before = max(1, round(epochs * warmup / (published + warmup))) if warmup else 0
    return scale_epochs(stages, max(1, epochs - before)), before
