"""Embarrassment: how badly the model does on each class, measured with a softened cross-entropy."""

from __future__ import annotations

from typing import NamedTuple

import numpy

from edge_sel.sel._array import Array, Namespace, array_namespace, as_float, class_members, device, resolve_namespace

TEMPERATURE = 1.5
"""The published softening temperature T."""


def log_softmax(logits: Array) -> Array:
    """Logarithms of the probabilities, as the logits [N, C]."""
    xp = array_namespace(logits)
    # Subtracting the maximum keeps exp() in range; the result does not change.
    shifted = logits - xp.max(logits, axis=1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=1, keepdims=True))


def cross_entropy(logits: Array, labels: Array, temperature: float = 1.0) -> Array:
    """Cross-entropy of every sample, numerically stable.

    Formula: ``loss_i = -log softmax(logits_i / T)[y_i]``

    Args:
        logits: float[N, C].
        labels: int[N] in ``0..C-1``. A label outside yields an infinite loss rather than a plausible one.
        temperature: T > 0; 1 is the ordinary loss.

    Returns:
        float[N] in nats, float32 for half-precision logits.

    Example:
        >>> import numpy as np
        >>> cross_entropy(np.array([[0.0, 0.0], [0.0, 1000.0]]), np.array([0, 1])).round(4).tolist()
        [0.6931, 0.0]
    """
    xp = array_namespace(logits, labels)
    log_p = log_softmax(as_float(logits) / temperature)
    # 0 - x rather than -x, here and below: a perfect prediction costs 0, not -0.
    return 0.0 - xp.max(xp.where(class_members(labels, logits.shape[1]), log_p, -xp.inf), axis=1)


def entropy(logits: Array) -> Array:
    """Entropy of every sample's prediction: 0 when certain, ``log C`` when clueless.

    Formula: ``H_i = -sum_c p_ic log p_ic`` with ``p = softmax(logits)``

    Args:
        logits: float[N, C].

    Returns:
        float[N] in nats.

    Example:
        >>> import numpy as np
        >>> entropy(np.zeros((1, 2))).round(4).tolist()
        [0.6931]
    """
    xp = array_namespace(logits)
    log_p = log_softmax(as_float(logits))
    p = xp.exp(log_p)
    # 0 * log 0 is 0 here; without the guard a logit of -inf would make it NaN.
    return 0.0 - xp.sum(p * xp.where(p > 0, log_p, 0.0), axis=1)


class EmbarrassmentSums(NamedTuple):
    """What streaming an epoch batch by batch has to remember: loss_sum[C] in nats, count[C] in samples."""

    loss_sum: Array
    count: Array


def init_sums(n_classes: int, xp: Namespace = numpy, *, device: object = None) -> EmbarrassmentSums:
    """Empty sums for ``n_classes`` classes, float64 on ``device``."""
    xp = resolve_namespace(xp)
    return EmbarrassmentSums(
        xp.zeros(n_classes, dtype=xp.float64, device=device),
        xp.zeros(n_classes, dtype=xp.float64, device=device),
    )


def add_batch(sums: EmbarrassmentSums, logits: Array, labels: Array) -> EmbarrassmentSums:
    """The sums with one more batch in them.

    Args:
        sums: so far.
        logits: float[N, C].
        labels: int[N].

    Returns:
        New sums; the given ones are untouched. Adding batches one by one equals adding them all at once.
    """
    xp = array_namespace(logits, labels)
    loss = cross_entropy(logits, labels, TEMPERATURE)
    members = class_members(labels, sums.count.shape[0])
    # where() instead of members * loss: one infinite loss must not turn every other class into NaN.
    loss_sum = xp.sum(xp.where(members, loss[:, None], 0.0), axis=0, dtype=xp.float64)
    return EmbarrassmentSums(sums.loss_sum + loss_sum, sums.count + xp.sum(members, axis=0, dtype=xp.float64))


def means(sums: EmbarrassmentSums, *, previous: Array | None = None) -> Array:
    """The mean loss per class; a class without samples keeps its previous value, or is NaN if there is none.

    Args:
        sums: what has been collected.
        previous: float[C], the embarrassment known before, or None.

    Returns:
        float64[C] in nats.
    """
    xp = array_namespace(sums.count)
    seen = sums.count > 0
    mean = sums.loss_sum / xp.where(seen, sums.count, 1.0)
    if previous is None:
        return xp.where(seen, mean, xp.nan)
    return xp.where(seen, mean, xp.astype(previous, mean.dtype))


def class_embarrassment(logits: Array, labels: Array, n_classes: int) -> Array:
    """Embarrassment of every class over one set of samples.

    Formula: ``E_c = mean over {i: y_i = c} of CE(logits_i / T, y_i)``, T = ``TEMPERATURE``

    Args:
        logits: float[N, C].
        labels: int[N] in ``0..C-1``.
        n_classes: C.

    Returns:
        float64[C] in nats; NaN for a class that is absent from ``labels``.

    Example:
        >>> import numpy as np
        >>> class_embarrassment(np.zeros((2, 2)), np.array([1, 1]), 2).round(4).tolist()
        [nan, 0.6931]

    Source: SEL README v3, "Per-Class Embarrassment Signal".
    """
    xp = array_namespace(logits, labels)
    return means(add_batch(init_sums(n_classes, xp, device=device(logits)), logits, labels))


def confidence(embarrassment: Array) -> Array:
    """Confidence of every class.

    Formula: ``C_c = max(0, 1 - E_c)``

    Args:
        embarrassment: float[C] in nats. From 1 nat upwards the confidence is 0, so an untrained model
            (``E = log C``) is never confident; NaN stays NaN.

    Returns:
        float[C] in 0..1.

    Source: SEL README v3, "Per-Class Embarrassment Signal".
    """
    xp = array_namespace(embarrassment)
    return xp.maximum(1.0 - embarrassment, xp.zeros_like(embarrassment))
