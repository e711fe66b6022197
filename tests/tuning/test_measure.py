"""Measuring candidates: what is measured, how long, in which order, and who is given up. With a fake world."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sel.config.profiles import Profile
from edge_sel.power.recorder import EnergyRecorder
from edge_sel.tuning import ROUNDS, WARM_UP_STEPS, Bench, Candidate, Cost, candidates, median, weight
from tests.edge.sessions import pack
from tests.edge.world import World

GIB = 2**30


class Device(World):
    """A world whose steps take what ``step_s`` says, at 10 W, with ``threads`` processors busy."""

    def __init__(self, step_s=lambda c: 0.2 * c.batch_size / 32, source="measured", per_image_bytes=0, free_bytes=GIB):
        super().__init__()
        self.step_s, self.source = step_s, source
        self.cpu_s, self.engines, self.steps = 0.0, [], []
        self.per_image_bytes, self.free_bytes, self.taken_bytes = per_image_bytes, free_bytes, GIB

    def make_engine(self, threads, spinning):
        self.engines.append((threads, spinning))
        self.taken_bytes = GIB  # the one before is gone
        self.waiting = threads, spinning
        return self

    def trainer(self, of, plan, weights):
        return self

    def step(self, batch, hyper):
        assert hyper.learning_rate == 0 and np.isfinite(batch.images).all()
        candidate = Candidate(*self.waiting, len(batch.labels))
        assert batch.images.shape == (len(batch.labels), 3, 16, 16)
        self.steps.append(candidate)
        self.taken_bytes = max(self.taken_bytes, GIB + self.per_image_bytes * candidate.batch_size)
        self.cpu_s += candidate.threads * self.step_s(candidate)
        self.spend(self.step_s(candidate))

    def bench(self, window_s=1.0):
        recorder = EnergyRecorder(
            self, self, background=False, temperature=lambda: None, cpu_time=lambda: self.cpu_s,
            profile=Profile("fake", idle_w=2.0, max_w=10.0),
        ).__enter__()  # fmt: skip
        return Bench(
            pack(), self.make_engine, recorder, window_s, self, lambda: self.cpu_s,
            lambda: (self.taken_bytes, self.free_bytes),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("cores", "threads"), [(1, {1}), (2, {1, 2}), (3, {1, 2, 3}), (6, {1, 2, 4, 6}), (8, {1, 2, 4, 8})]
)
def test_candidates_are_threads_up_to_the_cores_and_batches_around_the_usual(cores, threads):
    found = candidates(cores, 32)
    assert {c.threads for c in found} == threads and len(found) == len(set(found))
    assert {c.batch_size for c in found} == {16, 32, 64}
    assert {c.spinning for c in found if c.threads == 1} == {False}
    assert all(Candidate(count, True, 32) in found for count in threads - {1})
    assert {c.batch_size for c in candidates(1, 1)} == {1, 2}


def test_the_cost_of_a_sample_is_what_its_steps_took():
    device = Device()
    costs = device.bench().measure("first", candidates(2, 32))
    assert costs.keys() == set(candidates(2, 32))
    for candidate, cost in costs.items():
        assert cost == pytest.approx((10.0 * 0.2 / 32, 0.2 / 32, candidate.threads * 0.2 / 32, ROUNDS))


def test_every_window_is_as_long_as_it_must_be_and_begins_warm():
    device = Device(lambda c: 0.3)
    tried = [Candidate(1, False, 16), Candidate(2, False, 16)]
    device.bench(window_s=1.0).measure("first", tried)
    assert all(device.steps.count(candidate) == ROUNDS * (WARM_UP_STEPS + 4) for candidate in tried)
    slow = Device(lambda c: 60.0)
    slow.bench(window_s=1.0).measure("first", tried[:1])
    assert len(slow.steps) == ROUNDS * (WARM_UP_STEPS + 1)


def test_rounds_go_there_and_back():
    device = Device()
    device.bench().measure("first", candidates(2, 32))
    one_round = [(1, False), (2, False), (2, True)]
    assert device.engines == one_round + one_round[::-1] + one_round


def test_the_hopeless_are_given_up_and_keep_what_was_measured():
    device = Device(lambda c: (2.0 if c.spinning else 0.2) * c.batch_size / 32)
    costs = device.bench().measure("first", candidates(2, 32))
    for candidate, cost in costs.items():
        assert cost.rounds == (1 if candidate.spinning else ROUNDS)
        assert cost.energy_j == pytest.approx((20.0 if candidate.spinning else 2.0) / 32)
    assert device.engines.count((2, True)) == 1


def test_a_worse_second_round_gives_up_nobody_who_is_still_the_best():
    device = Device()
    device.step_s = lambda c: (0.2 if len(device.engines) <= 3 else 4.0) * c.batch_size / 32 * (4 if c.spinning else 1)
    costs = device.bench().measure("first", candidates(2, 32))
    assert max(cost.rounds for cost in costs.values()) == ROUNDS


def test_modelled_joules_are_idle_power_and_our_own_processor_time():
    """The neighbours' processor time, which a model of the whole machine counts, does not."""
    device = Device(source="modelled")

    def read(now_s, gross=device.read):
        return gross(now_s)._replace(net_j=4.0 * device.cpu_s)

    device.read = read
    costs = device.bench().measure("first", candidates(2, 32))
    for candidate, cost in costs.items():
        assert cost.energy_j == pytest.approx((2.0 + 4.0 * candidate.threads) * 0.2 / 32)


def test_without_a_meter_processor_time_is_the_weight():
    device = Device()
    device.lost_s = 0.0
    costs = device.bench().measure("first", candidates(2, 32))
    assert all(cost.energy_j is None and weight(cost) == cost.cpu_s for cost in costs.values())
    assert {c for c, cost in costs.items() if cost.rounds == ROUNDS} == {c for c in costs if c.threads == 1}


def test_a_batch_that_may_not_fit_into_memory_is_left_out():
    device = Device(per_image_bytes=GIB // 64, free_bytes=6 * GIB // 10)
    costs = device.bench().measure("first", candidates(2, 32))
    assert {c.batch_size for c in costs} == {16, 32}
    assert max(c.batch_size for c in device.steps) == 32


def test_the_cost_is_the_median_of_each_figure():
    costs = [Cost(3.0, 1.0, 9.0, 1), Cost(1.0, 2.0, 8.0, 1), Cost(2.0, 3.0, 7.0, 1)]
    assert median(costs) == (2.0, 2.0, 8.0, 3)
    assert median([*costs, Cost(None, 9.0, 9.0, 1)]).energy_j is None
