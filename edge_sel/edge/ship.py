"""Whether what a run has made replaces the model that it was given: only on evidence."""

from __future__ import annotations

from dataclasses import replace
from math import comb, inf, isfinite
from typing import Any, NamedTuple

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.config.settings import Settings
from edge_sel.data.dataset import ImageSet
from edge_sel.data.transforms import normalise
from edge_sel.edge.evidence import ENOUGH, Evidence, compare, less_accurate
from edge_sel.edge.head import changed_in, original_weights
from edge_sel.edge.judge import Judge
from edge_sel.edge.progress import Progress, no_logits
from edge_sel.edge.train.auto_ladder import NONSENSE
from edge_sel.edge.train.closed_form_stage import STATISTICS
from edge_sel.edge.train.statistics_stage import BATCH, estimate
from edge_sel.engines.base import Batch
from edge_sel.pack.reader import Pack
from edge_sel.sel.embarrassment import cross_entropy

CHANCE = 2
"""Stream of random numbers."""
LEAST_ANCHORS = 10
SURELY = 0.1
"""Level of the binomial test that a model remembers less than that."""
MANY = 100_000
"""Images of which nobody collects more."""
REMEMBERED = 1 / 3
"""Of what the model knew of the server's images beyond chance: with less it has forgotten."""


def keep_if_better(
    progress: Progress, pack: Pack, judge: Judge, weights: Arrays, figures: dict[str, Any], predictions: np.ndarray
) -> Progress:
    """With these weights as the ones that the run would end with, if they are better; else the same as it is.

    Better on images that the stage has not learnt from: less loss, and surely no fewer images right. That is no
    evidence yet, it says with what the next stage begins.

    Args:
        progress: before.
        pack: holds the plans.
        judge: holds the validation images, and the training images that tell more of a head in closed form.
        weights: of the current stage, or of an expert before the first.
        figures: of the validation set; ``predictions`` its logits [N, C].
    """
    seen, stage, labels = progress.predictions, progress.stage, judge.validation.labels
    before, after = seen.best, predictions
    seen = seen._replace(best=predictions, left_out=no_logits(), left_out_of=stage.left_out_of[:0])
    taught = any(entry.get("kept") and pack.plan(entry["plan"]).stepped for entry in progress.history)
    rows = stage.left_out_of[: max(0, ENOUGH - len(labels))]
    if judge.witnesses is not None and len(rows) and not taught:  # what was trained on before is no witness
        more = judge.witnesses.subset(rows)
        known = stage.left_out_begun[: len(rows)]
        begun = original = known if len(known) else judge.look(progress.weights, more).logits
        if not np.array_equal(before, seen.before):
            original = judge.look(original_weights(pack, len(more.classes)), more).logits
        seen = seen._replace(left_out=stage.left_out[: len(rows)], left_out_of=rows, left_out_before=original)
        before, after = np.concatenate([before, begun]), np.concatenate([after, seen.left_out])
        labels = np.concatenate([labels, more.labels])
    if not _loss(after, labels) < _loss(before, labels) or less_accurate(before, after, labels):
        return progress
    return replace(progress, weights=weights, best_validation=figures, predictions=seen)


def _loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy in nats; infinite where it is not a number."""
    loss = float(cross_entropy(logits, labels).mean())
    return loss if isfinite(loss) else inf


def decide(progress: Progress, pack: Pack, judge: Judge, training: ImageSet, settings: Settings) -> Verdict:
    """Whether the weights to keep replace the model as it came: on evidence, and if they still know the server's world.

    Evidence are images that nothing was learnt from: the validation images and, if a head was fitted in closed form,
    training images under the head that was fitted without each of them.
    """
    seen, level = progress.predictions, settings.evidence_level
    before, after, labels = seen.before, seen.best, judge.validation.labels
    if len(seen.left_out):
        before, after = np.concatenate([before, seen.left_out_before]), np.concatenate([after, seen.left_out])
        labels = np.concatenate([labels, training.labels[seen.left_out_of]])
    rng = np.random.default_rng([settings.seed, CHANCE])
    evidence = compare(before, after, labels, rng, level=level)
    ships, why, memory = evidence.better(level), _why(evidence, level), None
    doubted = max((entry.get("doubted") or 0.0 for entry in progress.history), default=0.0)
    if doubted > NONSENSE:
        ships, why = False, f"{doubted:.0%} of the labels look wrong: by these nothing is better"
    if ships:
        memory = _look_back(progress.weights, pack, judge, training)
        if memory is not None and memory.forgot and not settings.forget:
            ships = False
            why = (
                f"better here, but it forgot what it knew: {memory.right} of {memory.images} images of the server are "
                f"right, before {memory.right_before} (--forget ships it)"
            )
    return Verdict(ships, {**evidence._asdict(), "level": level, "anchors": memory and memory._asdict(), "why": why})


class Verdict(NamedTuple):
    """Whether the new model ships, and ``evidence`` of ``run.json``."""

    ships: bool
    evidence: dict[str, Any]


class Memory(NamedTuple):
    """What a model makes of the pack's anchors.

    Of all classes, or of those that the device has, where it has so many images that the others are surely rare there.
    """

    images: int
    right_before: int
    right: int
    forgot: bool


def _look_back(weights: Arrays, pack: Pack, judge: Judge, training: ImageSet) -> Memory | None:
    """By features of the server's examples where only the head has changed; None where there is too little to tell."""
    if (seen := _by_features(weights, pack)) is not None:
        return seen
    anchors = pack.anchors
    if anchors is None:
        return None
    asked = np.arange(len(anchors.images))
    if _below(0, len(training), REMEMBERED / len(pack.manifest.model.classes)):
        asked = np.flatnonzero(np.isin(anchors.images.labels, training.labels))
    if len(asked) < LEAST_ANCHORS:
        return None
    images, known = anchors.images.subset(asked), anchors.known[asked]
    right = judge.look(weights, images).logits.argmax(1) == images.labels
    forgot = _forgot(known, right, images.labels)
    if forgot and STATISTICS in pack.plan_names and pack.plan(STATISTICS).buffers:
        # Of another place it may have nothing but the statistics, and these it can learn again.
        adapted = _adapt(weights, anchors.images, pack, judge)
        again = judge.look(adapted, images).logits.argmax(1) == images.labels
        right, forgot = max(right, again, key=np.count_nonzero), _forgot(known, again, images.labels)
    return Memory(len(asked), int(known.sum()), int(right.sum()), forgot)


def _by_features(weights: Arrays, pack: Pack) -> Memory | None:
    """What the new head makes of the examples in the pack's sums."""
    sums, old = pack.sums, pack.weights()
    if sums is None or len(sums.examples.labels) < LEAST_ANCHORS or changed_in(weights, pack):
        return None
    features, labels = sums.example_features(), sums.examples.labels
    known, right = (
        (features @ weight.T + bias).argmax(1) == labels
        for weight, bias in (pack.linear_head.joined(values) for values in (old, weights))
    )
    return Memory(len(labels), int(known.sum()), int(right.sum()), _forgot(known, right, labels))


def _forgot(known: np.ndarray, right: np.ndarray, labels: np.ndarray) -> bool:
    """Whether too little is left of what was known, bool [N], beyond chance; or nothing of one of the classes."""
    chance = 1 / len(np.unique(labels))
    whole = chance + REMEMBERED * max(known.mean() - chance, 0.0)
    if _below(int(right.sum()), len(right), whole):
        return True
    classes = [labels == label for label in np.unique(labels)]
    return any(_below(int(right[of].sum()), int(of.sum()), REMEMBERED * known[of].mean()) for of in classes)


def _below(right: int, images: int, least: float) -> bool:
    """Whether so few right ones show that the true share is less than ``least``: a binomial tail."""
    tail = sum(comb(images, k) * least**k * (1 - least) ** (images - k) for k in range(right + 1))
    return tail <= SURELY


def _adapt(weights: Arrays, images: ImageSet, pack: Pack, judge: Judge) -> Arrays:
    """With the batch-normalisation statistics of these images."""
    trainer, model = judge.engine.trainer(pack, STATISTICS, weights), pack.manifest.model
    batches = np.array_split(np.arange(len(images)), max(1, len(images) // BATCH))

    def batch_of(rows: np.ndarray) -> Batch:
        pixels = normalise(images.read(rows), model.mean, model.std)
        return Batch(pixels, images.labels[rows], np.ones(len(rows), np.float32))

    for before, rows in enumerate(batches):
        for _ in estimate(trainer, judge.batch_limit, rows, before, batch_of):
            pass
    return {**weights, **trainer.weights()}


def _why(evidence: Evidence, level: float) -> str:
    points = f"{100 * evidence.gain:+.1f} points ({100 * evidence.low:+.1f} to {100 * evidence.high:+.1f})"
    seen = f"{points} on {evidence.images} images"
    if evidence.better(level):
        by = "by loss" if evidence.p_loss <= evidence.p_right else "by accuracy"
        return f"better {by} (p = {min(evidence.p_loss, evidence.p_right):.1g}): {seen}"
    if evidence.gain == 0 and evidence.p_loss == 1:
        return "nothing that was tried made it better"
    if evidence.p_worse <= 1 - level:
        return f"worse: {seen}"
    enough, told = evidence.images_needed, ""
    if enough is not None and enough > evidence.images:
        some = f"about {enough}" if enough <= MANY else f"more than {MANY}"
        told = f"; {some} images would show such a gain"
    return f"not shown to be better: {seen}{told}"
