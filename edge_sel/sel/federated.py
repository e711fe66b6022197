"""Ridge regression from sums of many devices: one round, the same solution as on all images in one place.

``ΦᵀΦ`` and ``ΦᵀT`` add up whatever classes each device has. The strength is chosen by generalised cross-validation,
which needs nothing but these sums and the number of samples.

Source: Fanì et al. 2024, Accelerating Heterogeneous Federated Learning with Closed-form Classifiers (Fed3R); Golub,
Heath and Wahba 1979 (generalised cross-validation); Kane and Nelson 2014, Sparser Johnson-Lindenstrauss Transforms;
Balle and Wang 2018, Improving the Gaussian Mechanism for Differential Privacy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from math import erf, exp, sqrt
from typing import NamedTuple

from edge_sel.sel._array import Array, array_namespace, class_members
from edge_sel.sel.feature_sums import CONSTANT

STRENGTHS = tuple(10.0 ** (step / 2) for step in range(-12, 5))
"""λ to try, in units of the mean diagonal of ``ΦᵀΦ``."""


class DeviceSums(NamedTuple):
    """What a device sends: sums over its samples, each clipped to a length."""

    counts: Array
    """float64[C], samples of each class."""
    gram: Array
    """float64[D + 1, D + 1], of clipped features and the constant."""
    right: Array
    """float64[D + 1, C]."""


class Solution(NamedTuple):
    """Of the sums."""

    coefficients: Array
    """float64[D + 1, C]."""
    strength: float
    """λ, as in ``STRENGTHS``."""
    score: float
    """Of generalised cross-validation: the mean squared error that is expected of a new sample."""


def clip_rows(rows: Array, length: float) -> Array:
    """Rows float64[N, D], none longer than this."""
    xp = array_namespace(rows)
    lengths = xp.sqrt(xp.sum(rows * rows, axis=1))
    factor = xp.where(lengths > length, length / xp.where(lengths > 0, lengths, xp.ones_like(lengths)), 1.0)
    clipped: Array = rows * factor[:, None]
    return clipped


def device_sums(rows: Array, labels: Array, classes: int) -> DeviceSums:
    """Of rows float64[N, D], which are clipped, and labels int[N]."""
    xp = array_namespace(rows)
    wide = xp.concat([rows, xp.full((rows.shape[0], 1), CONSTANT, dtype=xp.float64)], axis=1)
    members = xp.astype(class_members(labels, classes), xp.float64)
    return DeviceSums(xp.sum(members, axis=0), wide.T @ wide, wide.T @ members)


def add_sums(parts: Iterable[DeviceSums]) -> DeviceSums:
    """Of all devices, at least one; one pass, and memory for one of them."""
    return reduce(lambda one, other: DeviceSums(*(a + b for a, b in zip(one, other, strict=True))), parts)


def solve_sums(sums: DeviceSums, strengths: Sequence[float] = STRENGTHS) -> Solution:
    """The head of the strength with the least score.

    Formula: ``GCV(λ) = (RSS / n) / (1 - df / n)²``, ``RSS = tr TᵀT - 2 tr WᵀB + tr WᵀAW``,
    ``df = tr A(A + λI)⁻¹``, ``A = ΦᵀΦ``, ``B = ΦᵀT``, ``W = (A + λI)⁻¹B``; ``tr TᵀT`` is n, as T is one-hot.
    """
    xp = array_namespace(sums.gram)
    values, vectors = xp.linalg.eigh((sums.gram + sums.gram.T) / 2)
    values = xp.where(values > 0, values, xp.zeros_like(values))
    projected = vectors.T @ sums.right
    count = max(float(xp.sum(sums.counts)), 1.0)
    unit = unit_of(sums)
    best: tuple[float, float] | None = None
    for strength in strengths:
        inverse = 1 / (values + strength * unit)
        solved = inverse[:, None] * projected
        squares = float(xp.sum(solved * projected)), float(xp.sum(values[:, None] * solved * solved))
        rss = max(count - 2 * squares[0] + squares[1], 0.0)
        left = 1 - float(xp.sum(values * inverse)) / count
        score = rss / count / left**2 if left > 1e-3 else float("inf")
        if best is None or score < best[0]:
            best = score, strength
    assert best is not None
    solution = vectors @ (projected / (values + best[1] * unit)[:, None])
    return Solution(solution, best[1], best[0])


def solve_from(sums: DeviceSums, start: Array, strength: float) -> Array:
    """The coefficients that move least from others, float64[D + 1, C]; ``strength`` in units of the mean diagonal.

    Formula: ``W = W_0 + (A + λI)⁻¹(B - A W_0)``, ``A = ΦᵀΦ``, ``B = ΦᵀT``
    """
    moved: Array = start + solve_at(sums._replace(right=sums.right - sums.gram @ start), strength * unit_of(sums))
    return moved


def unit_of(sums: DeviceSums) -> float:
    """What strengths are in units of: the mean diagonal of ``ΦᵀΦ``."""
    xp = array_namespace(sums.gram)
    diagonal = float(xp.linalg.trace(sums.gram))
    return max(diagonal / int(sums.gram.shape[0]), 1e-12)


def solve_at(sums: DeviceSums, penalty: float) -> Array:
    """The coefficients for one λ, not in units of anything."""
    xp = array_namespace(sums.gram)
    size = sums.gram.shape[0]
    made: Array = xp.linalg.solve(sums.gram + penalty * xp.eye(size, dtype=sums.gram.dtype), sums.right)
    return made


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float) -> float:
    """Standard deviation of the noise that makes a release (ε, δ)-differentially private, as small as can be.

    >>> round(gaussian_sigma(1.0, 1e-5, 1.0), 3)
    3.731

    Formula: the least σ with ``Φ(Δ/2σ - εσ/Δ) - e^ε Φ(-Δ/2σ - εσ/Δ) <= δ``

    Args:
        epsilon: above 0.
        delta: in 0..1.
        sensitivity: Δ, the largest change that one sample makes, as a Euclidean length.

    Source: Balle and Wang 2018, theorem 8.
    """
    low, high = 0.0, 1.0
    while _delta_of(high, epsilon) > delta:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if middle > 0 and _delta_of(middle, epsilon) <= delta else (middle, high)
    return high * sensitivity


def _delta_of(sigma: float, epsilon: float) -> float:
    """Of a noise of this many sensitivities."""
    return _normal(0.5 / sigma - epsilon * sigma) - exp(epsilon) * _normal(-0.5 / sigma - epsilon * sigma)


def _normal(value: float) -> float:
    return 0.5 * (1 + erf(value / sqrt(2)))


def sums_sensitivity(length: float) -> float:
    """How far one sample, clipped to this length, moves the counts and ``ΦᵀT`` together."""
    return sqrt(length**2 + CONSTANT**2 + 1)
