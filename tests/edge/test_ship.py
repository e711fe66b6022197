"""What a run may replace the original model by."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_sel.data.builtin import load_digits
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.evidence import Evidence
from edge_sel.edge.ship import LEAST_ANCHORS, _why, decide
from edge_sel.pack.anchors import Anchors
from tests.edge.sessions import StopAt, Tape, digits, of_counts, outcome, pack, session, some_or_all, without_anchors

CLOSED = {"plan": "closed_form"}
FULL = {"plan": "closed_form,full", "epochs": 2, "learning_rate": 1e-2, "gate": "off", "curriculum": "off"}


def pixels(images):
    return images.read(np.arange(len(images)))


def with_labels(images, labels):
    return ImageSet.from_arrays(pixels(images), labels, images.classes)


def wrong(images, share):
    rng, labels = np.random.default_rng(3), images.labels.copy()
    hit = rng.permutation(len(labels))[: round(share * len(labels))]
    labels[hit] = (labels[hit] + rng.integers(1, 10, len(hit))) % 10
    return with_labels(images, labels)


def noise(images):
    made = np.random.default_rng(4).integers(0, 256, (len(images), *images.size, 3))
    return ImageSet.from_arrays(made.astype(np.uint8), images.labels, images.classes)


def grey(images):
    made = np.full((len(images), *images.size, 3), 128, np.uint8)
    return ImageSet.from_arrays(made, images.labels, images.classes)


def one_label(images):
    return with_labels(images, np.where(np.arange(len(images)) % 30 == 0, 4, 7))


def clean(count=300):
    """Digits as the server knows them."""
    return load_digits("test").subset(np.arange(count))


SENSELESS = {
    "noise": noise,
    "grey": grey,
    "30 % wrong": lambda images: wrong(images, 0.3),
    "60 % wrong": lambda images: wrong(images, 0.6),
    "one label": one_label,
    "90 % wrong": lambda images: wrong(images, 0.9),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("plans", [CLOSED, FULL], ids=["closed_form", "full"])
@pytest.mark.parametrize("case", SENSELESS)
def test_nothing_ships_that_was_learnt_from(case, plans, tmp_path):
    result = session(tmp_path, images=SENSELESS[case](clean()), **plans).run()
    assert not result["shipped"]
    left = load_file(tmp_path / "weights.safetensors")
    assert all(np.array_equal(left[name], value) for name, value in pack().weights().items())


@pytest.mark.parametrize(
    ("needed", "expected"), [(20, ""), (4000, "about 4000 images"), (10**9, "more than 100000 images")]
)
def test_how_many_images_would_show_it_is_told_where_somebody_could_have_them(needed, expected):
    why = _why(Evidence(300, 0.01, -0.02, 0.04, 0.4, 0.4, 0.6, needed), 0.9)
    assert why.startswith("not shown to be better: +1.0 points (-2.0 to +4.0) on 300 images")
    assert why.endswith(f"; {expected} would show such a gain" if expected else "300 images")


def test_a_real_shift_ships_with_its_evidence(tmp_path):
    result = session(tmp_path, images=digits(300), **CLOSED).run()
    found = result["evidence"]
    assert (
        result["shipped"]
        and found["why"].startswith("better by ")
        and " points (" in found["why"]
        and found["p_loss"] <= 0.1
    )
    assert 0 < found["low"] <= found["gain"] <= found["high"] and found["level"] == 0.9
    assert found["images"] == 300, "the training images judge too: a head was fitted without each of them"


def test_all_anchors_judge_where_the_stage_that_learnt_from_some_was_undone(tmp_path):
    built = session(tmp_path, images=digits(300), plan="bn,last2", epochs=1, forget=0.67)
    assert built.run()["shipped"]
    asked = []
    for kept in (False, True):
        history = [{"rehearsed": 25, "kept": kept}, *built.progress.history]
        progress = replace(built.progress, history=history)
        verdict = decide(progress, built.judge)
        asked.append(verdict.evidence["anchors"]["images"])
    assert asked == [len(pack().anchors.known), len(pack().anchors.known) - len(pack().anchors.rehearsed())]


def test_whoever_was_trained_on_bears_no_witness(tmp_path):
    result = session(tmp_path, images=digits(300), plan="full,ridge", epochs=1).run()
    assert result["evidence"]["images"] == result["images"]["validation"]


def test_no_stage_takes_the_place_of_a_head_that_is_shown_to_be_better_unless_it_is_shown_too(tmp_path):
    """Ten validation images say that another epoch is better, but not at this level that the model is; thirty do."""
    asked = {"plan": "closed_form,full", "epochs": 1, "learning_rate": 1e-3, "gate": "off"}
    images = of_counts(*[3] * 10)
    kept = session(tmp_path / "kept", images=images, **asked).run()
    assert [entry["kept"] for entry in kept["epochs"]] == [True, True] and kept["evidence"]["images"] == 10
    undone = session(tmp_path / "undone", images=images, evidence_level=0.999, **asked).run()
    assert [entry["kept"] for entry in undone["epochs"]] == [True, False]
    assert undone["shipped"] and undone["evidence"]["images"] == 30


def test_a_handful_of_images_replaces_a_model_only_by_a_better_one(tmp_path):
    """Four, if each of them says so; by other images it is."""
    images = of_counts(2, 2)
    result = session(tmp_path, images=images, test=digits(200, "test"), **CLOSED).run()
    assert result["evidence"]["images"] == len(images)
    better = result["after"]["test"]["accuracy"] > result["before"]["test"]["accuracy"]
    assert better or not result["shipped"]


@pytest.mark.slow
@pytest.mark.sampled(2)
@some_or_all
def test_the_evidence_of_an_interrupted_run_is_the_same(apart, tmp_path):
    tape = Tape()
    whole = session(tmp_path / "one", images=digits(150), listener=tape, **CLOSED).run()
    expected = outcome(tmp_path / "one")
    for boundary in range(1, len(tape.of("step")) + 1, apart):
        out = tmp_path / str(boundary)
        session(out, images=digits(150), should_stop=StopAt(boundary), **CLOSED).run()
        result = session(out, images=digits(150), resume=True, **CLOSED).run()
        assert outcome(out) == expected and result["evidence"] == json.loads(json.dumps(whole["evidence"])), boundary


# What the server's images say


def test_a_model_that_forgot_the_servers_world_does_not_ship_unless_told(tmp_path):
    """Every validation image says that it is better, for all labels are wrong in the same way."""
    images = with_labels(clean(), (clean().labels + 1) % 10)
    kept = session(tmp_path / "kept", images=images, **CLOSED).run()
    memory = kept["evidence"]["anchors"]
    assert not kept["shipped"] and "--forget" in kept["evidence"]["why"] and memory["forgot"]
    assert memory["right"] < memory["right_before"] and kept["after"]["validation"]["accuracy"] > 0.7
    result = session(tmp_path / "result", images=images, forget=1.0, **CLOSED).run()
    assert result["shipped"] and result["evidence"]["anchors"]["right"] < memory["right_before"] / 2


def test_new_statistics_forget_little_as_half_of_the_anchors_is_learnt_from(tmp_path):
    """By the others, which no head was fitted to."""
    result = session(tmp_path, images=digits(150), forget=0.1, **CLOSED).run()
    memory, (epoch,) = result["evidence"]["anchors"], result["epochs"]
    assert epoch["statistics"] == "new" and epoch["rehearsed"] == memory["images"] == 50
    assert result["shipped"] and memory["right"] >= 45 and f"{memory['right']} of 50" in result["evidence"]["why"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("images", "rehearsed"), [(39, 0), (40, 20), (100, 50)])
def test_half_of_the_anchors_of_each_class_are_learnt_from(images, rehearsed):
    labels = np.arange(images) % 5
    rows = Anchors(with_labels(digits(images), labels), np.ones(images, bool)).rehearsed()
    assert len(rows) == rehearsed and np.ptp(np.bincount(labels[rows], minlength=5)) <= 1


def test_a_pack_without_anchors_is_judged_by_the_devices_images_alone(tmp_path):
    result = session(tmp_path, images=digits(300), base=without_anchors(), **CLOSED).run()
    assert result["shipped"] and result["evidence"]["anchors"] is None


def test_a_device_with_few_classes_may_forget_the_others(tmp_path):
    """A hundred images of two digits."""
    images = digits(500)
    two = images.subset(np.flatnonzero(np.isin(images.labels, [3, 7])))
    result = session(tmp_path, images=two, **CLOSED).run()
    memory = result["evidence"]["anchors"]
    assert result["shipped"] and memory["images"] >= LEAST_ANCHORS and not memory["forgot"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", range(4))
def test_a_few_images_of_two_classes_do_not_say_that_there_are_no_others(seed, tmp_path):
    """Three of each: a model that knew ten digits still knows them, or stays as it was."""
    result = session(tmp_path, images=of_counts(3, 3), test=digits(200, "test"), seed=seed, **CLOSED).run()
    memory = result["evidence"]["anchors"]
    assert memory is None or memory["images"] > 40
    assert result["after"]["test"]["accuracy"] > result["before"]["test"]["accuracy"] - 0.1
