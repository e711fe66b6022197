"""Policies that choose images by how hard they are: SEL, DIHCL, and the curricula that their authors compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from edge_sel.reference.policy import DeviceBatch, Policy, Pool, RunView
from edge_sel.reference.systems import Schedule
from edge_sel.sel import hardness
from edge_sel.sel.curriculum import SAMPLES_PER_CLASS, Stage, scale_epochs, stage_passed, stage_pool
from edge_sel.sel.guilt import calibrate_gamma, decayed_gamma, element_mask, kept_fraction
from edge_sel.sel.hardness import diverse_hardest, easiest

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

    def subset_size(self, images: int, epoch: int) -> None:
        """Not known: it depends on the classes."""

    def planned_sparsity(self) -> float | None:
        """Not known if something is masked: it depends on the gradients."""
        return None if self.percentile is not None else 0.0

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


Rule = Literal["greedy", "rand", "exp", "beta", "chance"]

_GAMMA = 0.95
_WARM_SHARE = 0.1
_LAST_SHARE = 0.2
_TAU = 1.0


class Dihcl(Policy):
    """All images for a while, then fewer and fewer of the hardest, as they are remembered.

    The poster prints neither T0, gamma, gamma_k nor the normalisation "Eq. (5)". Here: a tenth of the epochs on
    everything, gamma = 0.95, and gamma_k such that the last epoch visits a fifth of the images; hardness as it is; no
    lazier-than-lazy greedy for diversity.

    Args:
        rule: greedy (the hardest), rand (in proportion to r), exp (to exp of it), beta (Thompson sampling: a draw of
            Beta(1 + n r, 1 + n (1 - r)) after n visits, which fits flips), or chance: the control.
        kind: which instantaneous hardness.
        epochs: of the whole run.

    Source: DIHCL (Zhou et al. 2020), algorithm 1.
    """

    def __init__(self, rule: Rule, kind: hardness.Kind, epochs: int) -> None:
        super().__init__()
        self.rule, self.kind = rule, kind
        self.warm_epochs = max(1, round(_WARM_SHARE * epochs))
        self.gamma_k = _LAST_SHARE ** (1 / max(1, epochs - self.warm_epochs))

    def subset_size(self, images: int, epoch: int) -> int:
        """k of an epoch: ``k_(t+1) = gamma_k k_t`` once the warm epochs are over."""
        k = float(images)
        for _ in range(epoch - self.warm_epochs):
            k = hardness.shrink(k, self.gamma_k)
        return round(k)

    def start_epoch(self, run: RunView, epoch: int) -> Pool:
        """The subset S_t."""
        if epoch == 1:
            self.memory |= hardness.init(len(run.labels), torch, device=run.device)._asdict()
        if epoch <= self.warm_epochs:
            return Pool(run.everything(), name="warm")
        return Pool(self._choose(run, self.subset_size(len(run.labels), epoch)), stage=1, name="curriculum")

    def _choose(self, run: RunView, k: int) -> torch.Tensor:
        state = self._state()
        if self.rule == "greedy":
            return hardness.greedy(state, k)
        if self.rule == "beta":
            # float32 gamma draws; their ratio is a Beta draw. torch.manual_seed was called for this epoch.
            visits, r = state.seen.float(), state.r.clamp(0, 1)
            draw = torch.distributions.Beta(1 + visits * r, 1 + visits * (1 - r)).sample()
            return hardness.greedy(state._replace(r=draw), k)
        u = run.uniform(len(run.labels))
        if self.rule == "chance":
            return u.argsort()[:k]
        p = state.r if self.rule == "rand" else hardness.probabilities_exp(state, _TAU)
        return hardness.weighted_sample(p, k, u)

    def observe(self, batch: DeviceBatch, losses: torch.Tensor, correct: torch.Tensor) -> None:
        """Remember; this costs no pass of its own."""
        state = hardness.update(self._state(), batch.index, losses, correct, gamma=_GAMMA, kind=self.kind)
        self.memory |= state._asdict()

    def _state(self) -> hardness.HardnessState:
        return hardness.HardnessState(*(self.memory[name] for name in hardness.HardnessState._fields))


class SelfPaced(Policy):
    """SPL and MCL: score everything before each epoch, then take a growing part, easy ones or hard and diverse ones.

    The poster prints no settings. Here the part grows evenly from half to all; MCL's diversity falls evenly to 0.

    Args:
        easy: SPL if true, else MCL.
        epochs: of the whole run.
        first_share: of the images, in the first epoch.
    """

    def __init__(self, *, easy: bool, epochs: int, first_share: float = 0.5) -> None:
        super().__init__()
        self.easy, self.total, self.first_share = easy, epochs, first_share

    def subset_size(self, images: int, epoch: int) -> int:
        """k of an epoch."""
        progress = (epoch - 1) / max(1, self.total - 1)
        return round(images * (self.first_share + (1 - self.first_share) * progress))

    def start_epoch(self, run: RunView, epoch: int) -> Pool:
        """The part that the losses of this moment choose."""
        losses, k = run.score(), self.subset_size(len(run.labels), epoch)
        if self.easy:
            return Pool(easiest(losses, k), name="easy")
        diversity = 1 - (epoch - 1) / max(1, self.total - 1)
        return Pool(diverse_hardest(losses, run.labels, run.classes, k, diversity), name="diverse")
