"""What a linear head in closed form cannot tell yet: predictive variance, and which label would lower it most.

Ridge regression on rows R with strength λ leaves of a direction what the rows do not explain. Its predictive variance
for features φ, in units of the noise of a label, is ``φᵀ(RᵀR + λI)⁻¹φ = (‖φ‖² - ‖Bφ‖²) / λ`` with
``B = L⁻¹R, LLᵀ = RRᵀ + λI``. So one matrix with a row per sample holds all that is known, and a sample more is a row
more. No label is needed: the variance depends on features alone.

Source: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, 2.1 (predictive variance); Yu, Bi and
Tresp 2006, Active Learning via Transductive Experimental Design (which sample to label); Halko, Martinsson and Tropp
2011 (subspace by random projection).
"""

from __future__ import annotations

from typing import NamedTuple

from edge_sel.sel._array import Array, array_namespace, device
from edge_sel.sel.feature_sums import Prior, Standard, standardised, with_constant

SERVER_IMAGES = 10.0
"""The server's knowledge of one class counts as so many labels: it has more, but of another place."""
NOISE = 0.1
"""λ as a share of the mean squared length of features, where there is nothing that it could be chosen by."""
DIRECTIONS = 256
"""Of features that the choice of samples looks at, at most."""


class Known(NamedTuple):
    """What is known after some samples were labelled."""

    standard: Standard
    """Of features."""
    strength: float
    """λ, above 0."""
    explained: Array
    """float64[M, F + 1], the matrix B above."""


def known_of(standard: Standard, strength: float, prior: Prior | None, classes: int) -> Known:
    """What the server knows, before any sample of the device.

    Args:
        standard: how features float[·, F] are standardised.
        strength: λ.
        prior: of the server; None for a device that begins with nothing.
        classes: C of the prior, as each has the same weight in it.
    """
    xp = array_namespace(standard.mean)
    if prior is None:
        none = xp.zeros((0, standard.mean.shape[0] + 1), dtype=xp.float64, device=device(standard.mean))
        return Known(standard, strength, none)
    rows = (SERVER_IMAGES * classes) ** 0.5 * xp.astype(prior.rows, xp.float64)
    rows = rows / max(float(xp.sum(xp.astype(prior.known, xp.float64))), 1.0) ** 0.5
    return Known(standard, strength, _explain(rows, strength))


def _explain(rows: Array, strength: float) -> Array:
    """The matrix B of these rows."""
    xp = array_namespace(rows)
    gram = rows @ rows.T + strength * xp.eye(rows.shape[0], dtype=rows.dtype, device=device(rows))
    made: Array = xp.linalg.solve(xp.linalg.cholesky(gram), rows)
    return made


def unit_features(features: Array, standard: Standard) -> Array:
    """float64[N, F + 1], standardised and with the constant, of features float[N, F]."""
    return with_constant(standardised(features, standard))


def predictive_variance(known: Known, units: Array) -> Array:
    """float64[N] in units of the noise of a label, of ``unit_features`` float64[N, F + 1]."""
    xp = array_namespace(units)
    projected = units @ known.explained.T
    rest = xp.sum(units * units, axis=1) - xp.sum(projected * projected, axis=1)
    return xp.where(rest > 0, rest, xp.zeros_like(rest)) / known.strength


def with_samples(known: Known, units: Array) -> Known:
    """With labels of these samples too, float64[N, F + 1]."""
    xp, explained, strength = array_namespace(units), known.explained, known.strength
    if not units.shape[0]:
        return known
    rest = units - (units @ explained.T) @ explained
    # The rows of what is left: B' = L⁻¹(Φ P), LLᵀ = Φ P Φᵀ + λI, with P the projection away from what is explained.
    gram = rest @ units.T + strength * xp.eye(units.shape[0], dtype=units.dtype, device=device(units))
    more = xp.linalg.solve(xp.linalg.cholesky((gram + gram.T) / 2), rest)
    return known._replace(explained=xp.concat([explained, more]))


def directions_of(units: Array, known: Known, chance: Array) -> Array:
    """float64[F + 1, D], an orthonormal basis of where these samples differ most, once what is known is taken away.

    Args:
        units: float64[N, F + 1].
        known: so far.
        chance: float64[N, D], standard normal numbers; D at most the smaller of N and F + 1.
    """
    xp = array_namespace(units)
    rest = units - (units @ known.explained.T) @ known.explained
    basis = xp.linalg.qr(rest.T @ chance).Q
    return xp.linalg.qr(rest.T @ (rest @ basis)).Q  # one step of the power method sharpens it


def label_gains(units: Array, known: Known, doubt: Array) -> Array:
    """How much a label of each sample would lower the predictive variance of those that the model is in doubt of.

    Formula: ``Σ_j w_j k_ij² / (λ + k_ii) / λ``, ``k_ij = φ_iᵀ (I - BᵀB) φ_j``. With equal weights w this is Yu et al.;
    a model that is sure of familiar samples needs no label to be sure of them, so each counts by its doubt.

    Args:
        units: float[N, D], from ``unit_features``, or these in fewer directions: ``units @ directions``, with
            ``known.explained @ directions``.
        known: so far.
        doubt: float[N], w: such as the probability that the model is wrong.
    """
    xp = array_namespace(units)
    explained = xp.astype(known.explained, units.dtype)
    left = xp.eye(units.shape[1], dtype=units.dtype, device=device(units)) - explained.T @ explained
    rest = units @ left
    own = xp.sum(rest * units, axis=1)
    shared = xp.sum((rest @ (units.T @ (doubt[:, None] * units))) * rest, axis=1)
    return shared / (known.strength + own) / known.strength
