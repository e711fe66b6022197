"""Labels that look wrong, by what a model makes of each sample that was not fitted to it."""

from __future__ import annotations

from edge_sel.sel._array import Array, array_namespace, class_members

_MODEST, _HOPELESS = 0.3, 0.6
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
    odds = xp.exp(xp.astype(logits, xp.float64) - xp.max(xp.astype(logits, xp.float64), axis=1, keepdims=True))
    p = odds / xp.sum(odds, axis=1, keepdims=True)
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
    one standard error. Nothing is in doubt where the model disagrees with more than 6 in 10 labels, or with more than 3
    in 10 and mostly where it is not sure.

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
    odds = xp.exp(xp.astype(logits, xp.float64) - xp.max(xp.astype(logits, xp.float64), axis=1, keepdims=True))
    p = odds / xp.sum(odds, axis=1, keepdims=True)
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
