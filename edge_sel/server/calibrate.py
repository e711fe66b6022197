"""What the server measures once on clean images: γ, how hard images are, each class's loss (embarrassment)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.data.dataset import ImageSet
from edge_sel.data.transforms import normalise
from edge_sel.engines.ort import OrtEngine
from edge_sel.graphs.ir import Forward
from edge_sel.graphs.plans import Plan, parameters
from edge_sel.graphs.train import compile_train
from edge_sel.pack.manifest import Calibration, ModelInfo
from edge_sel.sel.embarrassment import class_embarrassment, cross_entropy
from edge_sel.sel.guilt import calibrate_gamma

MAX_IMAGES = 5000
GAMMA_BATCH = 64
_CHUNK = 16
"""Images at a time: a training step keeps every activation of them."""

LogitsOf = Callable[[np.ndarray], np.ndarray]
"""Rows of an image set [N] to the logits of these images [N, classes]."""
Gradients = Callable[[np.ndarray, np.ndarray], Arrays]
"""Images [N, 3, H, W] and labels [N] to the gradient of the mean loss by weight."""


def calibrate(
    images: ImageSet,
    model: ModelInfo,
    logits_of: LogitsOf,
    gradients: Gradients,
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
    chunks = np.array_split(order, -(-len(order) // 256))
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


def frozen_gradients(forward: Forward, weights: Arrays, trainable: tuple[str, ...] = ()) -> Gradients:
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
        for start in range(0, len(labels), _CHUNK):
            part = slice(start, start + _CHUNK)
            count = len(labels[part])
            feeds = {"x": pixels[part], "labels": labels[part], "sample_weight": np.ones(count, np.float32), **fixed}
            for sum_, found in zip(total, session.run(outputs, feeds), strict=True):
                sum_ += found * (count / len(labels))
        return {name: value.astype(np.float32) for name, value in zip(names, total, strict=True)}

    return gradients
