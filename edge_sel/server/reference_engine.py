"""ONNX's reference implementation as the other program of the parity check, where torch has no model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, Hyper, Prefix, StepResult, computed_elements
from edge_sel.pack.manifest import OPTIMIZER_STATE
from edge_sel.pack.reader import Pack
from edge_sel.server.exact_step import reference_step


class ReferenceEngine:
    """Runs a pack's graphs operator by operator in numpy; very slow.

    Args:
        dtype: of weights, activations and gradients.
    """

    name = "ONNX's reference implementation"

    def __init__(self, dtype: DTypeLike = np.float32) -> None:
        self._dtype = dtype

    def trainer(self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray]) -> ReferenceTrainer:
        """Start a plan from the given full set of weights."""
        return ReferenceTrainer(pack, plan, weights, self._dtype)

    def prefix(self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray]) -> Prefix | None:
        """None: a step computes the whole network."""
        return None


class ReferenceTrainer:
    """Makes first steps only: that is what the parity check compares."""

    def __init__(self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray], dtype: DTypeLike) -> None:
        self.plan = pack.plan(plan)
        self._pack, self._dtype = pack, dtype
        self._weights = dict(weights)
        slots = OPTIMIZER_STATE[pack.manifest.optimizer]
        self._state = {name: weights[name] for name in (*self.plan.trainable, *self.plan.buffers)}
        self._state |= {f"{s}::{n}": np.zeros_like(weights[n]) for s in slots for n in self.plan.trainable}

    def step(self, batch: Batch, hyper: Hyper) -> StepResult:
        """One update from the state that was loaded, with an optimizer that has no memory."""
        found = reference_step(self._pack, self.plan.name, self._weights, batch, hyper, self._dtype)
        self._state = {name: found[f"new::{name}"] for name in self._state}
        return StepResult(found["loss"], found["logits"], 0, computed_elements(self.plan, self._weights))

    def state(self) -> Arrays:
        """Weights, optimizer state and running statistics."""
        return {name: np.array(value) for name, value in self._state.items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Begin again from saved weights."""
        self._state = {name: np.asarray(state[name]) for name in self._state}
        self._weights |= {name: self._state[name] for name in (*self.plan.trainable, *self.plan.buffers)}
