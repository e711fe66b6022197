"""The sample gate of a session: who of the next candidates leaves the batch before any forward pass.

Significance comes from the hardness memory, which training fills as a by-product, so a skipped image costs nothing.

======  ========================================================================================================
kind    who passes
======  ========================================================================================================
sundew  by chance, the significant more often; losses rescaled so that the gradient stays unbiased; nobody waits
        for more than ``WAIT / target`` decisions
hard    those above the threshold, as published: hard example mining. Biased, and the easy may wait for ever
random  by chance, at the same rate: the control that a gate must beat
off     all
======  ========================================================================================================

Images that were never visited have no hardness; they pass at the plain rate, whatever the kind.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edge_sel.config.settings import Settings
from edge_sel.data.dataset import ImageSet, intensity_std
from edge_sel.sel import selection, sundew
from edge_sel.sel.hardness import HardnessState
from edge_sel.sel.selection import Ages, SoftConfig
from edge_sel.sel.sundew import SundewConfig, SundewState, significance_v1, significance_v101

MOST_PIXELS = 1 << 18
"""That are converted to floats at once."""
WAIT = 4.0
"""Starvation limit of the soft gate, in mean waits of random selection (1 / target decisions)."""


class GateChoice(NamedTuple):
    """What the gate decided about one chunk of candidates, and the states afterwards."""

    mask: np.ndarray
    """bool[N], the candidates to train on."""
    weights: np.ndarray
    """float32[N], of their losses; 0 for the others."""
    state: SundewState
    ages: Ages


class Gate:
    """Soft, hard, random at the same rate (the control), or off.

    Args:
        settings: gate, target_rate and significance.
        intensity_std: standard deviation of each image's intensity [N].
    """

    def __init__(self, settings: Settings, intensity_std: np.ndarray) -> None:
        self.kind: str = settings.gate
        self.significance = settings.significance
        self.rate = settings.target_rate
        self.config = SundewConfig.fast(settings.target_rate)
        self.soft = SoftConfig()
        self.pressure = 0.0
        """Of the governor, 0 to 1: lowers the target rate."""
        self._std = intensity_std

    @property
    def open(self) -> bool:
        """Whether every candidate passes."""
        return self.kind == "off" or self.rate >= 1

    @property
    def planned_rate(self) -> float:
        """Share of the candidates that will pass, without pressure."""
        return 1.0 if self.open else self.rate

    def start(self) -> SundewState:
        """The controller before the first batch."""
        return sundew.init(self.config)

    def choose(
        self,
        state: SundewState,
        ages: Ages,
        memory: HardnessState,
        entropy: np.ndarray,
        candidates: np.ndarray,
        u: np.ndarray,
    ) -> GateChoice:
        """Which candidates to train on, and with which loss weights.

        Args:
            state: the controller.
            ages: decisions that every image has waited for.
            memory: hardness of every image.
            entropy: last known prediction entropy of every image.
            candidates: indices of the next images, all different.
            u: one uniform number in [0, 1) per candidate.
        """
        config = sundew.with_pressure(self.config, self.pressure)
        weights = np.ones(len(candidates))
        if self.open:
            mask = np.ones(len(candidates), bool)
        elif self.kind == "random":
            mask = selection.draw(np.full(len(candidates), config.target_rate), u)
        elif self.kind == "hard":
            ranked = selection.middle_rank(self._known_significance(memory, entropy, candidates))
            # Two of a small batch would be above the target by themselves; here nothing is lost by an empty choice.
            fallback: sundew.Fallback = "random2" if config.target_rate * len(u) >= 2 else "none"
            mask = sundew.active_mask(state, np.where(np.isnan(ranked), u, ranked), u, fallback=fallback)
            state = sundew.update(config, state, float(mask.mean()))
        else:
            late = selection.overdue(ages, candidates, WAIT / config.target_rate)
            known = self._known_significance(memory, entropy, candidates)
            p, weights = selection.odds(self.soft, known, 1 - state.threshold, late)
            mask = selection.draw(p, u)
            # The expected rate: the loop need not follow the luck of the draw.
            state = sundew.update(config, state, float(p.mean()))
        loss_weights = np.where(mask, weights, 0.0).astype(np.float32)
        return GateChoice(mask, loss_weights, state, selection.update_ages(ages, candidates, mask))

    def _known_significance(self, memory: HardnessState, entropy: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """NaN for images never visited or with a loss that diverged; the others are compared among themselves."""
        known = (memory.seen[candidates] > 0) & np.isfinite(memory.r[candidates])
        significance = np.full(len(candidates), np.nan)
        if known.any():
            rows, first = candidates[known], self.significance == "v1"
            score, other = (significance_v1, self._std) if first else (significance_v101, entropy)
            significance[known] = score(memory.r[rows], other[rows])
        return significance


def intensities(images: ImageSet) -> np.ndarray:
    """Standard deviation of each image's intensity [N]."""
    pixels = len(images) * images.size[0] * images.size[1]
    chunks = np.array_split(np.arange(len(images)), max(1, pixels // MOST_PIXELS))
    return np.concatenate([intensity_std(images.read(chunk)) for chunk in chunks])
