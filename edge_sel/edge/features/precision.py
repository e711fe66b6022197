"""Whether a frozen backbone computes in float32 or in int8: what is cheaper here, if the features agree."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from edge_sel.arrays import Range
from edge_sel.data.dataset import ImageSet, normalise
from edge_sel.edge.memory import trim
from edge_sel.engines.base import Backbone, Engine
from edge_sel.errors import EdgeSelError
from edge_sel.pack.manifest import BackboneInfo
from edge_sel.pack.reader import Pack
from edge_sel.quantize import MOST_ERROR, relative_error

FP32, INT8 = "fp32", "int8"

CHUNK = 4
"""Images per run of a frozen backbone, always: an image's last bits may depend on how many others it comes with, and a
resumed run has other ones to compute together. More of them are hardly faster."""

WORTHWHILE = 800
"""Fewest images to come that pay for a trial, which takes both precisions the time of ``TIMED + 1`` chunks."""

TIMED = 5
"""Chunks that are timed, after one that is not."""

GAIN = 0.85
"""int8 must take at most this share of the time: for less its error is not worth it, and clocks are not that good."""

RANGED = 64
"""Images that tell the range of all: almost every one has something dark and something bright."""

CpuTime = Callable[[], float]
EnterPhase = Callable[[str], AbstractContextManager[None]]


class Precision(NamedTuple):
    """The precision of a frozen backbone, "fp32" or "int8", and how it was chosen."""

    name: str
    event: dict[str, Any] | None = None
    """Figures of the event ``backbone_precision``; None where there was nothing to choose."""
    computed: int = 0
    """Images that the trial computed, counted once for each precision."""


class FrozenBackbone(NamedTuple):
    """The frozen backbone of a plan, and what its features are computed from."""

    engine: Engine
    """Executes it."""
    pack: Pack
    plan: str
    weights: Mapping[str, np.ndarray]
    """The current full set."""
    images: ImageSet

    @property
    def info(self) -> BackboneInfo | None:
        """What the pack says of it; None where the plan has none."""
        return self.pack.backbone(self.plan)

    def load(self, precision: str = FP32) -> Backbone | None:
        """As the engine computes it; None where the engine's trainer takes images."""
        integers = {"int8": self.image_range()} if precision == INT8 else {}
        return self.engine.backbone(self.pack, self.plan, self.weights, **integers)

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """Normalised images, float32 [n, 3, H, W]."""
        model = self.pack.manifest.model
        return normalise(self.images.read(rows), model.mean, model.std)

    def sample(self, count: int) -> np.ndarray:
        """So many normalised images from all over the set."""
        return self.pixels(np.linspace(0, len(self.images) - 1, count).astype(np.int64))

    def image_range(self) -> Range:
        """Of the normalised images, from some of them."""
        pixels = self.sample(RANGED)
        return float(pixels.min()), float(pixels.max())

    def digest(self, info: BackboneInfo) -> bytes:
        """A hash of the weights that the features depend on."""
        digest = hashlib.sha256()
        for name in info.constants:
            if name in self.weights:
                digest.update(np.ascontiguousarray(self.weights[name]).data)
        return digest.digest()


def choose_precision(
    backbone: FrozenBackbone, asked: str, expected: float, cpu_time: CpuTime, phase: EnterPhase
) -> Precision:
    """What the plan's backbone is to compute in.

    Args:
        backbone: with the images of the device.
        asked: the setting: "fp32", "int8", or "auto" for a trial.
        expected: number of features that the stage will need; few are not worth a trial.
        cpu_time: this process's processor seconds.
        phase: tells the energy recorder about a trial.
    """
    info, plan = backbone.info, backbone.plan
    if info is None:
        return Precision("")
    if info.int8 is None and asked == INT8:
        why = "the pack has no quantized variant of this plan's frozen backbone: export it again"
        return Precision(FP32, _untried(plan, why))
    if info.int8 is None or (asked == "auto" and expected < WORTHWHILE):
        return Precision(FP32)
    if asked != "auto":
        return Precision(asked)
    with phase("backbone"):
        event = _try_both(backbone, cpu_time)
    trim()  # of both that were tried
    if event is None:
        return Precision(FP32)
    return Precision(event["precision"], event, 2 * CHUNK * (TIMED + 1) if event["ms_per_image"] else 0)


def _untried(plan: str, why: str) -> dict[str, Any]:
    return {"plan": plan, "precision": FP32, "why": why, "ms_per_image": None, "relative_error": None}


def _try_both(backbone: FrozenBackbone, cpu_time: CpuTime) -> dict[str, Any] | None:
    """Try both on ``TIMED + 1`` chunks of normalised images: figures of the event, with the ``precision`` chosen.

    A device that cannot load the quantized variant computes in float32; ``why`` says so. None in an engine that cuts
    nothing.
    """
    try:
        quantized = backbone.load(INT8)
    except EdgeSelError as error:
        why = f"the quantized variant of the frozen backbone cannot be loaded: {error.what}"
        return _untried(backbone.plan, why)
    plain = backbone.load()
    if quantized is None or plain is None:
        return None
    chunks = np.split(backbone.sample(CHUNK * (TIMED + 1)), TIMED + 1)
    return {"plan": backbone.plan, **compare_precisions(plain, quantized, chunks, cpu_time)}


def compare_precisions(
    plain: Backbone, quantized: Backbone, chunks: Sequence[np.ndarray], cpu_time: CpuTime
) -> dict[str, Any]:
    """Time both in turns, in processor time; the first chunk, which allocates their memory, does not count."""
    taken: dict[str, list[float]] = {FP32: [], INT8: []}
    expected: list[np.ndarray] = []
    found: list[np.ndarray] = []
    for chunk in chunks:
        for name, backbone, features in ((FP32, plain, expected), (INT8, quantized, found)):
            began_s = cpu_time()
            features.append(backbone(chunk))
            taken[name].append((cpu_time() - began_s) / len(chunk))
    error = relative_error(np.concatenate(found), np.concatenate(expected))
    fp32_s, int8_s = (statistics.median(taken[name][1:]) for name in (FP32, INT8))
    if not error <= MOST_ERROR:
        precision, why = FP32, f"the features differ by more than {MOST_ERROR:.0%}"
    elif int8_s > GAIN * fp32_s:
        precision, why = FP32, "int8 is hardly faster here"
    else:
        precision, why = INT8, "faster, and the features agree"
    milliseconds = {FP32: round(1e3 * fp32_s, 4), INT8: round(1e3 * int8_s, 4)}
    return {"precision": precision, "why": why, "ms_per_image": milliseconds, "relative_error": error}
