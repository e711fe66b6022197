"""Whether images still come from where the model learnt, by their features and without a label."""

from __future__ import annotations

from math import erfc, sqrt
from typing import NamedTuple

from edge_sel.sel._array import Array, array_namespace


class Drift(NamedTuple):
    """What two tests say of a window of images against the server's; at a level α each may err in α / 2."""

    images: int
    novel: float
    """Share of images that are newer than all but 5 % of the server's."""
    p_novelty: float
    """Chance of so much higher novelty, or more, if nothing had changed."""
    distance: float
    """Of the features' means, in standard deviations of such a distance where nothing has changed."""
    p_distance: float
    """The same of the distance, and of the spread."""

    def seen(self, level: float) -> bool:
        """Whether something has changed, with so many false alarms at most."""
        return min(self.p_novelty, self.p_distance) <= level / 2


def rank_sum_p(values: Array, others: Array) -> float:
    """One-sided p value that ``values`` float[n] are not larger than ``others`` float[m].

    >>> import numpy
    >>> round(rank_sum_p(numpy.array([4.0, 5.0, 6.0]), numpy.array([1.0, 2.0, 3.0])), 2)
    0.04

    Formula: ``z = (U - nm/2 - ½) / sqrt(nm/12 ((N + 1) - Σ(t³ - t) / (N (N - 1))))``, U the pairs in which the value is
    larger, ties ½, t sizes of ties.

    Source: Mann and Whitney 1947, with the correction for ties of Lehmann 1975.
    """
    xp = array_namespace(values)
    n, m = int(values.shape[0]), int(others.shape[0])
    if not n or not m:
        return 1.0
    more = float(xp.sum(xp.astype(values[:, None] > others[None, :], xp.float64)))
    same = float(xp.sum(xp.astype(values[:, None] == others[None, :], xp.float64)))
    every = xp.concat([values, others])
    total = n + m
    counts = xp.unique_counts(every).counts
    ties = float(xp.sum(xp.astype(counts, xp.float64) ** 3 - xp.astype(counts, xp.float64)))
    variance = n * m / 12 * ((total + 1) - ties / max(total * (total - 1), 1))
    if variance <= 0:
        return 1.0
    z = (more + same / 2 - n * m / 2 - 0.5) / sqrt(variance)
    return 0.5 * erfc(z / sqrt(2))


def distance_p(values: Array, others: Array, shuffles: Array) -> tuple[float, float]:
    """How far the means and spreads of two sets of features are apart, and the one-sided p value of that.

    Formula: ``d = ‖mean(a) - mean(b)‖² + ‖std(a) - std(b)‖²``; the p value is the share of random splits of all rows
    with at least as large a distance.

    Args:
        values: float[n, F].
        others: float[m, F].
        shuffles: int[K, n + m], permutations.

    Source: Good 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses.
    """
    xp = array_namespace(values)
    n, every = values.shape[0], xp.concat([values, others])
    found = [_distance(every[order[:n]], every[order[n:]]) for order in (xp.arange(every.shape[0]), *shuffles)]
    own, rest = found[0], found[1:]
    mean = sum(rest) / len(rest)
    spread = sqrt(sum((each - mean) ** 2 for each in rest) / len(rest))
    reached = sum(each >= own - 1e-12 for each in rest)
    return (own - mean) / max(spread, 1e-12), (1 + reached) / (1 + len(rest))


def _distance(one: Array, other: Array) -> float:
    xp = array_namespace(one)
    means = xp.mean(one, axis=0) - xp.mean(other, axis=0)
    spreads = xp.std(one, axis=0) - xp.std(other, axis=0)
    return float(xp.sum(means * means) + xp.sum(spreads * spreads))
