import numpy as np
import pytest

from edge_sel.sel.calibration import best_scales, calibration_error
from edge_sel.sel.embarrassment import log_softmax


def drawn(scale, count=4000):
    """Logits, of which labels are drawn at another temperature."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(count, 4)) * 2
    chances = np.exp(log_softmax(scale * logits)).cumsum(1)
    return logits, (rng.random((count, 1)) > chances).sum(1).clip(max=3)


def test_probabilities_that_the_labels_were_drawn_by_are_calibrated():
    logits, labels = drawn(1.0)
    assert calibration_error(logits, labels) < 0.03


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_the_best_temperature_mends_calibration(scale):
    logits, labels = drawn(scale)
    found = best_scales(logits, labels, np.full(len(labels), 1 / len(labels))).own
    assert found == pytest.approx(scale, rel=0.1)
    assert calibration_error(found * logits, labels) < 0.03 < 0.1 < calibration_error(logits, labels)


@pytest.mark.parametrize(("labels", "error"), [([0, 0], 0.0), ([1, 1], 1.0), ([0, 1], 0.5)])
def test_who_is_sure_is_as_wrong_as_often(labels, error):
    assert calibration_error(np.array([[90.0, 0.0]] * 2), np.array(labels)) == pytest.approx(error)


def test_what_is_no_number_is_surely_wrong():
    assert calibration_error(np.array([[np.nan, 0.0]]), np.array([1])) == 1.0


def two_models():
    """Two models' logits, and labels that both tell something of."""
    rng = np.random.default_rng(5)
    ours, theirs = rng.normal(size=(2, 4000, 4))
    chances = np.exp(log_softmax(2 * ours + 1.5 * theirs)).cumsum(1)
    return ours, theirs, (rng.random((4000, 1)) > chances).sum(1).clip(max=3), np.full(4000, 1 / 4000)


def test_two_models_are_mixed_as_the_labels_say():
    ours, theirs, labels, weights = two_models()
    assert best_scales(ours, labels, weights, theirs) == pytest.approx((2, 1.5), rel=0.1)


def test_a_model_that_tells_the_contrary_is_left_out():
    ours, theirs, labels, weights = two_models()
    alone = best_scales(ours, labels, weights).own
    assert best_scales(ours, labels, weights, -theirs) == pytest.approx((alone, 0), rel=0.01)


def test_the_same_model_twice_is_one():
    logits, labels = drawn(1.0)
    own, other = best_scales(logits, labels, np.full(len(labels), 1 / len(labels)), logits)
    assert own + other == pytest.approx(1.0, rel=0.1)
