"""Sums of standardised features, of which ridge regression is made, and that of a server in a few rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edge_sel.sel._array import Array, array_namespace, class_members, device

CONSTANT = 3.0
"""The feature that is the same for all; large, so that the intercept is hardly shrunk."""
_SMALL = 1e-3
"""Least deviation of a feature, relative to the mean of all."""


class Standard(NamedTuple):
    """How features are standardised: ``(φ - mean) · scale``."""

    mean: Array
    """float[F]."""
    scale: Array
    """float[F]; 0 of a feature that is not used."""


class Prior(NamedTuple):
    """What the server's images would add to the sums of ridge regression, as a few rows that make the same sums.

    Every class of the server's has the same weight in them.
    """

    rows: Array
    """float[R, F + 1], standardised features and the constant: ``rowsᵀ rows`` is the server's ``ΦᵀΦ``."""
    targets: Array
    """float[R, C]: ``rowsᵀ targets`` is ``ΦᵀT``."""
    known: Array
    """bool[C], whether the server had images of a class."""


class Examples(NamedTuple):
    """Images of the server that are not in its sums, by which a head shows what it still knows."""

    features: Array
    """float[M, F], standardised."""
    labels: Array
    """int[M]."""


class SampleSums(NamedTuple):
    """Sufficient statistics of ridge regression; those of several places add up (Fanì et al. 2024, Fed3R)."""

    counts: Array
    """float64[C], samples of each class."""
    gram: Array
    """float64[F + 1, F + 1], ``ΦᵀΦ`` of standardised features and the constant."""
    right: Array
    """float64[F + 1, C], ``ΦᵀT``, T one-hot."""


_BLOCK = 1024


def sum_samples(features: Array, labels: Array, classes: int, standard: Standard) -> SampleSums:
    """Of features float[N, F] and labels int[N], block by block."""
    xp = array_namespace(features)
    members = xp.astype(class_members(labels, classes), xp.float64)
    gram, right = 0.0, 0.0
    for start in range(0, features.shape[0], _BLOCK):
        rows = with_constant(standardised(features[start : start + _BLOCK], standard))
        gram, right = gram + rows.T @ rows, right + rows.T @ members[start : start + _BLOCK]
    return SampleSums(xp.sum(members, axis=0), gram, right)


def standard_of(features: Array, groups: Sequence[int] = ()) -> Standard:
    """Mean 0; deviations of one over the root of the group's size, so that each group has the same weight.

    Features that are not finite for every sample are not used.
    """
    xp = array_namespace(features)
    values = xp.astype(features, xp.float64)
    finite = xp.all(xp.isfinite(values), axis=0)
    values = xp.where(finite, values, xp.zeros_like(values))
    deviation = xp.std(values, axis=0)
    least = _SMALL * xp.mean(deviation)
    sizes = [xp.full((size,), float(size), dtype=xp.float64, device=device(features))
             for size in groups or (features.shape[1],)]  # fmt: skip
    usable = finite & (deviation > 0)
    scale = 1 / (xp.where(usable, deviation, xp.ones_like(deviation)) + least) / xp.sqrt(xp.concat(sizes))
    return Standard(xp.mean(values, axis=0), xp.where(usable, scale, xp.zeros_like(scale)))


def standardised(features: Array, standard: Standard) -> Array:
    """float64[N, F]; 0 where a feature is not used."""
    xp = array_namespace(features)
    used = standard.scale != 0
    values = xp.where(used, xp.astype(features, xp.float64), xp.astype(standard.mean, xp.float64))
    shifted: Array = (values - xp.astype(standard.mean, xp.float64)) * xp.astype(standard.scale, xp.float64)
    return shifted


def as_they_were(features: Array, standard: Standard) -> Array:
    """float64[N, F], the contrary; the mean where a feature is not used."""
    xp = array_namespace(features)
    scale = xp.astype(xp.where(standard.scale != 0, standard.scale, xp.ones_like(standard.scale)), xp.float64)
    raw: Array = features / scale + xp.astype(standard.mean, xp.float64)
    return raw


def summarise(features: Array, labels: Array, classes: int, rank: int) -> Prior:
    """The sums of these samples as at most ``rank`` rows: the largest eigenvectors of ``ΦᵀΦ``.

    Args:
        features: float[N, F], standardised.
        labels: int[N].
        classes: C.
        rank: of the approximation.
    """
    xp = array_namespace(features)
    right = xp.astype(class_members(labels, classes), xp.float64)
    counts = xp.sum(right, axis=0)
    weights = xp.sqrt(right @ (1 / xp.where(counts > 0, counts, xp.ones_like(counts))))[:, None]
    rows, targets = weights * with_constant(features), weights * right
    each = xp.eye(rows.shape[1], dtype=xp.float64, device=device(rows))
    values, coordinates, vectors = decompose(rows, each)
    order = xp.argsort(-values)[:rank]
    order = order[values[order] > 1e-9 * xp.max(values)]
    lengths = xp.sqrt(values[order])
    return Prior(
        lengths[:, None] * vectors[:, order].T, coordinates[:, order].T @ targets / lengths[:, None], counts > 0
    )


def with_constant(features: Array) -> Array:
    """float64[N, F + 1]."""
    xp = array_namespace(features)
    constant = xp.full((features.shape[0], 1), CONSTANT, dtype=xp.float64, device=device(features))
    return xp.concat([xp.astype(features, xp.float64), constant], axis=1)


def decompose(rows: Array, others: Array) -> tuple[Array, Array, Array]:
    """Eigenvalues [K] of ``rowsᵀ rows``; coordinates, by its eigenvectors, of the rows [n, K] and of others [m, K]."""
    xp = array_namespace(rows)
    if rows.shape[1] <= rows.shape[0]:
        values, vectors = xp.linalg.eigh(rows.T @ rows)
        return _not_negative(values), rows @ vectors, others @ vectors
    values, samples = xp.linalg.eigh(rows @ rows.T)
    values = _not_negative(values)
    lengths = xp.sqrt(values)
    along = samples / xp.where(lengths > 0, lengths, xp.ones_like(lengths))
    return values, samples * lengths, (others @ rows.T) @ along  # the eigenvectors are rowsᵀ along


def _not_negative(values: Array) -> Array:
    """Eigenvalues of a scatter matrix without the rounding."""
    xp = array_namespace(values)
    return xp.where(values > 0, values, xp.zeros_like(values))


def part_of(rows: Array, width: int) -> Array:
    """The first ``width`` features and the constant."""
    if width + 1 == rows.shape[1]:
        return rows
    return array_namespace(rows).concat([rows[:, :width], rows[:, -1:]], axis=1)


def spread(labels: Array, count: int) -> Array:
    """Indices of so many samples, of each class its share."""
    xp = array_namespace(labels)
    order = xp.argsort(labels, stable=True)
    places = xp.astype(xp.arange(count, dtype=xp.float64, device=device(labels)) * (labels.shape[0] / count), xp.int64)
    return order[places]
