"""Curriculum learning by dynamic instance hardness, and the curricula its authors compare with."""

from __future__ import annotations

from typing import Literal

import torch

from edge_sel.reference.policy import DeviceBatch, Policy, Pool, RunView
from edge_sel.sel import hardness
from edge_sel.sel.self_paced import diverse_hardest, easiest

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

    def planned_samples(self, images: int, epochs: int) -> int | None:
        """The sum of the subset sizes."""
        return sum(self.subset_size(images, epoch) for epoch in range(1, epochs + 1))

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

    def planned_samples(self, images: int, epochs: int) -> int | None:
        """The sum of the subset sizes."""
        return sum(self.subset_size(images, epoch) for epoch in range(1, epochs + 1))

    def start_epoch(self, run: RunView, epoch: int) -> Pool:
        """The part that the losses of this moment choose."""
        losses, k = run.score(), self.subset_size(len(run.labels), epoch)
        if self.easy:
            return Pool(easiest(losses, k), name="easy")
        diversity = 1 - (epoch - 1) / max(1, self.total - 1)
        return Pool(diverse_hardest(losses, run.labels, run.classes, k, diversity), name="diverse")
