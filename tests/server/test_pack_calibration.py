"""The calibration block against the same numbers by hand, for a linear model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edge_sel.data.dataset import ImageSet, normalise
from edge_sel.graphs.plans import head_names
from edge_sel.pack.manifest import ModelInfo
from edge_sel.sel.embarrassment import TEMPERATURE
from edge_sel.server import pack_calibration as module
from edge_sel.server.pack_calibration import GAMMA_BATCH, calibrate, frozen_gradients
from edge_sel.server.source import torch_model

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Linear(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 4 * 4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


def images(count: int = 100, present: int = 4, classes: int = 4) -> ImageSet:
    rng = np.random.default_rng(0)
    names = tuple(f"class {i}" for i in range(classes))
    return ImageSet.from_arrays(
        rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8), rng.integers(0, present, count), names
    )


def measured(model: nn.Module, given: ImageSet, percentile: float, seed: int):
    """The calibration of a model, as an export does it."""
    forward = torch_model.export_forward(model, (4, 4))
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    info = ModelInfo("linear", 1, given.classes, (4, 4), MEAN, STD, head_names(forward))

    def logits_of(rows: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(normalise(given.read(rows), MEAN, STD))).detach().numpy()

    gradients = frozen_gradients(forward, weights)
    return calibrate(given, info, logits_of, gradients, gamma_percentile=percentile, rng=np.random.default_rng(seed))


def by_hand(model: Linear, given: ImageSet, rows: np.ndarray):
    """Logits, probabilities and losses in float64."""
    x = normalise(given.read(rows), MEAN, STD).reshape(len(rows), -1).astype(np.float64)
    w, b = (p.detach().numpy().astype(np.float64) for p in model.head.parameters())
    logits = x @ w.T + b
    return x, logits


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def linear() -> Linear:
    torch.manual_seed(0)
    return Linear(4)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("percentile", (0.0, 20.0, 40.0, 100.0))
def test_every_number_by_hand(one_thread, percentile):
    model, given = linear(), images()
    result = measured(model, given, percentile, 5)
    x, logits = by_hand(model, given, np.arange(100))
    labels = given.labels
    losses = -np.log(softmax(logits)[np.arange(100), labels])
    soft = -np.log(softmax(logits / TEMPERATURE)[np.arange(100), labels])
    assert result.images == 100 and result.gamma_percentile == percentile
    assert result.accuracy == pytest.approx((logits.argmax(1) == labels).mean())
    np.testing.assert_allclose(result.difficulty, np.percentile(losses, np.arange(0, 101, 10)), rtol=1e-4)
    np.testing.assert_allclose(result.embarrassment, [soft[labels == c].mean() for c in range(4)], rtol=1e-4)
    chosen = np.random.default_rng(5).permutation(100)[:GAMMA_BATCH]
    delta = (softmax(logits) - np.eye(4)[labels])[chosen] / GAMMA_BATCH
    gradients = np.concatenate([(delta.T @ x[chosen]).ravel(), delta.sum(0)])
    assert result.gamma == pytest.approx(np.percentile(np.abs(gradients), percentile), rel=1e-3, abs=1e-7)


def test_a_class_without_images_has_no_embarrassment(one_thread):
    result = measured(linear(), images(present=3), 40, 0)
    assert result.embarrassment[3] is None and all(isinstance(e, float) for e in result.embarrassment[:3])


def test_a_large_set_is_sampled(one_thread, monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGES", 30)
    model, given = linear(), images()
    result = measured(model, given, 40, 7)
    chosen = np.random.default_rng(7).permutation(100)[:30]
    _, logits = by_hand(model, given, chosen)
    assert result.images == 30
    losses = -np.log(softmax(logits)[np.arange(30), given.labels[chosen]])
    assert result.difficulty[0] == pytest.approx(losses.min(), rel=1e-4)
    assert result.difficulty[-1] == pytest.approx(losses.max(), rel=1e-4)


def test_gradients_are_those_of_frozen_statistics(one_thread):
    torch.manual_seed(0)
    model, given = nn.Sequential(nn.BatchNorm2d(3), Linear(4)).eval(), images(40)
    forward = torch_model.export_forward(model, (4, 4))
    weights = {n: v.detach().numpy() for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    x = normalise(given.read(np.arange(40)), MEAN, STD)
    found = frozen_gradients(forward, weights)(x, given.labels)
    loss = nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(given.labels))
    expected = torch.autograd.grad(loss, list(model.parameters()))
    assert list(found) == [name for name, _ in model.named_parameters()]
    for (name, gradient), wanted in zip(found.items(), expected, strict=True):
        np.testing.assert_allclose(gradient, wanted.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)
