"""Adaptive Sparse Training: the Sundew gate decides batch by batch which losses count."""

from __future__ import annotations

import torch

from edge_sel.reference import parallel
from edge_sel.reference.policy import DeviceBatch, Policy, Pool, RunView
from edge_sel.sel import sundew
from edge_sel.sel.significance import significance_v1


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

    def planned_samples(self, images: int, epochs: int) -> int | None:
        """Not known: the gate decides."""
        return None

    def start_epoch(self, run: RunView, epoch: int) -> Pool:
        """Everything, in both stages."""
        if epoch == self.warmup_epochs + 1:
            self._remember(sundew.init(self.config, torch, device=run.device))
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
        self._remember(sundew.update(self.config, state, mask.double().mean()))
        return mask.to(losses.dtype)

    def _remember(self, state: sundew.SundewState) -> None:
        self.memory |= state._asdict()
