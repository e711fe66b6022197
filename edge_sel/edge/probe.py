"""The probe: what a step of each plan would gain on images it was not computed from, and what it would cost.

With the gradients g_i of B batches, a step along one of them changes the loss of another, to first order, by

    SGD    lr / (1 - momentum) * g_i . g_j        (the step that momentum makes of a gradient in the end)
    Adam   lr * sign(g_i) . g_j                   (its first steps have the size lr)

summed over the plan's weights and averaged over the pairs i != j. That, less its standard error over batches, is the
plan's *guilt* in nats per step. The gradient of a few images is mostly noise; of noise the mean over pairs is 0, and a
plan that would only learn its batch by heart has no guilt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_sel.data.dataset import ImageSet
from edge_sel.data.transforms import normalise
from edge_sel.edge.progress import Progress
from edge_sel.edge.rates import learning_rate
from edge_sel.edge.rungs import Rung
from edge_sel.edge.work import rung_work
from edge_sel.engines.base import Arrays, Batch, Engine, Hyper, Trainer
from edge_sel.errors import UsageError
from edge_sel.pack.manifest import Manifest, PlanInfo
from edge_sel.pack.reader import Pack
from edge_sel.settings import Settings

BATCHES, BATCH = 6, 32
EPOCHS = 3
MOMENTUM = 0.9
ADAM_BETA1 = 0.9


def gradients(trainer: Trainer, batches: Sequence[Batch], optimizer: str) -> list[Arrays]:
    """The gradient of each batch, by steps of size 0 that leave it in the optimizer's state; changes no weight."""
    found: list[Arrays] = []
    before: Arrays = {}
    for batch in batches:
        trainer.step(batch, Hyper(0.0, momentum=0.0, bn_momentum=0.0))
        state = trainer.state()
        slot = "m" if optimizer == "adam" else "momentum"
        now = {name: state[f"{slot}::{name}"] for name in trainer.plan.trainable}
        if optimizer == "adam":
            moved = {n: (m - ADAM_BETA1 * before[n] if before else m) / (1 - ADAM_BETA1) for n, m in now.items()}
            before = now
        else:
            moved = now
        found.append(moved)
    return found


def guilt(found: Sequence[Arrays], plans: Mapping[str, PlanInfo], manifest: Manifest, loss: float) -> dict[str, float]:
    """Nats per step of each plan whose weights are all among the gradients: the mean, less its standard error."""
    adam = manifest.optimizer == "adam"
    gains: dict[str, np.ndarray] = {}  # weight -> what a step along each batch's gradient does for the other batches
    for name in found[0]:
        every = np.stack([gradient[name].ravel() for gradient in found])
        others = (every.sum(0) - every) / (len(found) - 1)
        gains[name] = (np.sign(every) * others if adam else every * others).sum(1, dtype=np.float64)
    scale = 1.0 if adam else 1 / (1 - MOMENTUM)
    told = {}
    for plan, info in plans.items():
        if info.trainable and all(name in gains for name in info.trainable):
            step = scale * learning_rate(manifest.optimizer, plan, None, loss)
            each = step * np.sum([gains[name] for name in info.trainable], axis=0)
            told[plan] = float(each.mean() - each.std(ddof=1) / math.sqrt(len(found)))
    return told


def probe_plans(
    engine: Engine, pack: Pack, images: ImageSet, progress: Progress, settings: Settings
) -> tuple[dict[str, dict[str, float | None]], float]:
    """Guilt of every plan and its cost per step, and the FLOPs that finding it took.

    What a step costs is the plan's executed FLOPs, its share in the frozen prefix among them, at this device's own
    joules per FLOP of late; those are the same for every plan, so that where no meter works the choice is the same.

    Raises:
        UsageError: the pack has no plan ``full``, whose gradients hold those of all others.
    """
    if "full" not in pack.manifest.plans:
        raise UsageError("--plan auto needs a pack with the plan full", where=pack.path, fix="export it with that plan")
    model = pack.manifest.model
    full = pack.plan("full")
    order = np.random.default_rng([settings.seed, progress.rung, 0, 7]).permutation(len(images))[: BATCHES * BATCH]
    batches = []
    for indices in np.array_split(order, max(2, min(BATCHES, len(order) // 8))):
        pixels = normalise(images.read(indices), model.mean, model.std)
        batches.append(Batch(pixels, images.labels[indices], np.ones(len(indices), np.float32)))
    found = gradients(engine.trainer(pack, "full", progress.weights), batches, pack.manifest.optimizer)
    plans = {name: info for name, info in pack.manifest.plans.items() if not info.channels}
    loss = float(progress.best_guard["loss"])
    j_per_tflop = joules_per_tflop(progress.history)
    told = {}
    for name, nats in guilt(found, plans, pack.manifest, loss).items():
        per_step = step_flops(pack, name, settings) / 1e12
        told[name] = {
            "guilt": nats,
            "j_per_step": None if j_per_tflop is None else j_per_tflop * per_step,
            "guilt_per_j": nats / (per_step * (j_per_tflop or 1.0)),
        }
    return told, float(len(order) * full.flops_train)


def step_flops(pack: Pack, plan: str, settings: Settings) -> float:
    """Of a step, and of its share in the frozen prefix if the rung has ``EPOCHS`` epochs."""
    rate = 1.0 if settings.gate == "off" else settings.target_rate
    steps = EPOCHS * rate / settings.batch_size  # that one image takes part in
    return rung_work(pack, Rung(plan, EPOCHS), 1, rate, scores=False) / steps


def joules_per_tflop(history: Sequence[Mapping[str, Any]]) -> float | None:
    """What this device took for the work done so far, gross; None where that is not known."""
    known = [entry for entry in history if entry["energy_j"] is not None and entry["executed_flops_t"] > 0]
    flops_t = sum(entry["executed_flops_t"] for entry in known)
    return sum(entry["energy_j"] for entry in known) / flops_t if flops_t > 0 else None
