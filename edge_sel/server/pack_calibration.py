"""What the server's images tell of a model: γ, how hard they are, each class's loss, a new head, sums, anchors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.data.dataset import ImageSet, images_at_once, normalise
from edge_sel.engines.base import Engine
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import GraphError
from edge_sel.graphs.ir import Forward
from edge_sel.graphs.plans import Plan, parameters
from edge_sel.graphs.train import compile_train
from edge_sel.pack.anchors import ANCHORS, choose_anchors, read_anchors, write_anchors
from edge_sel.pack.manifest import Calibration, ModelInfo
from edge_sel.pack.plan_kinds import RIDGE
from edge_sel.pack.reader import Pack
from edge_sel.pack.sums import ServerSums, make_sums
from edge_sel.sel.embarrassment import class_embarrassment, cross_entropy
from edge_sel.sel.guilt import calibrate_gamma
from edge_sel.sel.ridge import fit_head

MAX_IMAGES = 5000
GAMMA_BATCH = 64
_GRADIENTS_OF, _FEATURES_OF, _LOGITS_OF = 16, 64, 256
"""Images at a time, of small ones: a training step keeps every activation of them."""

LogitsOf = Callable[[np.ndarray], np.ndarray]
"""Rows of an image set [N] to the logits of these images [N, classes]."""
GradientsOf = Callable[[np.ndarray, np.ndarray], Arrays]
"""Images [N, 3, H, W] and labels [N] to the gradient of the mean loss by weight."""


def calibrate_pack(
    pack: Pack, forward: Forward, images: ImageSet, new_head: NewHead | None, percentile: float,
    rng: np.random.Generator,
) -> Calibration:  # fmt: skip
    """The calibration block of a pack; where the head is new, logits are of heads that did not see the image."""
    model, weights = pack.manifest.model, pack.weights()
    predict = OrtEngine().predictor(pack, weights)
    try:
        gradients = frozen_gradients(forward, weights)
    except GraphError:  # an early operator has no rule: what the largest plan trains
        largest = max((plan.trainable for plan in pack.manifest.plans.values()), key=len)
        gradients = frozen_gradients(forward, weights, largest)

    def logits_of(rows: np.ndarray) -> np.ndarray:
        if new_head is not None:
            left_out: np.ndarray = new_head.left_out[rows]
            return left_out
        return predict(normalise(images.read(rows), model.mean, model.std))

    seen = images if new_head is None else images.subset(new_head.rows)
    return calibrate(seen, model, logits_of, gradients, gamma_percentile=percentile, rng=rng)


def calibrate(
    images: ImageSet,
    model: ModelInfo,
    logits_of: LogitsOf,
    gradients: GradientsOf,
    *,
    gamma_percentile: float,
    rng: np.random.Generator,
) -> Calibration:
    """Measure the calibration block of a manifest on at most ``MAX_IMAGES`` images.

    γ is the percentile of |gradient| over every parameter for one batch in evaluation mode (SEL benchmark README:
    p40; SEL v3: p20).
    """
    order = rng.permutation(len(images))[:MAX_IMAGES]
    labels = images.labels[order]
    chunks = np.array_split(order, -(-len(order) // images_at_once(_LOGITS_OF, model.image_size)))
    logits = np.concatenate([logits_of(chunk) for chunk in chunks])
    losses = cross_entropy(logits, labels)
    embarrassment = class_embarrassment(logits, labels, len(images.classes))
    batch = order[:GAMMA_BATCH]
    found = gradients(normalise(images.read(batch), model.mean, model.std), images.labels[batch])
    return Calibration(
        gamma=float(calibrate_gamma(list(found.values()), gamma_percentile)),
        gamma_percentile=gamma_percentile,
        difficulty=tuple(float(q) for q in np.quantile(losses, np.linspace(0, 1, 11))),
        embarrassment=tuple(None if np.isnan(e) else float(e) for e in embarrassment),
        accuracy=float((logits.argmax(1) == labels).mean()),
        images=len(order),
    )


def frozen_gradients(forward: Forward, weights: Arrays, trainable: tuple[str, ...] = ()) -> GradientsOf:
    """Gradients with frozen statistics, by a compiled step of its own that no pack holds.

    Args:
        forward: the inference graph.
        weights: of the model.
        trainable: weights to differentiate by, all by default.

    Raises:
        GraphError: an operator on the way has no gradient rule.
    """
    names = trainable or parameters(forward)
    graph = compile_train(forward, Plan("full", names, "frozen"), "sgd").SerializeToString()
    session = OrtEngine().session(graph, {})
    asked = {given.name: given for given in session.get_inputs()}
    scalars = {"lr": 0.0, "gamma": -1.0, "momentum": 0.0}
    fixed = {name: np.array(value, np.float32) for name, value in scalars.items()}
    fixed |= {name: weights[name] for name in weights.keys() & asked.keys()}
    fixed |= {f"momentum::{name}": np.zeros_like(weights[name]) for name in names}
    outputs = [f"new::momentum::{name}" for name in names]

    def gradients(pixels: np.ndarray, labels: np.ndarray) -> Arrays:
        total = [np.zeros(weights[name].shape, np.float64) for name in names]
        step = images_at_once(_GRADIENTS_OF, (pixels.shape[2], pixels.shape[3]))
        for start in range(0, len(labels), step):
            part = slice(start, start + step)
            count = len(labels[part])
            feeds = {"x": pixels[part], "labels": labels[part], "sample_weight": np.ones(count, np.float32), **fixed}
            for sum_, found in zip(total, session.run(outputs, feeds), strict=True):
                sum_ += found * (count / len(labels))
        return {name: value.astype(np.float32) for name, value in zip(names, total, strict=True)}

    return gradients


class HeadFeatures(NamedTuple):
    """What the head takes of some images, float32[N, F], as a device would keep it; ``rows`` [N] are their indices."""

    rows: np.ndarray
    features: np.ndarray


class NewHead(NamedTuple):
    """The head's weight and bias by name, the images [N] it was fitted to, and their logits under it.

    The logits [N, C] of each image are those of the head that was fitted without it.
    """

    weights: Arrays
    rows: np.ndarray
    left_out: np.ndarray


def head_features(pack: Pack, images: ImageSet, engine: Engine, rng: np.random.Generator) -> HeadFeatures | None:
    """Of at most ``MAX_IMAGES``; None where the head is not one linear layer on a vector of features."""
    if RIDGE not in pack.plan_names:
        return None
    model = pack.manifest.model
    backbone = engine.backbone(pack, RIDGE, pack.weights())
    assert backbone is not None
    rows = np.sort(rng.permutation(len(images))[:MAX_IMAGES])
    chunks = np.array_split(rows, -(-len(rows) // images_at_once(_FEATURES_OF, model.image_size)))
    features = [backbone(normalise(images.read(chunk), model.mean, model.std)) for chunk in chunks]
    return HeadFeatures(rows, np.concatenate(features))


def fit_new_head(pack: Pack, images: ImageSet, found: HeadFeatures | None) -> NewHead:
    """Ridge regression, see ``sel.ridge``.

    Raises:
        GraphError: the model's head is not one linear layer on a vector of features.
    """
    if found is None:
        raise GraphError(
            "a new head is fitted only where it is one linear layer on a vector of features",
            fix="train the head on these classes first, and give the weights with --weights",
        )
    model, head, old = pack.manifest.model, pack.linear_head, pack.weights()
    groups = model.feature_groups(found.features.shape[1])
    labels = images.labels[found.rows]
    fit = fit_head(found.features, labels, len(model.classes), groups=groups, shallow=groups[0])
    fitted = head.parted(fit.weight.astype(np.float32), fit.bias.astype(np.float32), old)
    return NewHead(fitted, found.rows, fit.left_out.astype(np.float32))


def sums_of(pack: Pack, images: ImageSet, found: HeadFeatures, rng: np.random.Generator) -> ServerSums | None:
    """What a device adds its own sums to; see ``make_sums``."""
    model, labels = pack.manifest.model, images.labels[found.rows]
    groups = model.feature_groups(found.features.shape[1])
    return make_sums(found.features, labels, len(model.classes), groups, rng)


def make_anchors(pack: Pack, images: ImageSet, rng: np.random.Generator) -> dict[str, bytes]:
    """The file of anchors by its name, with what the pack's model makes of them; nothing if no image is that small."""
    files, labels = choose_anchors(images, rng)
    if not files:
        return {}
    model = pack.manifest.model
    read = read_anchors(write_anchors(files, labels, np.zeros(len(labels))), model.image_size, model.classes).images
    pixels = normalise(read.read(np.arange(len(read))), model.mean, model.std)
    logits = OrtEngine().predictor(pack, pack.weights())(pixels)
    return {ANCHORS: write_anchors(files, labels, logits.argmax(1) == labels)}
