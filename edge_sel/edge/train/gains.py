"""What a stage of training is expected to gain: by what it gained on the server, in conditions that it simulated.

The pack's table has a row for every stage that the server rehearsed (``api/rehearsal.py``). A device reads it at its
own place: how much higher its validation loss is than the server's was on clean images, and how many images it visits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edge_sel.pack.manifest import CLOSED, RIDGE, GainRow

HEAD_KIND, BODY_KIND = "head", "body"

LOSS_WIDTH = 0.2
"""Nats apart at which a row counts 0.6 of one at the very place."""
VISITS_WIDTH = 1.5
"""The same for the number of visits, in doublings."""

DOUBT = 0.01
"""Accuracy by which a validation set may mislead; promises and results are compared on top of it."""

GENERIC = (
    GainRow(HEAD_KIND, 1500, 0.0, 0.0),
    GainRow(HEAD_KIND, 1500, 0.3, 0.005),
    GainRow(HEAD_KIND, 1500, 1.0, 0.015),
    GainRow(BODY_KIND, 750, 0.0, 0.0),
    GainRow(BODY_KIND, 750, 0.3, 0.01),
    GainRow(BODY_KIND, 750, 1.0, 0.05),
    GainRow(BODY_KIND, 2250, 0.0, 0.0),
    GainRow(BODY_KIND, 2250, 0.3, 0.015),
    GainRow(BODY_KIND, 2250, 1.0, 0.08),
)
"""For a pack without a table; after docs/benchmarks.md, for low light, fog and blur."""


def kind_of(plan: str) -> str | None:
    """Which rows are for a plan: the head's, the body's; None for what comes first, which nobody asks about."""
    if plan in ("bn", CLOSED):
        return None
    return HEAD_KIND if plan in ("head", RIDGE) else BODY_KIND


def expected_gain(rows: Sequence[GainRow], kind: str, *, excess: float, visits: float) -> float:
    """Mean gain of the rows of a kind, those near the place counting most.

    Formula: Nadaraya-Watson regression with a Gaussian kernel over ``excess`` and the logarithm of ``visits``; far from
    every row it is the nearest one's.

    Args:
        rows: the table.
        kind: "head" or "body".
        excess: validation loss minus the server's on clean images, nats.
        visits: images to train on, each counted as often as it will be.

    Returns:
        accuracy to gain, a share; 0 where the table has no row of the kind.
    """
    rows = [row for row in rows if row.kind == kind]
    if not rows:
        return 0.0
    excess = excess if math.isfinite(excess) else max(row.excess for row in rows)
    apart = [
        ((row.excess - excess) / LOSS_WIDTH) ** 2 + (math.log2(row.visits / max(visits, 1)) / VISITS_WIDTH) ** 2
        for row in rows
    ]
    closest = min(apart)  # subtracted, so that the nearest row's weight is 1 however far it is
    weights = [math.exp((closest - distance) / 2) for distance in apart]
    return sum(w * row.gain for w, row in zip(weights, rows, strict=True)) / sum(weights)


def trust(promised_and_came: Sequence[tuple[float, float]]) -> float:
    """How much of a promise to believe after some were kept and some were not, 0..1."""
    promised = sum(promise for promise, _ in promised_and_came)
    came = sum(came for _, came in promised_and_came)
    return min((DOUBT + max(came, 0.0)) / (DOUBT + promised), 1.0) if promised > 0 else 1.0
