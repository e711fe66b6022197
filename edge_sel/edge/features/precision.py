"""Whether a frozen prefix computes in float32 or in int8: what is cheaper on this device, if the features agree."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edge_sel.arrays import Range
from edge_sel.engines.base import Engine, Prefix
from edge_sel.errors import EdgeSelError
from edge_sel.pack.reader import Pack
from edge_sel.quantize import MOST_ERROR, relative_error

FP32, INT8 = "fp32", "int8"

WORTHWHILE = 200
"""Fewest images to come that pay for a trial, which takes both prefixes the time of ``TIMED + 1`` chunks."""

TIMED = 5
"""Chunks that are timed, after one that is not."""

GAIN = 0.85
"""int8 must take at most this share of the time: for less its error is not worth it, and clocks are not that good."""

CpuTime = Callable[[], float]


def choose_precision(
    engine: Engine,
    pack: Pack,
    plan: str,
    weights: Mapping[str, np.ndarray],
    image: Range,
    chunks: Callable[[], Sequence[np.ndarray]],
    cpu_time: CpuTime,
) -> dict[str, Any] | None:
    """Try both on ``TIMED + 1`` chunks of normalised images: the ``prefix`` event, with the ``precision`` chosen.

    ``image`` is the images' range, ``cpu_time`` this process's processor seconds.
    A device that cannot load the quantized variant computes in float32; ``why`` says so. None in an engine that cuts
    nothing.
    """
    try:
        quantized = engine.prefix(pack, plan, weights, int8=image)
    except EdgeSelError as error:
        why = f"the quantized variant of the frozen backbone cannot be loaded: {error.what}"
        return {"plan": plan, "precision": FP32, "why": why, "ms_per_image": None, "relative_error": None}
    plain = engine.prefix(pack, plan, weights)
    if quantized is None or plain is None:
        return None
    return {"plan": plan, **compare_precisions(plain, quantized, chunks(), cpu_time)}


def compare_precisions(
    plain: Prefix, quantized: Prefix, chunks: Sequence[np.ndarray], cpu_time: CpuTime
) -> dict[str, Any]:
    """Time both in turns, in processor time; the first chunk, which allocates their memory, does not count."""
    taken: dict[str, list[float]] = {FP32: [], INT8: []}
    expected: list[np.ndarray] = []
    found: list[np.ndarray] = []
    for chunk in chunks:
        for name, prefix, features in ((FP32, plain, expected), (INT8, quantized, found)):
            began_s = cpu_time()
            features.append(prefix(chunk))
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
