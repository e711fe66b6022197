"""Before a graph ships, one step of it must agree with torch; a difference is traced to an operator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_sel.data.dataset import ImageSet
from edge_sel.data.transforms import normalise
from edge_sel.engines.base import Batch, Engine, Hyper, Trainer
from edge_sel.errors import GraphError
from edge_sel.graphs.check import rule_error
from edge_sel.graphs.ir import Forward, Node
from edge_sel.graphs.plans import node_parameters
from edge_sel.graphs.rules import RULES, STEPWISE
from edge_sel.pack.manifest import OPTIMIZER_STATE, ModelInfo
from edge_sel.pack.reader import Pack

TOLERANCE = 2e-3
"""Largest difference of a gradient, relative to that tensor's largest; float32 rounding alone stays below 1e-4."""

NOISE = 1e-4
"""A tensor whose gradients are this much smaller than the largest gradient is compared on that scale instead."""

RULE_TOLERANCE = 1e-4

BATCH_SIZE = 4
TRIES = 12
"""How many batches may differ. Where float32 rounding carries an activation across the kink of a ReLU, one gradient
changes by percents, in torch as here; few images have few such activations, and another batch has others. A wrong
rule differs on every batch."""


def parity_batches(images: ImageSet, model: ModelInfo, rng: np.random.Generator) -> list[Batch]:
    """``TRIES`` batches of ``BATCH_SIZE`` images and random sample weights."""
    batches = []
    for _ in range(TRIES):
        chosen = np.sort(rng.permutation(len(images))[:BATCH_SIZE])
        weights = rng.uniform(0.5, 1.5, len(chosen)).astype(np.float32)
        batches.append(Batch(normalise(images.read(chosen), model.mean, model.std), images.labels[chosen], weights))
    return batches


def check_parity(
    pack: Pack, forward: Forward, batches: Sequence[Batch], *, engine: Engine, reference: Engine
) -> dict[str, float]:
    """Compare one step of every plan; returns the largest relative difference per plan.

    The first optimizer state after one step from zero is the gradient times a constant, so comparing it compares
    gradients, without Adam's division blowing up differences of tiny ones. A plan must agree on one of the batches.
    What stands in the pack in two halves is compared with the whole that torch computes.

    Raises:
        GraphError: a plan differs by more than ``TOLERANCE``; the message names the plan, the weight, the operator.
    """
    report = {}
    weights = pack.weights()
    for name in pack.manifest.plans:
        ours, theirs = (e.trainer(pack, name, weights) for e in (engine, reference))
        prefixes = [e.prefix(pack, name, weights) for e in (engine, reference)]
        start = theirs.state()
        best: dict[str, float] = {}
        for batch in batches:
            ours.load_state(start)
            theirs.load_state(start)
            fed = [batch._replace(images=prefix(batch.images)) if prefix else batch for prefix in prefixes]
            differences = step_differences(ours, theirs, fed, pack.manifest.optimizer)
            if not best or max(differences.values()) < max(best.values()):
                best = differences
            if max(best.values()) <= TOLERANCE:
                break
        report[name] = max(best.values())
        bad = [key for key, difference in best.items() if difference > TOLERANCE]
        if bad:
            raise GraphError(
                f"plan {name} differs from torch by {best[bad[0]]:.1e} at {bad[0]}",
                where=blame(forward, bad[0], pack.plan(name).bn_mode, np.random.default_rng(0)),
                fix="the pack was not written; mend the rule in edge_sel/graphs/rules",
            )
    return report


def step_differences(ours: Trainer, theirs: Trainer, fed: Sequence[Batch], optimizer: str) -> dict[str, float]:
    """Largest relative difference of losses, gradients and running statistics after one step of each.

    ``fed`` is the same batch for both, as each of them takes it. Trainable names come closest to the loss first.
    """
    hyper = Hyper(learning_rate=1e-3)
    results = [trainer.step(batch, hyper) for trainer, batch in zip((ours, theirs), fed, strict=True)]
    states = [trainer.state() for trainer in (ours, theirs)]
    slot = OPTIMIZER_STATE[optimizer][0]
    differences = {"loss": _relative(results[0].losses, results[1].losses)}
    gradients = {
        name: (states[0][f"{slot}::{name}"], states[1][f"{slot}::{name}"]) for name in reversed(ours.plan.trainable)
    }
    largest = max((float(np.abs(reference).max()) for _, reference in gradients.values()), default=0.0)
    for name, (a, b) in gradients.items():
        differences[name] = _relative(a, b, scale=NOISE * largest)
    for mean, variance in zip(ours.plan.buffers[::2], ours.plan.buffers[1::2], strict=True):
        spread = float(np.sqrt(np.abs(states[1][variance]).max()))
        differences[mean] = _relative(states[0][mean], states[1][mean], scale=spread)
        differences[variance] = _relative(states[0][variance], states[1][variance])
    return differences


def _relative(a: np.ndarray, b: np.ndarray, scale: float = 1e-12) -> float:
    """Difference relative to the tensor's largest value, or to ``scale`` where the tensor itself is only noise."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a - b).max() / max(float(np.abs(b).max()), scale))


def blame(forward: Forward, bad: str, bn_mode: str, rng: np.random.Generator) -> str:
    """The operator whose rule is wrong: check each kind of node between the logits and the first bad weight."""
    if bad == "loss":
        return "the forward pass (an operator that ONNX Runtime and torch compute differently)"
    suspects: list[Node] = []
    for node in reversed(forward.nodes):
        suspects.append(node)
        if bad in node.inputs:
            break
    smooth = _smooth_tensors(forward)
    checkable = [node for node in suspects if node.op in RULES and smooth.issuperset(_computed(forward, node))]
    for op, node in {(node.op, node.attribute("group", 1)): node for node in checkable}.items():
        error = _node_error(forward, node, bn_mode, rng)
        if error > RULE_TOLERANCE:
            return f"operator {op[0]}, node {node.name or node.outputs[0]} (its rule is off by {error:.1e})"
    names = sorted({node.op for node in suspects})
    return f"one of the operators {', '.join(names)}, each right on its own"


def _smooth_tensors(forward: Forward) -> set[str]:
    """Tensors of floats that follow the image or a weight: no shapes, indices or conditions."""
    smooth = {forward.input, *forward.parameters}
    for node in forward.nodes:
        if node.op not in STEPWISE and smooth.intersection(node.inputs):
            smooth.update(node.outputs)
    return smooth


def _computed(forward: Forward, node: Node) -> list[str]:
    return [name for name in node.inputs if name and name not in forward.initializers]


def _node_error(forward: Forward, node: Node, bn_mode: str, rng: np.random.Generator) -> float:
    computed = _computed(forward, node)
    arrays: dict[str, np.ndarray] = {}
    for name in node.inputs:
        if name in computed:
            arrays[name] = rng.standard_normal([2 if size is None else size for size in forward.shape(name)])
        elif name:
            arrays[name] = forward.initializers[name]
    wanted = [*computed, *node_parameters(forward, node)]
    return rule_error(node, arrays, wanted, bn_mode=bn_mode, rng=rng) if wanted else 0.0
