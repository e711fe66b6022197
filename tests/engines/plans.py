"""The plans that the contract is checked on, by form; every plan is in the agreement tests."""

from __future__ import annotations

import pytest

from edge_sel.engines.base import Hyper
from edge_sel.pack.reader import builtin_pack

PLANS = builtin_pack().manifest.plans
FORMS = ("bn", "head", "affine", "last", "first", "full", "last-c25", "full-c25")
"""Each differs from all others in what trains, in the statistics' mode, in having a budget or in having a backbone."""

TRAINED = tuple(name for name in FORMS if PLANS[name].trainable)
FROZEN = tuple(name for name in TRAINED if PLANS[name].bn_mode == "frozen")
BATCH = tuple(name for name in FORMS if PLANS[name].bn_mode == "batch")
BUDGETED = tuple(name for name in FORMS if PLANS[name].channels)

every_plan = pytest.mark.parametrize("plan", PLANS)
every_form = pytest.mark.parametrize("plan", FORMS)
trained_plan = pytest.mark.parametrize("plan", TRAINED)
frozen_plan = pytest.mark.parametrize("plan", FROZEN)
batch_statistics_plan = pytest.mark.parametrize("plan", BATCH)
budgeted_plan = pytest.mark.parametrize("plan", BUDGETED)

HYPER = Hyper(learning_rate=1e-3)
