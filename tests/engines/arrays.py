"""What the tests compute from a trainer's arrays, and how they compare them."""

from __future__ import annotations

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, Hyper, Trainer
from edge_sel.pack.reader import Pack
from edge_sel.server.parity import NOISE

BETA1 = 0.9
"""Of Adam, as published; the product's own constant is not asked."""

SLOTS = {"sgd": ("momentum",), "adam": ("m", "v")}

GRADIENT = 5e-4
"""Relative to the tensor's largest gradient, or to ``NOISE`` times the model's largest if that is more."""


def part(batch: Batch, start: int, end: int) -> Batch:
    return Batch(*(field[start:end].copy() for field in batch))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    return np.log(np.exp(wide).sum(1)) - wide[np.arange(len(labels)), labels]


def assert_same(a: Arrays, b: Arrays) -> None:
    """Equal to the bit."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype and value.shape == b[name].shape, name
        assert value.tobytes() == b[name].tobytes(), name


def first_gradients(trainer: Trainer, pack: Pack) -> Arrays:
    """The (masked) gradients of a trainer's only step so far; zero outside a budget."""
    optimizer, state = pack.manifest.optimizer, trainer.state()
    factor = 1.0 if optimizer == "sgd" else 1 - BETA1
    return {name: state[f"{SLOTS[optimizer][0]}::{name}"] / factor for name in trainer.plan.trainable}


def gradient_between(before: Arrays, after: Arrays, name: str, pack: Pack, hyper: Hyper) -> np.ndarray:
    """What a step's gradient was, from what it left in the optimizer's state; right for the rows that took part."""
    optimizer = pack.manifest.optimizer
    slot = f"{SLOTS[optimizer][0]}::{name}"
    old, new = before[slot].astype(np.float64), after[slot].astype(np.float64)
    if optimizer == "adam":
        return (new - BETA1 * old) / (1 - BETA1)
    return new - hyper.momentum * old


def assert_gradients_agree(got: Arrays, expected: Arrays) -> None:
    largest = max((np.abs(g).max() for g in expected.values()), default=0.0)
    for name, gradient in expected.items():
        scale = max(np.abs(gradient).max(), NOISE * largest)
        assert np.abs(got[name] - gradient).max() <= GRADIENT * scale, name


def assert_moments_agree(got: Arrays, expected: Arrays, trained: tuple[str, ...], pack: Pack) -> None:
    """Every slot of the optimizer in two states, as exact as gradients are: √v is a norm of those so far."""
    for slot in SLOTS[pack.manifest.optimizer]:
        size = np.sqrt if slot == "v" else np.asarray
        assert_gradients_agree(*({n: size(state[f"{slot}::{n}"]) for n in trained} for state in (got, expected)))
