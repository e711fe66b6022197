"""Evidence that one model is better than another, from both models' logits for the same labelled images.

Less loss is no evidence by itself: a model that was trained on wrong labels is less sure of itself, and where many
labels are wrong that alone lowers the loss. So each model is first given what it could have had without learning
anything about the images: the temperature and the share of random labels under which its loss is least. What is left
between the two models is what they know.
"""

from __future__ import annotations

from math import ceil, comb, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

TEMPERATURES = tuple(np.exp(np.linspace(-1.5, 3.0, 19)).tolist())
RANDOM_SHARES = (1e-3, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1 - 1e-6)
"""Shares of the labels that are random; never none, so that one wrong label cannot outweigh all others."""
ENOUGH = 500
"""Images after which more would not pay: they cost two forward passes each."""
FLIPS = 2000
"""Random signs of the permutation test: p values are multiples of about 1/2000."""
BY_ACCURACY = 0.2
"""Share of the allowed errors that the test of accuracy may make; the rest is for that of the loss, which sees more."""
WORSE = 0.05
"""Level of the test that a model is *less* accurate. No setting: it only ever keeps the old model."""
POWER = 0.8
"""Chance that as many images as ``images_needed`` show what seems to be there."""


class Evidence(NamedTuple):
    """What the same labelled images say of two models, before and after."""

    images: int
    gain: float
    """Accuracy after minus before, as a share."""
    low: float
    """Lower end of the interval of ``gain``, at the level that was asked for; ``high``: its upper end."""
    high: float
    p_loss: float
    """Chance of so much less loss, or more, if neither model were better."""
    p_right: float
    """Chance of so many more images right, if neither were more accurate; ``p_worse``: of so many fewer."""
    p_worse: float
    images_needed: int | None
    """That would show what there seems to be; None where nothing seems better."""

    def better(self, level: float) -> bool:
        """Whether the second model is better, and not less accurate; at 0.9 one in ten equal ones seems so at most."""
        chance = 1 - level
        shown = self.p_loss <= (1 - BY_ACCURACY) * chance or self.p_right <= BY_ACCURACY * chance
        return shown and self.p_worse > WORSE and self.gain >= 0


def compare(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, rng: np.random.Generator, *, level: float = 0.95,
    flips: int = FLIPS,
) -> Evidence:  # fmt: skip
    """Pair two models' predictions.

    Formula: losses by ``fair_losses``; ``p_loss`` is the share of random signs s with ``sum s_i d_i >= sum d_i``, d the
    losses' differences; ``p_right`` and ``p_worse`` are exact McNemar, binomial tails of the images that only one model
    has right;
    the interval is ``(b - c) / (n + 2) ± z sqrt((b + c + 1) - (b - c)² / (n + 2)) / (n + 2)``, b and c images won and
    lost, each of the four cells of the table half an image larger than it is.

    Args:
        before: float[N, C], logits of the first model.
        after: the same of the second.
        labels: int[N] in 0..C-1.
        rng: of the signs.
        level: of the interval and of ``images_needed``.
        flips: random signs; a p value is at least the reciprocal of their number.

    Returns:
        The evidence; logits that are not finite are evidence of nothing better.

    Source: Good 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses (signs); McNemar 1947; Agresti and Min
    2005 (interval of paired proportions).
    """
    right_before, right_after = before.argmax(1) == labels, after.argmax(1) == labels
    won, lost, count = int((right_after & ~right_before).sum()), int((right_before & ~right_after).sum()), len(labels)
    low, high = _interval(won, lost, count, level)
    p_loss, p_right, needed = 1.0, 1.0, None
    if np.isfinite(after).all() and count:
        p_right = _tail(won, lost)
        differences = fair_losses(before, labels) - fair_losses(after, labels)
        p_loss = _signs(differences, rng, flips)
        needed = _images_needed(differences, level) if won >= lost else None
    return Evidence(count, (won - lost) / max(count, 1), low, high, p_loss, p_right, _tail(lost, won), needed)


def less_accurate(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the second model [N, C] is surely less accurate than the first."""
    right_before, right_after = before.argmax(1) == labels, after.argmax(1) == labels
    lost, won = (right_before & ~right_after).sum(), (right_after & ~right_before).sum()
    return _tail(int(lost), int(won)) <= WORSE


def fair_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropies under the temperature and the share of random labels that suit these logits best.

    Formula: ``-log((1 - e) softmax(z / T)[y] + e prior[y])``, T and e those of ``TEMPERATURES`` and ``RANDOM_SHARES``
    with the least mean, prior the labels' own shares (each class counted once more than it occurs)

    Args:
        logits: float[N, C]; those that are not finite say nothing of their image.
        labels: int[N].

    Returns:
        float64[N] in nats.

    Source: Guo et al. 2017 (temperature scaling); Patrini et al. 2017 (labels that were swapped at random).
    """
    count, classes = logits.shape
    prior = ((np.bincount(labels, minlength=classes) + 1) / (count + classes))[labels]
    known = np.where(np.isfinite(logits), logits, 0.0).astype(np.float64)
    known -= known.max(1, keepdims=True)
    best: np.ndarray = -np.log(prior)
    for temperature in TEMPERATURES:
        odds = np.exp(known / temperature)
        own = odds[np.arange(count), labels] / odds.sum(1)
        for share in RANDOM_SHARES:
            losses = -np.log((1 - share) * own + share * prior)
            if losses.mean() < best.mean():
                best = losses
    return best


def _signs(differences: np.ndarray, rng: np.random.Generator, flips: int) -> float:
    """One-sided p value of their sum being above zero."""
    if not np.any(differences):
        return 1.0
    reached = 0
    for start in range(0, flips, FLIPS):
        signs = rng.integers(0, 2, (min(FLIPS, flips - start), len(differences)), dtype=np.int8) * 2 - 1
        reached += int((signs @ differences >= differences.sum() - 1e-12).sum())
    return (1 + reached) / (1 + flips)


def _images_needed(differences: np.ndarray, level: float) -> int | None:
    """How many images would show a difference of this size with probability ``POWER``."""
    mean, spread = float(differences.mean()), float(differences.std())
    if mean <= 0 or spread == 0:
        return None
    normal = NormalDist()
    return ceil(((normal.inv_cdf(level) + normal.inv_cdf(POWER)) * spread / mean) ** 2)


def _tail(hits: int, misses: int) -> float:
    """Chance of at least so many hits in fair coin flips."""
    total = hits + misses
    return float(sum(comb(total, k) for k in range(hits, total + 1)) / 2**total)


def _interval(won: int, lost: int, count: int, level: float) -> tuple[float, float]:
    z, total = NormalDist().inv_cdf((1 + level) / 2), count + 2
    middle, spread = (won - lost) / total, sqrt(won + lost + 1 - (won - lost) ** 2 / total) / total
    return max(-1.0, middle - z * spread), min(1.0, middle + z * spread)
