"""Channels that come and go: each one sees the optimizer that it would have had alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, Engine, Hyper, Trainer
from edge_sel.graphs.optimizers import BETA1
from edge_sel.pack.manifest import OPTIMIZER_STATE
from edge_sel.pack.reader import Pack

PLAN = "last-c25"
RATE = 1e-3


@pytest.fixture(params=["adam", "sgd"])
def any_pack(request: pytest.FixtureRequest) -> Pack:
    return request.getfixturevalue(f"{request.param}_pack")


def choices(trainer: Trainer, turns: int, seed: int = 0) -> Iterator[Arrays]:
    """In each turn other channels; some stay, some leave, some return, some come late."""
    rng = np.random.default_rng(seed)
    sizes = {name: len(trainer.weights()[name]) for name in trainer.plan.channels}
    for _ in range(turns):
        yield {n: np.sort(rng.permutation(sizes[n])[:k]) for n, k in trainer.plan.channels.items()}


def gradient(before: Arrays, after: Arrays, name: str, optimizer: str, hyper: Hyper) -> np.ndarray:
    """What a step's gradient was, from what it left in the optimizer's state; right for the rows that took part."""
    slot = f"{OPTIMIZER_STATE[optimizer][0]}::{name}"
    old, new = before[slot].astype(np.float64), after[slot].astype(np.float64)
    if optimizer == "adam":
        return (new - BETA1 * old) / (1 - BETA1)
    return new - hyper.momentum * old - hyper.weight_decay * before[name].astype(np.float64)


class Alone:
    """One channel under torch's own optimizer in float64, which hears only of the steps that the channel took part in."""

    def __init__(self, optimizer: str, weight: np.ndarray, hyper: Hyper) -> None:
        self.weight = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        given = {"lr": hyper.learning_rate, "weight_decay": hyper.weight_decay}
        self.optimizer = (
            torch.optim.AdamW([self.weight], **given)
            if optimizer == "adam"
            else torch.optim.SGD([self.weight], momentum=hyper.momentum, **given)
        )

    def step(self, gradient: np.ndarray) -> None:
        self.weight.grad = torch.tensor(gradient)
        self.optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_each_channel_is_trained_as_if_it_had_been_alone(engine: Engine, any_pack: Pack, batch: Batch, decay: float):
    pack, optimizer = any_pack, any_pack.manifest.optimizer
    batch = batch._replace(labels=batch.labels % len(pack.manifest.model.classes))
    hyper = Hyper(learning_rate=RATE if optimizer == "adam" else 0.02, weight_decay=decay, momentum=0.8)
    trainer = engine.trainer(pack, PLAN, pack.weights())
    start = trainer.weights()
    alone = {name: [Alone(optimizer, row, hyper) for row in start[name]] for name in trainer.plan.channels}
    taken = {name: np.zeros(len(start[name]), int) for name in alone}
    late = 0
    for turn, chosen in enumerate(choices(trainer, turns=8)):
        trainer.set_channels(chosen)
        for part in (slice(0, 7), slice(4, 12)):
            before = trainer.state()
            trainer.step(Batch(*(field[part] for field in batch)), hyper)
            after = trainer.state()
            for name, rows in chosen.items():
                found = gradient(before, after, name, optimizer, hyper)
                for row in rows:
                    late += turn > 3 and not taken[name][row]
                    alone[name][row].step(found[row])
                    taken[name][row] += 1
                others = np.setdiff1d(np.arange(len(found)), rows)
                for key in (name, *(f"{slot}::{name}" for slot in OPTIMIZER_STATE[optimizer])):
                    assert after[key][others].tobytes() == before[key][others].tobytes(), key
                np.testing.assert_array_equal(after[f"steps::{name}"], taken[name])
    assert late and any((count > 0).any() and (count > 4).any() for count in taken.values())
    for name, channels in alone.items():
        expected = np.stack([channel.weight.detach().numpy() for channel in channels])
        moved = np.abs(expected - start[name]).max()
        np.testing.assert_allclose(trainer.weights()[name], expected, rtol=0, atol=0.01 * moved, err_msg=name)


def test_the_first_step_of_a_channel_that_comes_late_has_the_size_of_the_learning_rate(engine, adam_pack, batch):
    trainer = engine.trainer(adam_pack, PLAN, adam_pack.weights())
    for _ in range(40):  # the first k channels
        trainer.step(batch, Hyper(learning_rate=1e-5))
    last = {name: np.arange(len(trainer.weights()[name]))[-k:] for name, k in trainer.plan.channels.items()}
    trainer.set_channels(last)
    before = trainer.weights()
    trainer.step(batch, Hyper(learning_rate=RATE))
    for name, rows in last.items():
        size = np.abs(trainer.weights()[name][rows] - before[name][rows])
        assert size.max() < 1.01 * RATE and np.median(size) > 0.98 * RATE, name


def test_counts_are_a_part_of_the_saved_state(engine, pack, batch):
    first, second, third = choices(engine.trainer(pack, PLAN, pack.weights()), turns=3, seed=1)
    trainer, other = (engine.trainer(pack, PLAN, pack.weights()) for _ in range(2))
    for chosen in (first, second):
        trainer.set_channels(chosen)
        trainer.step(batch, Hyper(learning_rate=RATE))
    other.load_state(trainer.state())
    for continued in (trainer, other):
        continued.set_channels(third)
        continued.step(batch, Hyper(learning_rate=RATE))
    ours, theirs = trainer.state(), other.state()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_guilt_counts_no_step(engine, pack, batch):
    trainer = engine.trainer(pack, PLAN, pack.weights())
    trainer.guilt(batch)
    assert not any(trainer.state()[f"steps::{name}"].any() for name in trainer.plan.channels)
