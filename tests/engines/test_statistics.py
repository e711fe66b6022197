"""Contract: the running statistics of batch norm, where the plan re-estimates them and where it does not."""

from __future__ import annotations

import numpy as np

from edge_sel.engines.base import Hyper
from tests.engines.arrays import assert_same
from tests.engines.plans import PLANS, batch_statistics_plan, frozen_plan
from tests.engines.reference import batch_statistics


@batch_statistics_plan
def test_bn_momentum_one_takes_over_the_batchs_statistics(pack, trainer, batch, plan):
    seen = batch_statistics(pack, batch.images)
    trainer.step(batch, Hyper(learning_rate=0.0, bn_momentum=1.0))
    after, before = trainer.weights(), pack.weights()
    assert set(seen) == set(PLANS[plan].buffers)
    for name, expected in seen.items():
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=name)
    assert_same(*({n: weights[n] for n in PLANS[plan].trainable} for weights in (after, before)))


@batch_statistics_plan
def test_bn_momentum_mixes_linearly_and_zero_changes_nothing(pack, trainer, batch, plan):
    taken = {}
    start = trainer.state()
    for momentum in (0.0, 0.25, 1.0):
        trainer.load_state(start)
        trainer.step(batch, Hyper(learning_rate=0.0, bn_momentum=momentum))
        taken[momentum] = trainer.weights()
    before = pack.weights()
    for name in PLANS[plan].buffers:
        np.testing.assert_array_equal(taken[0.0][name], before[name])
        mixed = 0.75 * before[name] + 0.25 * taken[1.0][name]
        np.testing.assert_allclose(taken[0.25][name], mixed, rtol=1e-5, atol=1e-6)


@frozen_plan
def test_frozen_statistics_know_no_bn_momentum(trainer, batch):
    start = trainer.state()
    taken = []
    for momentum in (0.0, 1.0):
        trainer.load_state(start)
        trainer.step(batch, Hyper(learning_rate=0.01, bn_momentum=momentum))
        taken.append({**trainer.state(), "logits": trainer.score(batch.images, batch.labels).logits})
    assert_same(*taken)
