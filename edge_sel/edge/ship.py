"""Whether what a run has made replaces the model that it was given: only on evidence."""

from __future__ import annotations

from dataclasses import replace
from math import comb, inf, isfinite
from typing import Any, NamedTuple

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.evidence import ENOUGH, Evidence, compare, less_accurate
from edge_sel.edge.judge import Judge
from edge_sel.edge.progress import NO_LOGITS, Predictions, Progress, changed_in, original_weights
from edge_sel.edge.train.auto_schedule import NONSENSE
from edge_sel.pack.plan_kinds import plan_kind
from edge_sel.pack.reader import Pack
from edge_sel.sel.embarrassment import cross_entropy

CHANCE = 2
"""Stream of random numbers."""
LEAST_ANCHORS = 10
SURELY = 0.1
"""Level of the binomial test that a model remembers less than that."""
RARE = 1 / 3
"""Of its equal share among the device's images: a class that they surely have less of is rare there."""
TELLING = 100
"""Images that are enough to say so of any number of classes."""
MANY = 100_000
"""Images of which nobody collects more."""


def keep_if_better(
    progress: Progress, judge: Judge, weights: Arrays, figures: dict[str, Any], predictions: np.ndarray
) -> Progress:
    """With these weights as the ones that the run would end with, if they are better; else the same as it is.

    Better on images that the stage has not learnt from: less loss, and surely no fewer images right. That is no
    evidence yet, it says with what the next stage begins. But where a head in closed form is shown to be better than
    the original, by training images too, no stage takes its place of which the few validation images do not show it.

    Args:
        progress: before.
        judge: holds the validation images, and the training images that tell more of a head in closed form.
        weights: of the current stage, or of an expert before the first.
        figures: of the validation set; ``predictions`` its logits [N, C].
    """
    pack, split = judge.given.pack, judge.split
    fair_images, served = split.fair_images, split.served
    seen, stage, labels = progress.predictions, progress.stage, split.validation.labels
    before, after = seen.best, predictions
    seen = seen._replace(best=predictions, left_out=NO_LOGITS, left_out_of=stage.left_out_of[:0])
    taught = any(entry.get("kept") and plan_kind(entry["plan"]).stepped for entry in progress.history)
    fair = np.flatnonzero(served.fair[stage.left_out_of]) if served else np.arange(len(stage.left_out_of))
    fair = fair[: max(0, ENOUGH - len(labels))]
    rows = stage.left_out_of[fair]
    if fair_images is not None and len(rows) and not taught:  # what was trained on before judges nothing
        more = fair_images.subset(rows)
        known = len(stage.left_out_begun) > 0
        begun = original = stage.left_out_begun[fair] if known else judge.look(progress.weights, more).logits
        if not np.array_equal(before, seen.before):
            original = judge.look(original_weights(pack, len(more.classes)), more).logits
            original = served.instead_of(original, rows) if served else original
        elif served:
            begun = original = served.instead_of(original, rows)
        seen = seen._replace(left_out=stage.left_out[fair], left_out_of=rows, left_out_before=original)
        before, after = np.concatenate([before, begun]), np.concatenate([after, seen.left_out])
        labels = np.concatenate([labels, more.labels])
    if not _loss(after, labels) < _loss(before, labels) or less_accurate(before, after, labels):
        return progress
    if len(progress.predictions.left_out) and not len(seen.left_out):
        shown = [
            _evidence(of, judge).better(judge.given.settings.evidence_level) for of in (progress.predictions, seen)
        ]
        if shown == [True, False]:
            return progress
    return replace(progress, weights=weights, best_validation=figures, predictions=seen)


def _loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy in nats; infinite where it is not a number."""
    loss = float(cross_entropy(logits, labels).mean())
    return loss if isfinite(loss) else inf


def decide(progress: Progress, judge: Judge) -> Verdict:
    """Whether the weights to keep replace the model as it came: on evidence, and if they still know the server's world.

    Evidence are images that nothing was learnt from: the validation images and, if a head was fitted in closed form,
    training images under the head that was fitted without each of them.
    """
    pack, settings, training = judge.given.pack, judge.given.settings, judge.split.training
    level, evidence = settings.evidence_level, _evidence(progress.predictions, judge)
    ships, why, memory = evidence.better(level), _why(evidence, level), None
    doubted = max((entry.get("doubted") or 0.0 for entry in progress.history), default=0.0)
    if doubted > NONSENSE:
        ships, why = False, f"{doubted:.0%} of the labels look wrong: by these nothing is better"
    if ships and settings.forget < 1 and (unseen := _unseen_losses(pack, training)):
        ships, why = False, f"better here, but {unseen} (add some; --forget 1 ships it)"
    if ships:
        rehearsed = any(entry.get("rehearsed") and entry.get("kept", True) for entry in progress.history)
        memory = _look_back(progress.weights, judge, settings.forget, rehearsed=rehearsed)
        if memory is not None:
            counts = f"{memory.right} of {memory.images} images of the server are right, before {memory.right_before}"
            ships = not memory.forgot
            why = (
                f"{why}; {counts}" if ships else f"better here, but it forgot too much: {counts} (--forget allows more)"
            )
    return Verdict(ships, {**evidence._asdict(), "level": level, "anchors": memory and memory._asdict(), "why": why})


def _evidence(seen: Predictions, judge: Judge) -> Evidence:
    """The best model so far against the original one."""
    settings, fair_images = judge.given.settings, judge.split.fair_images
    before, after, labels = seen.before, seen.best, judge.validation.labels
    if fair_images is not None and len(seen.left_out):
        before, after = np.concatenate([before, seen.left_out_before]), np.concatenate([after, seen.left_out])
        labels = np.concatenate([labels, fair_images.labels[seen.left_out_of]])
    rng = np.random.default_rng([settings.seed, CHANCE])
    return compare(before, after, labels, rng, level=settings.evidence_level)


class Verdict(NamedTuple):
    """Whether the new model ships, and ``evidence`` of ``run.json``."""

    ships: bool
    evidence: dict[str, Any]


def _unseen_losses(pack: Pack, training: ImageSet) -> str:
    """Which classes the model may have lost without an image that would show it, in words; empty for none.

    A head that was fitted to two of ten classes takes pictures of the others for these. That does not show in pictures
    of the server, nor in six of the device. It is another thing where the device brings classes of its own. Of classes
    that an earlier run added (``begun_from``) the server has no pictures at all.
    """
    known = len(pack.manifest.model.classes)
    absent = np.setdiff1d(np.arange(known), training.labels)
    added = [label for label in absent if pack.manifest.calibration.embarrassment[label] is None]
    if pack.begun_from is not None and added:
        return f"{len(added)} of the classes that this device added have no image here, nor on the server"
    new = bool((training.labels >= known).any())
    if new or len(training) >= TELLING or not len(absent) or _below(0, len(training), RARE / known):
        return ""
    few = f"{len(training)} images are too few to show that they do not occur"
    return f"{len(absent)} of its classes have no image, and {few}"


class Memory(NamedTuple):
    """What a model makes of images of the server."""

    images: int
    right_before: int
    right: int
    forgot: bool


def _look_back(weights: Arrays, judge: Judge, may_lose: float, *, rehearsed: bool) -> Memory | None:
    """By features of the server's images where only the head has changed; None where there is too little to tell."""
    found = _by_features(weights, judge.given.pack) or _by_images(weights, judge, rehearsed=rehearsed)
    if found is None:
        return None
    forgot = forgot_too_much(found, 1 - may_lose, np.setdiff1d(found.labels, judge.split.training.labels))
    return Memory(len(found.labels), int(found.known.sum()), int(found.right.sum()), forgot)


class Recall(NamedTuple):
    """Of images of the server: whether the original and the new model are right, bool[N], and the labels int[N]."""

    known: np.ndarray
    right: np.ndarray
    labels: np.ndarray


def _by_images(weights: Arrays, judge: Judge, *, rehearsed: bool) -> Recall | None:
    """What the new model makes of the pack's anchors, of those that it was not fitted to."""
    anchors = judge.given.pack.anchors
    if anchors is None:
        return None
    asked = np.arange(len(anchors.images))
    if rehearsed:
        asked = np.setdiff1d(asked, anchors.rehearsed())
    if len(asked) < LEAST_ANCHORS:
        return None
    images = anchors.images.subset(asked)
    return Recall(anchors.known[asked], judge.look(weights, images).logits.argmax(1) == images.labels, images.labels)


def _by_features(weights: Arrays, pack: Pack) -> Recall | None:
    """What the new head makes of the examples in the pack's sums."""
    sums, old = pack.sums, pack.weights()
    if sums is None or len(sums.examples.labels) < LEAST_ANCHORS or changed_in(weights, pack):
        return None
    features, labels = sums.example_features(), sums.examples.labels
    known, right = (
        (features @ weight.T + bias).argmax(1) == labels
        for weight, bias in (pack.linear_head.joined(values) for values in (old, weights))
    )
    return Recall(known, right, labels)


def forgot_too_much(seen: Recall, keeps: float, absent: np.ndarray) -> bool:
    """Whether surely less than this share of what was known is left beyond chance, or of a class absent here."""
    known, right, labels = seen
    chance = 1 / len(np.unique(labels))
    whole = chance + keeps * max(known.mean() - chance, 0.0)
    if keeps <= 0:
        return False
    if _below(int(right.sum()), len(right), whole):
        return True
    classes = [labels == label for label in absent]  # of others the device's own images tell more
    return any(_below(int(right[of].sum()), int(of.sum()), keeps * known[of].mean()) for of in classes)


def _below(right: int, images: int, least: float) -> bool:
    """Whether so few right ones show that the true share is less than ``least``: a binomial tail."""
    tail = sum(comb(images, k) * least**k * (1 - least) ** (images - k) for k in range(right + 1))
    return tail <= SURELY


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
    enough, more = evidence.images_needed, ""
    if enough is not None and enough > evidence.images:
        some = f"about {enough}" if enough <= MANY else f"more than {MANY}"
        more = f"; {some} images would show such a gain"
    return f"not shown to be better: {seen}{more}"
