"""The Sundew gate: which samples of a batch are worth a gradient, held at a target rate by a controller.

One batch goes ``significance_v1 -> active_mask -> update``. Two things to know about the published gate:

*Its significance and its threshold do not fit.* ``significance_v1`` has mean 1 in every batch by
construction, while the threshold may not leave 0.01..0.99. Even at the upper bound 38 % of exponentially
distributed losses pass, so 10 % is out of reach, and with the published gains it takes nearly 200 batches
(at 6 %: over 600) to get to the bound at all.

*Its "PI" controller integrates twice.* ``threshold += Kp error`` accumulates, so Kp acts as the integral
gain and Ki as that of a double integral; a large Ki oscillates instead of removing an offset.

The published gate is kept as it is (``PUBLISHED_10``, ``PUBLISHED_6``, ``config_for``).
``SundewConfig.fast`` is the one that converges. It is tuned for the rank of the significance within the batch
(``selection.middle_rank``) in its place: the rate is then ``1 - threshold`` whatever the losses look like.

The control every selection must beat is the same gate with ``significance = u``: random at the same rate.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import numpy

from edge_sel.errors import UsageError
from edge_sel.sel._array import Array, Namespace, array_namespace, as_float, clip, ranks, resolve_namespace

Fallback: TypeAlias = Literal["random2", "none"]

ACTIVE_COST, SKIPPED_COST = 1.0, 0.01
"""The published energy of one active and one skipped sample; a convention, not a measurement."""


class SundewConfig(NamedTuple):
    """The gate's settings. Rates are shares of a batch; the threshold is on the scale of the significance."""

    target_rate: float
    kp: float
    ki: float
    ema_alpha: float = 0.3
    threshold_min: float = 0.01
    threshold_max: float = 0.99
    integral_bound: float = 50.0
    integral_decay: float = 0.90
    initial_threshold: float = 0.5
    floor_rate: float = 0.02
    """What full energy pressure lowers the target to."""

    @classmethod
    def fast(cls, target_rate: float) -> SundewConfig:
        """A gate that is at its target within 60 batches, from any threshold, and stays there as losses fall.

        On ranks the rate is ``1 - threshold``, so the gate starts at its goal and the loop ``error ->
        threshold`` has gain one: with ``Kp = alpha / 2`` its damping is 0.71 (settled in about 35 batches).
        Ki only follows slow drift, and its integral is bounded tightly because the published ±50 would let
        it overshoot for 100 batches.
        """
        _check_rate(target_rate)
        alpha = 0.3
        start = min(max(1 - target_rate, 0.01), 0.99)
        return cls(
            target_rate,
            kp=alpha / 2,
            ki=0.002,
            ema_alpha=alpha,
            integral_bound=1.0,
            initial_threshold=start,
        )


PUBLISHED_10 = SundewConfig(target_rate=0.10, kp=0.0015, ki=0.00005)
PUBLISHED_6 = SundewConfig(target_rate=0.06, kp=0.0008, ki=0.000002)


class SundewState(NamedTuple):
    """What the controller remembers: three 0-d float64 arrays on the device of the masks."""

    threshold: Array
    rate_ema: Array
    integral: Array


def config_for(target_rate: float) -> SundewConfig:
    """The published gains for any target rate.

    At 6 % and 10 % exactly the published ones; between them, log-linear in the rate (``log Kp`` and ``log
    Ki`` over ``log rate``); outside, those of the nearer one, for two points do not carry an extrapolation
    (Ki already differs 25-fold between them). The papers give alpha = 0.3 for 10 % only; it is used
    throughout.

    Source: AST README v1, "PI Controller Gains".
    """
    _check_rate(target_rate)
    low, high = PUBLISHED_6, PUBLISHED_10
    if target_rate <= low.target_rate:
        return low._replace(target_rate=target_rate)
    if target_rate >= high.target_rate:
        return high._replace(target_rate=target_rate)
    at = math.log(target_rate / low.target_rate) / math.log(high.target_rate / low.target_rate)
    return low._replace(
        target_rate=target_rate,
        kp=low.kp * (high.kp / low.kp) ** at,
        ki=low.ki * (high.ki / low.ki) ** at,
    )


def with_pressure(config: SundewConfig, pressure: float) -> SundewConfig:
    """The gate under energy pressure: a lower target, down to the floor.

    Formula: ``target' = target - pressure (target - floor)``; a target already below the floor stays.

    Args:
        config: the *base* settings; apply each new pressure to them, not to the last result, or it compounds.
        pressure: 0 (no hurry) to 1 (save all you can); clipped to that.

    Returns:
        Settings that differ in ``target_rate`` only; the controller moves the threshold there.
    """
    pressure = min(max(pressure, 0.0), 1.0)
    floor = min(config.floor_rate, config.target_rate)
    return config._replace(target_rate=config.target_rate - pressure * (config.target_rate - floor))


def init(config: SundewConfig, xp: Namespace = numpy, *, device: object = None) -> SundewState:
    """The state before the first batch; the remembered rate starts at the target: no initial kick."""
    xp = resolve_namespace(xp)
    values = (config.initial_threshold, config.target_rate, 0.0)
    return SundewState(*(xp.full((), value, dtype=xp.float64, device=device) for value in values))


def active_mask(state: SundewState, significance: Array, u: Array, *, fallback: Fallback = "random2") -> Array:
    """The samples to train on.

    Formula: ``significance > threshold``; if that holds for no sample, the fallback

    In batches smaller than ``2 / target`` two random samples are above the target by themselves: the
    controller then closes the gate for good, and every batch trains at random. Use "none" there and skip the
    step of an empty batch.

    Args:
        state: of the controller.
        significance: float[N], on the scale of the threshold.
        u: uniform[N] in 0..1, the chance the fallback needs.
        fallback: "random2", the two samples with the smallest ``u`` (published); "none", an empty mask.

    Returns:
        bool[N]. NaN is never above the threshold.

    Source: AST README v1, "Fallback Mechanism".
    """
    xp = array_namespace(significance, u)
    active = significance > state.threshold
    if fallback == "none":
        return active
    if fallback != "random2":
        raise ValueError(f"unknown fallback {fallback!r}: random2 or none")
    # Computed always and masked, rather than asked "is there any?": that question would wait for the device.
    return active | ((ranks(u) < 2) & ~xp.any(active))


def update(config: SundewConfig, state: SundewState, active_rate: float | Array) -> SundewState:
    """The controller after one batch.

    Formula: ``ema = alpha rate + (1 - alpha) ema``; ``e = ema - target``; inside the bounds
    ``I = clip(I + e, ±bound)``, else ``I = decay I``; ``threshold = clip(threshold + Kp e + Ki I)``

    Args:
        config: settings, perhaps under pressure.
        state: before the batch.
        active_rate: share of the batch that was trained on, fallback included; a float or a 0-d array.

    Returns:
        The new state.

    Source: AST README v1, "EMA-Smoothed PI Controller" and "Improved Anti-Windup".
    """
    xp = array_namespace(state.threshold)
    # The published alpha rate + (1 - alpha) ema, written so that a float32 rate is widened first.
    rate_ema = state.rate_ema + config.ema_alpha * (active_rate - state.rate_ema)
    error = rate_ema - config.target_rate
    inside = (config.threshold_min < state.threshold) & (state.threshold < config.threshold_max)
    accumulated = clip(state.integral + error, -config.integral_bound, config.integral_bound)
    integral = xp.where(inside, accumulated, state.integral * config.integral_decay)
    threshold = state.threshold + config.kp * error + config.ki * integral
    return SundewState(clip(threshold, config.threshold_min, config.threshold_max), rate_ema, integral)


def nominal_savings_percent(active: float | Array, skipped: float | Array) -> float | Array:
    """The papers' "energy savings" over training on every sample, in percent (0 when there were none). Not joules.

    Formula: ``100 (total - energy) / total``, ``total = active + skipped``, ``energy = 1 active + 0.01 skipped``

    Example:
        >>> round(nominal_savings_percent(104, 896), 2)
        88.7
    """
    total = active + skipped
    energy = ACTIVE_COST * active + SKIPPED_COST * skipped
    return (total - energy) * 100.0 / (total + (total == 0))


def _check_rate(rate: float) -> None:
    if not 0 < rate <= 1:
        raise UsageError("the gate's target rate must lie above 0 and not above 1", where=rate)


def significance_v1(loss: Array, intensity_std: Array) -> Array:
    """How much a sample is worth, relative to its batch.

    Formula: ``0.7 loss / mean(loss) + 0.3 std / mean(std)``; a mean of zero counts as one

    Args:
        loss: float[N] in nats.
        intensity_std: float[N], standard deviation of each image's pixels.

    Returns:
        float[N], with mean 1.

    Source: AST README v1, "Significance Scoring".
    """
    return 0.7 * _relative(loss) + 0.3 * _relative(intensity_std)


def _relative(x: Array) -> Array:
    xp = array_namespace(x)
    x = as_float(x)
    mean = xp.mean(x)
    return x / xp.where(mean == 0, xp.ones_like(mean), mean)


def significance_v101(loss: Array, entropy: Array) -> Array:
    """How much a sample is worth, in absolute terms: it falls as the model learns.

    Formula: ``0.7 loss + 0.3 entropy``

    Args:
        loss: float[N] in nats.
        entropy: float[N] in nats, of the prediction.

    Returns:
        float[N] in nats.

    Source: AST v1.0.1.
    """
    return 0.7 * as_float(loss) + 0.3 * as_float(entropy)
