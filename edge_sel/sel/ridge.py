"""The head in closed form: ridge regression on samples and on what the server knew, judged by leave-one-out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from math import inf, isfinite, nan
from typing import NamedTuple

from edge_sel.sel._array import Array, array_namespace, class_members, device
from edge_sel.sel.calibration import Scales, best_scales
from edge_sel.sel.embarrassment import cross_entropy, log_softmax
from edge_sel.sel.feature_sums import (
    CONSTANT,
    Examples,
    Prior,
    Standard,
    as_they_were,
    decompose,
    part_of,
    spread,
    standard_of,
    standardised,
    with_constant,
)

RIDGES = tuple(10.0 ** (step / 3) for step in range(-15, 4))
"""λ to try, in units of the samples' scatter for each class: 1e-5 to 10."""
COARSE = 3
"""First so much of the list of λ is tried, then what is near the best."""
PRIORS = (0.3, 1.0, 3.0, 10.0)
"""Weights to try of what the server knew; 1 is that of the device's samples. None is 0: nothing is to be forgotten."""
OLD_HEADS = (0.0, 0.3, 1.0, 3.0)
"""The same of what the old head says of the device's samples, where nothing else is known of the server."""
SHARED = 0.3
"""Weight of the loss of a server's example whose class the device has samples of; of other classes it is 1."""
CHOSEN_BY = 512
"""Samples that choices are made by, at most: a decomposition takes their number cubed."""


class HeadFit(NamedTuple):
    """A head for features φ: logits are ``weight φ + bias``."""

    weight: Array
    """float[C, F]."""
    bias: Array
    """float[C]."""
    changed: bool
    """Whether it is another one than the old head."""
    ridge: float
    """λ that was chosen, as in ``RIDGES``; infinite where the old head stays."""
    prior: float
    """Weight of what the server, or the old head, knew."""
    scale: float
    """Factor of what was fitted, or of an old head that stays: the reciprocal of a temperature."""
    kept: float
    """Factor of the old head in the new one; ``scale`` where the old head stays."""
    features: int
    """How many were used: the first ones, or all."""
    loss: float
    """Mean cross-entropy of the samples, each under the head that was fitted without it, nats."""
    left_out: Array
    """float64[N, C], logits of each sample under the head that was fitted without it."""


class _Choice(NamedTuple):
    """One candidate: how much of the features, of the prior, of shrinking, of the old head; and its loss."""

    features: int
    prior: float
    ridge: float
    scales: Scales
    loss: float


def fit_head(
    features: Array,
    labels: Array,
    classes: int,
    *,
    old: tuple[Array, Array] | None = None,
    groups: Sequence[int] = (),
    shallow: int = 0,
    standard: Standard | None = None,
    prior: Prior | None = None,
    examples: Examples | None = None,
    ridges: Sequence[float] = RIDGES,
    priors: Sequence[float] = (),
    old_said: Array | None = None,
    addend: tuple[Array, Array] | None = None,
    like: HeadFit | None = None,
) -> HeadFit:
    """The head that does best on samples, and on examples of the server, that it was not fitted to; or the old one.

    Formula: with standardised features and a constant, ``W = (Σ v φᵀφ + w PᵀP + λI)⁻¹ (Σ v φᵀt + w PᵀS)``, t one-hot,
    P and S the prior's rows and targets. v gives the device's samples a mean weight of 1 for each of their classes, and
    the server's classes have w each; a class that the server has not, gets as much more. Each sample's logits under
    the head that was fitted without it are exact and need no second fit: ``t - (t - t̂) / (1 - h)``, h its leverage.
    λ, w and how many of the features are used: those with the least cross-entropy of these logits, plus that of the
    examples; each at its best temperature, and with as much of the old head's logits added as is best, where that one
    knows every class. Both are part of the head, so its probabilities are calibrated.

    Args:
        features: float[N, F], N at least 2.
        labels: int[N] in 0..classes-1.
        classes: C.
        old: weight [C, F] and bias [C] of the head so far, a candidate too; and a prior where there is no other, by
            its probabilities for the samples.
        groups: numbers of features that are of one kind, such as the channels of a layer; each group has the same
            weight. All of them by default.
        shallow: the first so many features are a candidate by themselves; 0 for none.
        standard: of the features; by default that of the samples.
        prior: what the server knew.
        examples: of the server.
        ridges: λ to try.
        priors: w to try; by default ``PRIORS`` or ``OLD_HEADS``.
        old_said: float[N, C], logits of samples that the old head has learnt, as it would say without them; NaN in rows
            of others. None: it has learnt none.
        addend: weight and bias of the head whose logits may be added, if not ``old``.
        like: an earlier fit whose choices are taken as they are: one solution and no search, for a few samples more.

    Source: Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 7.10 (leave-one-out of a linear fit);
    Guo et al. 2017 (temperature scaling); Wolpert 1992 (stacking); Fanì et al. 2024 (sums of several places add up).
    """
    standard = standard or standard_of(features, groups)
    data = _Data(_Given(features, labels, classes, standard, prior, examples, old, old_said, addend))
    few = data if features.shape[0] <= CHOSEN_BY else data.subset(spread(labels, CHOSEN_BY))
    if like is not None:
        return data.like(like)
    says = old is not None and bool(data.xp.any(old[0] != 0))  # a new head does not
    tried = priors or (PRIORS if prior is not None else OLD_HEADS if says else (0.0,))
    widths = dict.fromkeys((shallow or features.shape[1], features.shape[1]))
    choices = [few.old_head()] if old is not None else []
    for width in widths:
        for weight in tried:
            choices += few.candidates(width, weight, ridges[::COARSE])
    best = min(choices, key=lambda choice: choice.loss)  # of equal ones the old head
    if not best.features:
        return data.as_it_is(best)
    place = ridges.index(best.ridge)
    near = [ridge for ridge in ridges[max(0, place - COARSE + 1) : place + COARSE] if ridge != best.ridge]
    finer = few.candidates(best.features, best.prior, near, best.scales)
    return data.fitted(min([best, *finer], key=lambda choice: choice.loss))


class _Given(NamedTuple):
    """What ``fit_head`` was given."""

    features: Array
    labels: Array
    classes: int
    standard: Standard
    prior: Prior | None
    examples: Examples | None
    old: tuple[Array, Array] | None
    old_said: Array | None
    addend: tuple[Array, Array] | None


class _Data:
    """Samples, prior and examples in one form."""

    def __init__(self, given: _Given) -> None:
        self.xp = xp = array_namespace(given.features)
        self._given, self._labels, self.standard = given, given.labels, given.standard
        self._targets = xp.astype(class_members(given.labels, given.classes), xp.float64)
        self._samples = with_constant(standardised(given.features, given.standard))
        examples = given.examples
        self._examples = None if examples is None else (with_constant(examples.features), examples.labels)
        counts = xp.sum(self._targets, axis=0)
        self._met = counts > 0
        self._mass: float = float(xp.sum(xp.astype(self._met, xp.float64))) / given.features.shape[0]
        self._counts = counts * self._mass
        self._prior = given.prior
        if given.prior is None and given.old is not None:
            probabilities = xp.exp(log_softmax(self._old_logits()[0]))
            root = self._mass**0.5
            self._prior = Prior(root * self._samples, root * probabilities, self._met | ~self._met)

    def subset(self, rows: Array) -> _Data:
        """With these samples only."""
        given = self._given
        said = None if given.old_said is None else given.old_said[rows]
        return _Data(given._replace(features=given.features[rows], labels=given.labels[rows], old_said=said))

    def _old_logits(self) -> tuple[Array, Array | None]:
        """Of the samples and of the examples under the old head."""
        assert self._given.old is not None
        return self._logits(self._given.old, self._given.old_said)

    def _logits(self, head: tuple[Array, Array], said: Array | None) -> tuple[Array, Array | None]:
        xp, features = self.xp, self._given.features
        weight, bias = (xp.astype(part, xp.float64) for part in head)
        of_examples = None
        if self._examples is not None:
            of_examples = as_they_were(self._examples[0][:, :-1], self.standard) @ weight.T + bias
        known = xp.where(xp.isfinite(features), features, xp.full_like(features, nan))  # of an infinity NumPy warns
        of_samples = xp.astype(known, xp.float64) @ weight.T + bias
        if said is not None:
            logits = xp.astype(said, xp.float64)
            of_samples = xp.where(xp.isnan(logits), of_samples, logits)
        return of_samples, of_examples

    def candidates(
        self, width: int, weight: float, ridges: Sequence[float], scales: Scales | None = None
    ) -> Iterator[_Choice]:
        """Of each λ; the search for the scales begins with these, and then with what was best before."""
        rows, targets, masses = self._system(width, weight)
        others = rows[:0] if self._examples is None else part_of(self._examples[0], width)
        values, coordinates, examples = decompose(rows, others)
        before = rows.shape[0] - self._samples.shape[0]
        projected = coordinates.T @ targets
        own, unit = coordinates[before:], self._unit(width)
        for ridge in ridges:
            inverse = 1 / (values + ridge * unit)
            solved = inverse[:, None] * projected
            left_out = self._left_out(own @ solved, (own * own) @ inverse, masses)
            scales, loss = self._judge(left_out, examples @ solved, scales, self._kept)
            yield _Choice(width, weight, ridge, scales, loss)

    def _judge(
        self, left_out: Array, of_examples: Array | None, start: Scales | None = None, other: Array | None = None
    ) -> tuple[Scales, float]:
        """The scales at which the loss is least, and that loss; ``other`` is of the samples, then of the examples."""
        xp = self.xp
        logits, labels = left_out, self._labels
        weights = xp.full((logits.shape[0],), 1 / logits.shape[0], dtype=xp.float64, device=device(logits))
        if of_examples is not None and self._examples is not None and of_examples.shape[0]:
            theirs = self._examples[1]
            each = xp.where(self._met[theirs], xp.full_like(of_examples[:, 0], SHARED), xp.ones_like(of_examples[:, 0]))
            logits, labels = xp.concat([logits, of_examples]), xp.concat([labels, theirs])
            weights = xp.concat([weights, each / of_examples.shape[0]])
        scales = best_scales(logits, labels, weights, other, start)
        loss = self._loss(logits, labels, weights, scales, other)
        if scales.other > 0:
            loss += 1 / left_out.shape[0]  # one number more was fitted to these losses (Akaike 1974)
            alone = best_scales(logits, labels, weights, None, start and Scales(start.own))
            if (of_one := self._loss(logits, labels, weights, alone, None)) < loss:
                scales, loss = alone, of_one
        return scales, loss if isfinite(loss) else inf

    @staticmethod
    def _loss(logits: Array, labels: Array, weights: Array, scales: Scales, other: Array | None) -> float:
        scaled = scales.own * logits if other is None else scales.own * logits + scales.other * other
        return float(array_namespace(logits).sum(weights * cross_entropy(scaled, labels)))

    def old_head(self) -> _Choice:
        """The candidate that changes nothing but the temperature."""
        return _Choice(0, 0.0, inf, *self._judge(*self._old_logits()))

    @cached_property
    def _kept(self) -> Array | None:
        """The addend's logits of the samples, then of the examples; None where it does not know every class here."""
        xp, given = self.xp, self._given
        head, said = (given.old, given.old_said) if given.addend is None else (given.addend, None)
        if head is None or not bool(xp.all(xp.any(head[0] != 0, axis=1))):
            return None
        samples, examples = self._logits(head, said)
        every = samples if examples is None else xp.concat([samples, examples])
        return every if bool(xp.all(xp.isfinite(every))) else None

    def like(self, fit: HeadFit) -> HeadFit:
        """By the choices of another fit."""
        best = _Choice(fit.features if fit.changed else 0, fit.prior, fit.ridge, Scales(fit.scale, fit.kept), fit.loss)
        return self.fitted(best) if fit.changed else self.as_it_is(best)

    def as_it_is(self, best: _Choice) -> HeadFit:
        """The old head at its best temperature."""
        xp, features, old = self.xp, self._given.features, self._given.old
        assert old is not None
        own = best.scales.own
        logits = own * self._old_logits()[0]
        loss = float(xp.mean(cross_entropy(logits, self._labels)))
        weight, bias = (part * xp.asarray(own, dtype=part.dtype) for part in old)
        return HeadFit(weight, bias, False, best.ridge, 0.0, own, own, features.shape[1], loss, logits)

    def fitted(self, best: _Choice) -> HeadFit:
        """A head for features as they are: the standard, the temperature and the old head are part of it."""
        xp, dtype, (own, other) = self.xp, self._given.features.dtype, best.scales
        coefficients, left_out = self._solve(best.features, best.prior, best.ridge)
        mean, scale = (xp.astype(part, xp.float64) for part in self.standard)
        unused = (scale.shape[0] - best.features, coefficients.shape[1])
        rows = xp.concat([coefficients[:-1], xp.zeros(unused, dtype=xp.float64, device=device(scale))])
        weight = own * (rows.T * scale)
        bias = own * CONSTANT * coefficients[-1] - weight @ mean
        left_out = own * left_out
        addend = self._given.addend or self._given.old
        if other and self._kept is not None and addend is not None:
            weight, bias = (
                new + other * xp.astype(part, xp.float64) for new, part in zip((weight, bias), addend, strict=True)
            )
            left_out = left_out + other * self._kept[: left_out.shape[0]]
        loss = float(xp.mean(cross_entropy(left_out, self._labels)))
        weight, bias = (xp.astype(part, dtype) for part in (weight, bias))
        return HeadFit(weight, bias, True, best.ridge, best.prior, own, other, best.features, loss, left_out)

    def _solve(self, width: int, weight: float, ridge: float) -> tuple[Array, Array]:
        """Coefficients [width + 1, C] and the left-out logits [N, C] of one candidate, without a decomposition."""
        xp = self.xp
        rows, targets, masses = self._system(width, weight)
        before, strength = rows.shape[0] - self._samples.shape[0], ridge * self._unit(width)
        if rows.shape[0] < rows.shape[1]:
            inverse = _inverse(rows @ rows.T, strength)
            dual = inverse @ targets
            leverage = 1 - strength * xp.linalg.diagonal(inverse)[before:]
            coefficients = rows.T @ dual
        else:
            inverse = _inverse(rows.T @ rows, strength)
            coefficients = inverse @ (rows.T @ targets)
            leverage = xp.sum((rows[before:] @ inverse) * rows[before:], axis=1)
        return coefficients, self._left_out(rows[before:] @ coefficients, leverage, masses)

    def _left_out(self, fitted: Array, leverage: Array, masses: Array) -> Array:
        """float64[N, C]; what is fitted is scaled by the root of each sample's mass."""
        xp = self.xp
        rest = 1 - leverage
        rest = xp.where(rest > 1e-12, rest, xp.full_like(rest, 1e-12))
        return self._targets - (self._targets - fitted / masses) / rest[:, None]

    def _system(self, width: int, weight: float) -> tuple[Array, Array, Array]:
        """Rows and targets, those of the prior first; and the roots of the samples' masses [N, 1]."""
        xp, samples, targets = self.xp, part_of(self._samples, width), self._targets
        if self._prior is None or not weight:
            masses = xp.full((samples.shape[0], 1), self._mass**0.5, dtype=xp.float64, device=device(samples))
            return masses * samples, masses * targets, masses
        known = self._prior.known
        absent = xp.sum(xp.astype(known & ~self._met, xp.float64)) / xp.sum(xp.astype(known, xp.float64))
        weight = weight + float(absent)
        counts = xp.where(self._met, self._counts, xp.ones_like(self._counts))
        more = xp.where(known | ~self._met, xp.ones_like(counts), (counts + weight) / counts)
        masses = xp.sqrt(self._mass * (targets @ more))[:, None]
        rows = xp.concat([weight**0.5 * part_of(xp.astype(self._prior.rows, xp.float64), width), masses * samples])
        return rows, xp.concat([weight**0.5 * xp.astype(self._prior.targets, xp.float64), masses * targets]), masses

    def _unit(self, width: int) -> float:
        """The samples' scatter for each class."""
        xp, features = self.xp, self._samples[:, :width]
        return max(float(xp.sum(features * features)) * self._mass, 1e-12)


def _inverse(matrix: Array, strength: float) -> Array:
    """Of a square matrix with ``strength`` added to its diagonal."""
    xp = array_namespace(matrix)
    return xp.linalg.inv(matrix + strength * xp.eye(matrix.shape[0], dtype=matrix.dtype, device=device(matrix)))
