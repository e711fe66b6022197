"""Whether probabilities are as sure as they are right, the temperature at which they are, and labels in doubt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edge_sel.sel._array import Array, array_namespace, as_float, class_members
from edge_sel.sel.embarrassment import log_softmax

_NEWTON = 10
"""Steps to the best temperature."""
_MOST_SCALE = 100.0
_CLOSE = 1e-3
"""Change of a scale, relative, at which it is found: the next one would be of the square of this."""
_FLAT = 1e-9
"""Share of the curvature that is left where two sets of logits are the same but for rounding."""
_BINS = 15


class Scales(NamedTuple):
    """Factors of logits, and of another model's logits that are added."""

    own: float
    other: float = 0.0


def best_scales(
    logits: Array, labels: Array, weights: Array, other: Array | None = None, start: Scales | None = None
) -> Scales:
    """Where the weighted cross-entropy of ``own · logits + other · other`` is least, no factor negative.

    It is convex, so Newton's steps find it. One factor alone is temperature scaling. Each label counts as wrong in one
    case of N + 2, any class as likely: else a model that has every sample right would be made infinitely sure.

    Args:
        logits: float64[N, C].
        labels: int[N].
        weights: float64[N].
        other: float64[N, C]; None for none.
        start: where to begin; by default where logits deviate by 1.

    Source: Guo et al. 2017; Wolpert 1992 (stacking); Platt 1999 (targets short of certainty).
    """
    xp = array_namespace(logits)
    members = class_members(labels, logits.shape[1])
    parts = [logits] if other is None else [logits, other]
    doubt = 1 / (logits.shape[0] + 2)
    rights = [
        (1 - doubt) * xp.sum(xp.where(members, part, xp.zeros_like(part)), axis=1) + doubt * xp.mean(part, axis=1)
        for part in parts
    ]
    spread = max(float(xp.mean(xp.std(logits, axis=1))), 1e-12)
    a, b = start or Scales(1 / spread, 0.0 if other is None else 0.5)
    for _ in range(_NEWTON):
        chances = xp.exp(log_softmax(a * logits if other is None else a * logits + b * other))
        slopes, curves = _derivatives(chances, parts, rights, weights)
        aa, step, change = curves[0][0], 0.0, 0.0
        if aa > 0:
            step = slopes[0] / aa
        if other is not None and (b > 0 or slopes[1] < 0):
            ab, bb = curves[1]
            if (volume := aa * bb - ab * ab) > _FLAT * aa * bb:
                step, change = (bb * slopes[0] - ab * slopes[1]) / volume, (aa * slopes[1] - ab * slopes[0]) / volume
        last = a, b
        a, b = min(max(a - step, a / 3), 3 * a), min(max(b - change, 0.0), 3 * b + 1)
        if abs(a - last[0]) <= _CLOSE * a and abs(b - last[1]) <= _CLOSE * max(b, 1.0):
            break
    return Scales(min(a, _MOST_SCALE / spread), b)


def _derivatives(
    chances: Array, parts: Sequence[Array], rights: Sequence[Array], weights: Array
) -> tuple[list[float], list[list[float]]]:
    """Of the weighted cross-entropy by each part's factor: the slopes, and the curvatures below the diagonal."""
    xp = array_namespace(chances)
    means = [xp.sum(chances * part, axis=1) for part in parts]
    slopes = [float(xp.sum(weights * (mean - own))) for mean, own in zip(means, rights, strict=True)]
    curves = [
        [
            float(xp.sum(weights * (xp.sum(chances * first * second, axis=1) - mean * means[column])))
            for column, second in enumerate(parts[: row + 1])
        ]
        for row, (first, mean) in enumerate(zip(parts, means, strict=True))
    ]
    return slopes, curves


def calibration_error(logits: Array, labels: Array) -> float:
    """Expected calibration error: how far the probability of the predicted class is from the share that is right.

    Formula: ``Σ_b |Σ_{i in b} (right_i - p_i)| / N`` over 15 bins of p of equal width. A prediction that is no number
    counts as surely wrong.

    Args:
        logits: float[N, C].
        labels: int[N].

    Returns:
        0 to 1; of few images it is too large, as chance does not cancel in a bin.

    Source: Guo et al. 2017.

    Example:
        >>> import numpy as np
        >>> round(calibration_error(np.array([[0.0, 0.0], [0.0, 0.0]]), np.array([0, 1])), 4)
        0.0
    """
    xp = array_namespace(logits, labels)
    surest = xp.exp(xp.max(log_softmax(as_float(logits)), axis=1))
    surest = xp.where(xp.isfinite(surest), surest, xp.ones_like(surest))
    gaps = xp.astype(xp.argmax(logits, axis=1) == labels, surest.dtype) - surest
    found: float = 0.0
    for number in range(_BINS):
        inside = (surest > number / _BINS) & (surest <= (number + 1) / _BINS)
        found += abs(float(xp.sum(xp.where(inside, gaps, xp.zeros_like(gaps)))))
    return float(found / logits.shape[0])


_MODEST, _HOPELESS = 0.3, 0.5
"""Shares of disagreement: up to the first the model is good enough to be asked, above the second it is not."""
_AS_OFTEN = 0.6
"""Where the model is sure, it disagrees at least so many times as often as elsewhere, if the labels are to blame."""
_SURE, _LEAST_SURE = 0.1, 20
"""Share of the samples of which a model is sure, and their least number."""


def find_label_errors(logits: Array, labels: Array) -> Array:
    """The class that each sample looks like, where that is not its label.

    Formula: t_c is the mean of p_c over the samples labelled c. A sample looks like class c if ``p_c >= t_c``; of
    several the most probable counts. The label is in doubt if that class is another one, and more probable than it.

    A model that is right in 86 of 100 cases doubts 3 to 5 of 100 good labels, a worse one far more; of labels of which
    30 of 100 were changed at random it doubts 26 to 30, where nothing can be learnt nearly all. ``surest_label_errors``
    leaves those that the labels are to blame for, and not the model.

    Args:
        logits: float[N, C] of samples that the model was not fitted to, such as left-out or validation ones.
        labels: int[N] in 0..C-1.

    Returns:
        int64[N], the other class; -1 where the label is not in doubt.

    Source: Northcutt, Jiang and Chuang 2021, Confident Learning (the confident joint).

    >>> import numpy as np
    >>> sure = np.array([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, 9.0]])
    >>> find_label_errors(sure, np.array([0, 0, 1, 0])).tolist()
    [-1, -1, -1, 1]
    """
    xp = array_namespace(logits)
    p = _probabilities(logits)
    own = class_members(labels, logits.shape[1])
    counts = xp.astype(xp.sum(xp.astype(own, xp.int64), axis=0), xp.float64)
    mean = xp.sum(xp.where(own, p, 0.0), axis=0) / xp.where(counts > 0, counts, 1.0)
    least = xp.where(counts > 0, mean, 2.0)  # nothing looks like a class that nobody has
    likely = xp.where((p >= least[None, :]) & ~own, p, -1.0)
    other = xp.argmax(likely, axis=1)
    doubted = xp.max(likely, axis=1) > xp.sum(xp.where(own, p, 0.0), axis=1)
    return xp.where(doubted, xp.astype(other, xp.int64), -1)


def surest_label_errors(logits: Array, labels: Array) -> Array:
    """Of the labels in doubt as many as a model can tell from its own errors, the surest first.

    A wrong label is met as often where the model is sure as elsewhere; an error of the model is not. So the share of
    wrong labels is taken to be that of disagreement among the tenth of the samples of which the model is surest, less
    one standard error. Nothing is in doubt where the model disagrees with more than half of the labels, or with more
    than 3 in 10 and mostly where it is not sure.

    Of 280 paintings with right labels, by features of seven networks that were right in 88 to 29 % of them, none was
    in doubt (by ``find_label_errors`` 1.5 to 68 %); of 28 wrong labels among 280 ten were found, with one false alarm
    (tools/label_doubts.py).

    Args:
        logits: as for ``find_label_errors``.
        labels: likewise.

    Returns:
        int64[N], the other class; -1 where the label is not in doubt.
    """
    xp = array_namespace(logits)
    found = find_label_errors(logits, labels)
    p = _probabilities(logits)
    count = logits.shape[0]
    sure = min(count, max(_LEAST_SURE, int(_SURE * count)))
    differs = xp.astype(xp.argmax(p, axis=1) != labels, xp.float64)
    where_sure = float(xp.mean(differs[xp.argsort(-xp.max(p, axis=1), stable=True)[:sure]]))
    everywhere = float(xp.mean(differs))
    if everywhere > _HOPELESS or (everywhere > _MODEST and where_sure < _AS_OFTEN * everywhere):
        return xp.full_like(found, -1)
    allowed = int(count * max(0.0, where_sure - (where_sure * (1 - where_sure) / sure) ** 0.5))
    own = xp.sum(xp.where(class_members(labels, logits.shape[1]), p, 0.0), axis=1)
    lead = xp.where(found >= 0, xp.max(p, axis=1) - own, -1.0)
    rank = xp.argsort(xp.argsort(-lead, stable=True), stable=True)
    return xp.where((rank < allowed) & (found >= 0), found, -1)


def _probabilities(logits: Array) -> Array:
    xp = array_namespace(logits)
    exact = xp.astype(logits, xp.float64)
    odds = xp.exp(exact - xp.max(exact, axis=1, keepdims=True))
    return odds / xp.sum(odds, axis=1, keepdims=True)
