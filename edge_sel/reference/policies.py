"""The other policies: the Sundew gate, Lottery Ticket, and what every selection must beat; ``build_policy``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from edge_sel.reference import parallel
from edge_sel.reference.curricula import Dihcl, RandomPools, Sel, SelfPaced, staged
from edge_sel.reference.policy import DeviceBatch, Policy, Pool, RunView
from edge_sel.reference.systems import Setup, System
from edge_sel.sel import sundew
from edge_sel.sel.curriculum import STAGES, Stage
from edge_sel.sel.hardness import weighted_sample
from edge_sel.sel.selection import prune_easy, relative_importance
from edge_sel.sel.sundew import config_for, significance_v1


class Sundew(Policy):
    """Every image goes forward *and back*; the losses of those that the gate closes for count nothing.

    That is "gradient masking (single forward pass)", as the source does it: no work is saved, and the executed column
    says so. Its accounting (1 per active image, 0.01 per skipped) is the nominal one.

    Args:
        config: the gate.
        warmup_epochs: dense ones before.

    Source: AST README v1; ImageNet-100 section (two stages).
    """

    def __init__(self, config: sundew.SundewConfig, *, warmup_epochs: int = 0) -> None:
        super().__init__()
        self.config, self.warmup_epochs = config, warmup_epochs
        self._gating = False

    def subset_size(self, images: int, epoch: int) -> None:
        """Not known: the gate decides."""

    def start_epoch(self, run: RunView, epoch: int) -> Pool:
        """Everything, in both stages."""
        if epoch == self.warmup_epochs + 1:
            self.memory |= sundew.init(self.config, torch, device=run.device)._asdict()
        self._gating = epoch > self.warmup_epochs
        return Pool(run.everything(), stage=int(self._gating), name="gated" if self._gating else "warmup")

    def weigh(self, run: RunView, batch: DeviceBatch, losses: torch.Tensor) -> torch.Tensor | None:
        """1 for the images that pass, 0 for the others; then the controller."""
        if not self._gating:
            return None
        state = sundew.SundewState(*(self.memory[name] for name in sundew.SundewState._fields))
        intensity_std = parallel.gather(batch.x.float().std((1, 2, 3)))
        u = run.uniform(len(losses))
        mask = sundew.active_mask(state, significance_v1(losses, intensity_std), u)
        self.memory |= sundew.update(self.config, state, mask.double().mean())._asdict()
        return mask.to(losses.dtype)


class Lottery(Policy):
    """A third of the epochs to find the ticket, the others to train it.

    The published sparsity (0.80000003579751) is exactly 8 939 170 of 11 173 962 parameters: all of them compete in one
    ranking, biases and batch norm included. The published FLOPs leave out the first 15 epochs, and so does the nominal
    column here; the executed column does not.

    Source: SEL benchmark README; hist_lottery.csv; Frankle & Carbin 2019.
    """

    def __init__(self, epochs: int, sparsity: float = 0.8) -> None:
        super().__init__()
        self.search_epochs, self.sparsity = max(1, epochs // 3), sparsity

    def subset_size(self, images: int, epoch: int) -> int:
        """Those of the second training."""
        return images if epoch > self.search_epochs else 0

    def planned_sparsity(self) -> float | None:
        """As told."""
        return self.sparsity

    def start_epoch(self, run: RunView, epoch: int) -> Pool:
        """Note the beginning; prune and rewind when the search is over."""
        if epoch == 1:
            self.memory |= {f"start.{name}": value for name, value in run.model_state().items()}
        if epoch == self.search_epochs + 1:
            keep = prune_mask(run.magnitudes(), self.sparsity)
            start = {name.partition(".")[2]: self.memory.pop(name) for name in list(self.memory)}
            run.rewind(start, keep)
            self.memory["keep"] = keep
        searching = epoch <= self.search_epochs
        return Pool(run.everything(), name="search" if searching else "ticket", counted=not searching)

    def mask(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """A pruned weight gets no gradient; it began at zero, so Adam leaves it there."""
        if "keep" not in self.memory:
            return None
        gradient.mul_(self.memory["keep"])
        return torch.full((), self.sparsity, device=gradient.device)


def prune_mask(magnitude: torch.Tensor, sparsity: float) -> torch.Tensor:
    """bool[P]: all but the ``round(sparsity P)`` smallest; of equals the lower index goes first."""
    pruned = magnitude.argsort(stable=True)[: round(sparsity * len(magnitude))]
    keep = torch.ones(len(magnitude), dtype=torch.bool, device=magnitude.device)
    keep[pruned] = False
    return keep


class RandomRate(Policy):
    """A fresh random part of the images each epoch; the others cost nothing at all."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def subset_size(self, images: int, epoch: int) -> int:
        """The same part of every epoch."""
        return max(1, round(self.rate * images))

    def start_epoch(self, run: RunView, epoch: int) -> Pool:
        """The part."""
        return Pool(run.sample(self.subset_size(len(run.labels), epoch)), name="random")


class InfoBatch(Policy):
    """Each epoch leaves out a random half of the images below the mean loss, and counts the other half double.

    Without scoring passes: losses are those of the last visit. The last eighth of the epochs visits everything.

    Source: InfoBatch (Qin et al. 2024), r = 0.5, delta = 0.875.
    """

    def __init__(self, epochs: int, *, ratio: float = 0.5, until: float = 0.875) -> None:
        super().__init__()
        self.ratio, self.last_pruned = ratio, int(until * epochs)

    def subset_size(self, images: int, epoch: int) -> None:
        """Not known: it depends on the losses."""

    def start_epoch(self, run: RunView, epoch: int) -> Pool:
        """What is left, with its weights."""
        if epoch == 1:
            self.memory["losses"] = torch.ones(len(run.labels), device=run.device)
        if epoch == 1 or epoch > self.last_pruned:
            return Pool(run.everything(), name="all")
        u = run.uniform(len(run.labels))
        keep, weights = prune_easy(self.memory["losses"], u, self.ratio)
        return Pool(run.everything()[keep], weights, stage=1, name="pruned")

    def observe(self, batch: DeviceBatch, losses: torch.Tensor, correct: torch.Tensor) -> None:
        """The losses for the next epoch."""
        self.memory["losses"][batch.index] = losses.to(self.memory["losses"].dtype)


class SelectiveBackprop(Policy):
    """A forward pass on the whole batch, then training on half of it, drawn by the rank of the loss.

    As in Composer: from half of the run to nine tenths, every second batch as a whole. The half is drawn without
    replacement, with probabilities ``rank ^ (1 / keep - 1)``; its size is fixed.

    Source: Jiang et al. 2019; Composer's selective backpropagation.
    """

    def __init__(self, epochs: int, *, keep: float = 0.5, start: float = 0.5, end: float = 0.9) -> None:
        super().__init__()
        self.keep, self.first, self.last = keep, int(start * epochs) + 1, int(end * epochs)
        self._selecting, self._batches = False, 0

    def subset_size(self, images: int, epoch: int) -> None:
        """Not known: it depends on the batches."""

    def batch_sizes(self, full: int) -> set[int]:
        """The whole and the half."""
        return {full, self._part(full)}

    def _part(self, images: int) -> int:
        return max(2, round(self.keep * images))

    def start_epoch(self, run: RunView, epoch: int) -> Pool:
        """Everything."""
        self._selecting, self._batches = self.first <= epoch <= max(self.first, self.last), 0
        return Pool(run.everything(), stage=int(self._selecting), name="selective" if self._selecting else "all")

    def narrow(self, run: RunView, batch: DeviceBatch) -> DeviceBatch:
        """The drawn half."""
        self._batches += 1
        if not self._selecting or self._batches % 2 == 0:
            return batch
        losses = run.batch_losses(batch)
        u = run.uniform(len(losses))
        chosen = weighted_sample(relative_importance(losses, self.keep), self._part(len(losses)), u)
        return DeviceBatch(*(part[chosen] for part in batch))


def build_policy(system: System, setup: Setup) -> Policy:
    """A new policy; ``setup`` is the system's as scaled."""
    return _BUILDERS[system.policy](setup, **system.policy_options)


def _sel(setup: Setup, *, percentile: float, warmup: int = 0, share: float = 0.2, thresholds: bool = False,
         fast: bool = False) -> Policy:  # fmt: skip
    stages, before = _stages(setup, warmup, fast)
    return Sel(stages, percentile=percentile, warmup_epochs=before, warmup_share=share, thresholds=thresholds,
               schedule=None if fast else "sel")  # fmt: skip


def _random_pools(setup: Setup, *, warmup: int = 0, share: float = 0.2, fast: bool = False) -> Policy:
    stages, before = _stages(setup, warmup, fast)
    return RandomPools(stages, warmup_epochs=before, warmup_share=share, schedule="triangle" if fast else "cosine")


def _stages(setup: Setup, warmup: int, fast: bool) -> tuple[Sequence[Stage], int]:
    return staged([stage._replace(epochs=1) for stage in STAGES] if fast else STAGES, setup.epochs, warmup)


def _sundew(setup: Setup, *, rate: float, warmup_share: float = 0.0) -> Policy:
    return Sundew(config_for(rate), warmup_epochs=max(1, round(warmup_share * setup.epochs)) if warmup_share else 0)


_BUILDERS: dict[str, Callable[..., Policy]] = {
    "plain": lambda setup: Policy(),
    "lottery": lambda setup: Lottery(setup.epochs),
    "sel": _sel,
    "random-pools": _random_pools,
    "random-rate": lambda setup, rate: RandomRate(rate),
    "sundew": _sundew,
    "dihcl": lambda setup, rule, kind: Dihcl(rule, kind, setup.epochs),
    "self-paced": lambda setup, easy: SelfPaced(easy=easy, epochs=setup.epochs),
    "infobatch": lambda setup: InfoBatch(setup.epochs),
    "selective-backprop": lambda setup: SelectiveBackprop(setup.epochs),
}
