"""Check the gradients of a whole compiled step against numerical derivatives in float64, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch
from edge_sel.errors import GraphError
from edge_sel.graphs.ir import Forward
from edge_sel.graphs.plans import Plan, head_names, parameters, running_statistics
from edge_sel.graphs.train import compile_train
from edge_sel.pack.reader import Pack
from edge_sel.server.onnx_reference import ReferenceGraph, step_scalars
from edge_sel.server.parity import STEP, blame

DIRECTIONS = 4
"""Random directions in the space of all weights; a right rule fails none, a wrong one is off in nearly all."""
STEPS = (1e-6, 1e-7, 1e-8, 1e-9, 1e-5)
"""Lengths of the numerical step to try, relative to each weight: short ones cross fewer kinks, long ones round less."""
NUDGE = 1e-6
"""Of all weights but those of the head, relative, before they are differentiated by: a channel that is always 0 stands
on the kink of a ReLU, where there is no derivative. A rule that is right for some weights is right for others."""
TRIES = 2
"""How many sets of nudged weights may have a kink within every step. A wrong rule is off with each."""
TOLERANCE = 1e-4
"""Largest error of a directional derivative, relative to the norm of what the weights contribute to it.

Rounding comes to 1e-6 at most, kinks that a step crosses to 5e-4; a wrong rule is as far off at every length."""


class _Side(NamedTuple):
    """A training graph in float64: what it is fed, and its gradients."""

    graph: bytes
    feeds: Arrays
    gradients: Arrays
    plan: Plan


def check_gradients(pack: Pack, forward: Forward, batch: Batch, rng: np.random.Generator) -> None:
    """The gradients of the whole network are right; those of the plans are compared with them by ``parity``.

    It is differentiated twice, with frozen statistics and with those of the batch; both gradients, in float64, must
    agree with central differences of the loss, along random directions.

    Raises:
        GraphError: one does not; the message names the weight and the operator.
    """
    weights, behind = pack.weights(), head_names(forward)
    before = [name for name in parameters(forward) if name not in behind]
    for mode in dict.fromkeys(info.bn_mode for info in pack.manifest.plans.values() if info.trainable):
        for _ in range(TRIES):
            side = _differentiate(pack, forward, mode, _nudged(weights, before, rng), batch)
            loss = ReferenceGraph(side.graph, np.float64, ["loss"])
            found = _wrong_direction(loss, side, weights, rng)
            if found is None:
                break
        if found is not None:
            bad = _first_wrong(loss, side, found.direction)
            raise GraphError(f"the gradient at {bad} differs from a numerical derivative by {found.error:.1e}",
                             where=blame(forward, bad, mode, rng),
                             fix="the pack was not written; fix the rule in edge_sel/graphs/rules")  # fmt: skip


def _nudged(weights: Arrays, names: Sequence[str], rng: np.random.Generator) -> Arrays:
    """Float64, with noise on those named."""
    found = {name: value.astype(np.float64) for name, value in weights.items()}
    return {**found, **{n: found[n] + NUDGE * _size(found[n]) * rng.standard_normal(found[n].shape) for n in names}}


def _size(value: np.ndarray) -> float:
    """The root of the mean square; 1 of zeros."""
    return float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))) or 1.0


def _differentiate(pack: Pack, forward: Forward, bn_mode: str, weights: Arrays, batch: Batch) -> _Side:
    """By every weight, or by what the largest plan trains where an early operator has no rule."""
    largest = max((p.trainable for p in pack.manifest.plans.values() if p.bn_mode == bn_mode), key=len)
    buffers = running_statistics(forward) if bn_mode == "batch" else ()
    for names in (parameters(forward), largest):
        plan = Plan("whole", names, bn_mode, buffers=buffers)
        try:
            graph = compile_train(forward, plan, "sgd").SerializeToString()
        except GraphError:
            if names == largest:
                raise
            continue
        break
    feeds = {**weights, **step_scalars(STEP), "x": batch.images, "labels": batch.labels, "sample_weight": batch.weights}
    feeds |= {f"momentum::{name}": np.zeros_like(weights[name]) for name in names}
    feeds = {n: v.astype(np.float64) if v.dtype.kind == "f" else v for n, v in feeds.items()}
    outputs = [f"new::momentum::{name}" for name in names]
    found = ReferenceGraph(graph, np.float64, outputs).run(feeds)
    return _Side(graph, feeds, {name: found[f"new::momentum::{name}"] for name in names}, plan)


class _Wrong(NamedTuple):
    """A direction in the space of weights, by their names, and the error of the derivative along it."""

    direction: Arrays
    error: float


def _wrong_direction(loss: ReferenceGraph, side: _Side, weights: Arrays, rng: np.random.Generator) -> _Wrong | None:
    """The first of ``DIRECTIONS`` along which the gradient is wrong; None if it is right along all."""
    spread = _spread(side.gradients, weights)
    for _ in range(DIRECTIONS):
        direction = {name: rng.standard_normal(weights[name].shape) * spread[name] for name in side.gradients}
        error = _error(loss, side, direction)
        if not error <= TOLERANCE:
            return _Wrong(direction, error)
    return None


def _spread(gradients: Arrays, weights: Arrays) -> dict[str, float]:
    """How far each weight is moved: so that all contribute alike, but none by more than 100 times its own size."""
    size = {n: _size(weights[n]) for n in gradients}
    share = {n: float(np.linalg.norm(g)) * size[n] for n, g in gradients.items()}
    middle = float(np.median(list(share.values())))
    return {n: size[n] * min(100.0, middle / share[n]) if share[n] else size[n] for n in gradients}


def _error(loss: ReferenceGraph, side: _Side, direction: Mapping[str, np.ndarray]) -> float:
    """Of the derivative along the direction, relative to the norm of the weights' contributions, at the best step."""
    sample_weight, errors = side.feeds["sample_weight"], []
    expected = sum(float((side.gradients[name] * u).sum()) for name, u in direction.items())
    norm = float(np.sqrt(sum(np.square(side.gradients[n] * u).sum() for n, u in direction.items())))
    for step in STEPS:
        ahead, behind = (
            float((loss.run(_moved(side.feeds, direction, sign * step))["loss"] * sample_weight).mean())
            for sign in (1, -1)
        )
        errors.append(abs((ahead - behind) / (2 * step) - expected) / max(norm, 1e-9))
        if errors[-1] <= TOLERANCE:
            break
    return min(errors)


def _moved(feeds: Arrays, direction: Mapping[str, np.ndarray], step: float) -> Arrays:
    return {**feeds, **{name: feeds[name] + step * u for name, u in direction.items()}}


def _first_wrong(loss: ReferenceGraph, side: _Side, direction: Mapping[str, np.ndarray]) -> str:
    """The weight closest to the loss whose own derivative is off; the worst where each is within the tolerance."""
    errors = {name: _error(loss, side, {name: direction[name]}) for name in reversed(list(direction))}
    return next(
        (name for name, error in errors.items() if not error <= TOLERANCE), max(errors, key=lambda n: errors[n])
    )
