"""Contract: channels that come and go. Each one sees the optimizer that it would have had alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, Hyper, Trainer
from edge_sel.pack.reader import Pack
from tests.engines.arrays import SLOTS, assert_same, gradient_between, part
from tests.engines.plans import HYPER, PLANS, budgeted_plan

one_plan = pytest.mark.parametrize("plan", ["last-c25"])


def choices(trainer: Trainer, turns: int, seed: int = 0) -> Iterator[Arrays]:
    """In each turn other channels; some stay, some leave, some return, some come late."""
    rng = np.random.default_rng(seed)
    sizes = {name: len(trainer.weights()[name]) for name in trainer.plan.channels}
    for _ in range(turns):
        yield {n: np.sort(rng.permutation(sizes[n])[:k]) for n, k in trainer.plan.channels.items()}


class Alone:
    """One channel under torch's own optimizer in float64, which hears only of the steps that the channel took part in."""

    def __init__(self, optimizer: str, weight: np.ndarray, hyper: Hyper) -> None:
        self.weight = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.optimizer = (
            torch.optim.Adam([self.weight], hyper.learning_rate)
            if optimizer == "adam"
            else torch.optim.SGD([self.weight], hyper.learning_rate, momentum=hyper.momentum)
        )

    def step(self, gradient: np.ndarray) -> None:
        self.weight.grad = torch.tensor(gradient)
        self.optimizer.step()


def others_unchanged(before: Arrays, after: Arrays, name: str, rows: np.ndarray, pack: Pack) -> None:
    """Weights and moments of the channels that took no part are the same to the bit."""
    others = np.setdiff1d(np.arange(len(before[name])), rows)
    for key in (name, *(f"{slot}::{name}" for slot in SLOTS[pack.manifest.optimizer])):
        assert before[key][others].tobytes() == after[key][others].tobytes(), key


@budgeted_plan
def test_a_step_changes_the_chosen_channels_and_no_others(pack, trainer, batch, plan):
    channels = PLANS[plan].channels
    rng = np.random.default_rng(1)
    shuffled = {name: rng.permutation(len(pack.weights()[name])) for name in channels}
    for turn in range(3):  # other channels in every turn
        chosen = {n: np.sort(np.roll(order, -turn * channels[n])[: channels[n]]) for n, order in shuffled.items()}
        before = trainer.state()
        trainer.set_channels(chosen)
        result = trainer.step(batch, HYPER)
        after = trainer.state()
        for name, rows in chosen.items():
            others_unchanged(before, after, name, rows, pack)
            for key in (name, *(f"{slot}::{name}" for slot in SLOTS[pack.manifest.optimizer])):
                changed = (before[key][rows] != after[key][rows]).reshape(len(rows), -1)
                assert changed.any(1).all(), f"{key}: a chosen channel did not change"
        for name in set(PLANS[plan].trainable) - set(channels):
            assert (before[name] != after[name]).any(), name
        assert result.computed == sum(after[n][: channels.get(n)].size for n in PLANS[plan].trainable)


@one_plan
def test_each_channel_is_trained_as_if_it_had_been_alone(pack: Pack, trainer: Trainer, batch: Batch):
    optimizer = pack.manifest.optimizer
    hyper = Hyper(learning_rate=1e-3 if optimizer == "adam" else 0.02, momentum=0.8)
    start = trainer.weights()
    alone = {name: [Alone(optimizer, row, hyper) for row in start[name]] for name in trainer.plan.channels}
    taken = {name: np.zeros(len(start[name]), int) for name in alone}
    late = 0
    for turn, chosen in enumerate(choices(trainer, turns=8)):
        trainer.set_channels(chosen)
        for bounds in ((0, 7), (4, 12)):
            before = trainer.state()
            trainer.step(part(batch, *bounds), hyper)
            after = trainer.state()
            for name, rows in chosen.items():
                found = gradient_between(before, after, name, pack, hyper)
                for row in rows:
                    late += turn > 3 and not taken[name][row]
                    alone[name][row].step(found[row])
                    taken[name][row] += 1
                others_unchanged(before, after, name, rows, pack)
                np.testing.assert_array_equal(after[f"steps::{name}"], taken[name])
    assert late and any((count > 4).any() for count in taken.values())
    for name, channels in alone.items():
        expected = np.stack([channel.weight.detach().numpy() for channel in channels])
        moved = np.abs(expected - start[name]).max()
        np.testing.assert_allclose(trainer.weights()[name], expected, rtol=0, atol=0.01 * moved, err_msg=name)


@one_plan
def test_the_first_step_of_a_channel_that_comes_late_is_a_first_step(pack, trainer, batch):
    """Of Adam that is one learning rate long, of SGD it has no momentum of others."""
    for _ in range(10):  # the first k channels
        trainer.step(batch, Hyper(learning_rate=1e-5))
    last = {name: np.arange(len(trainer.weights()[name]))[-k:] for name, k in trainer.plan.channels.items()}
    trainer.set_channels(last)
    before = trainer.state()
    trainer.step(batch, HYPER)
    after = trainer.state()
    assert last
    for name, rows in last.items():
        step = before[name][rows].astype(np.float64) - after[name][rows]
        if pack.manifest.optimizer == "adam":
            assert np.abs(step).max() < 1.01e-3 and np.median(np.abs(step)) > 0.98e-3, name
        else:
            assert not before[f"momentum::{name}"][rows].any()
            expected = 1e-3 * after[f"momentum::{name}"][rows]
            np.testing.assert_allclose(step, expected, rtol=0, atol=1e-3 * np.abs(expected).max(), err_msg=name)


@one_plan
def test_counts_are_a_part_of_the_saved_state(trainer, other_trainer, batch):
    first, second, third = choices(trainer, turns=3, seed=1)
    for chosen in (first, second):
        trainer.set_channels(chosen)
        trainer.step(batch, HYPER)
    other_trainer.load_state(trainer.state())
    for continued in (trainer, other_trainer):
        continued.set_channels(third)
        continued.step(batch, HYPER)
    assert_same(trainer.state(), other_trainer.state())


@one_plan
def test_guilt_counts_no_step(trainer, batch):
    trainer.guilt(batch)
    assert int(trainer.state()["steps"]) == 0
    counts = [trainer.state()[f"steps::{name}"] for name in trainer.plan.channels]
    assert len(counts) == 3 and not any(count.any() for count in counts)
