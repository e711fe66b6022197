"""The sample gate of a session: who of the next candidates leaves the batch before any forward pass.

Significance comes from the hardness memory, which training fills as a by-product, so a skipped image costs nothing.
"""

from __future__ import annotations

import numpy as np

from edge_sel.data.dataset import ImageSet
from edge_sel.data.transforms import intensity_std
from edge_sel.sel import sundew
from edge_sel.sel.hardness import HardnessState
from edge_sel.sel.significance import significance_v1, significance_v101
from edge_sel.sel.sundew import SundewConfig, SundewState
from edge_sel.settings import Settings


class Gate:
    """Sundew, random at the same rate (the control), or off.

    Args:
        settings: gate, target_rate and significance.
        intensity_std: standard deviation of each image's intensity [N].
    """

    def __init__(self, settings: Settings, intensity_std: np.ndarray) -> None:
        self.kind = settings.gate
        self.significance = settings.significance
        self.rate = settings.target_rate
        self.config = SundewConfig.fast(settings.target_rate)
        self.pressure = 0.0
        """Of the governor, 0 to 1: lowers the target rate."""
        self._std = intensity_std

    @property
    def open(self) -> bool:
        """Whether every candidate passes."""
        return self.kind == "off" or self.rate >= 1

    def start(self) -> SundewState:
        """The controller before the first batch."""
        return sundew.init(self.config)

    def select(
        self, state: SundewState, memory: HardnessState, entropy: np.ndarray, candidates: np.ndarray, u: np.ndarray
    ) -> tuple[np.ndarray, SundewState]:
        """Which candidates to train on, [N] bool, and the controller afterwards.

        Args:
            state: the controller.
            memory: hardness of every image.
            entropy: last known prediction entropy of every image.
            candidates: indices of the next images.
            u: one uniform number per candidate.
        """
        if self.open:
            return np.ones(len(candidates), bool), state
        if self.kind == "random":
            significance = u
        elif self.significance == "v1":
            significance = significance_v1(memory.r[candidates], self._std[candidates])
        else:
            significance = significance_v101(memory.r[candidates], entropy[candidates])
        config = sundew.with_pressure(self.config, self.pressure)
        ranked = sundew.normalised(config, significance, u)
        # Two of a small batch would be above the target by themselves; here nothing is lost by an empty choice.
        fallback: sundew.Fallback = "random2" if config.target_rate * len(candidates) >= 2 else "none"
        mask: np.ndarray = sundew.active_mask(state, ranked, u, fallback=fallback)
        return mask, sundew.update(config, state, float(mask.mean()))


def intensities(images: ImageSet) -> np.ndarray:
    """Standard deviation of each image's intensity [N]."""
    chunks = np.array_split(np.arange(len(images)), max(1, len(images) // 256))
    return np.concatenate([intensity_std(images.read(chunk)) for chunk in chunks])
