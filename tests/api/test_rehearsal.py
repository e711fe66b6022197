"""What each stage of training gained in a rehearsal, as a device would have seen it."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from edge_sel.api.rehearsal import rehearse
from edge_sel.config.settings import resolve
from edge_sel.data.builtin import load_digits
from edge_sel.edge.build import build_session
from edge_sel.edge.open import RunInputs
from edge_sel.edge.train import sel_stage
from edge_sel.edge.train.auto_schedule import clean_loss
from edge_sel.edge.train.schedule import FixedSchedule, PlannedStage
from edge_sel.engines.ort import OrtEngine
from edge_sel.pack.manifest_json import from_json, to_json
from tests.edge.sessions import digits, no_meter, of_counts, pack

CLEAN = clean_loss(pack().manifest.calibration)


def rehearsed(*fields, without=()):
    """The rows and the notes of a rehearsal on these images, each judged by ``judges()``."""
    notes, pairs = [], [(images, judges()) for images in fields]
    return rehearse(lesser(without), OrtEngine(threads=1), pairs, notes.append), notes


def judges():
    return digits(80, "test")


def lesser(without):
    plans = {name: info for name, info in pack().manifest.plans.items() if name not in without}
    return pack().with_manifest(replace(pack().manifest, plans=plans))


@cache
def two_fields():
    return rehearsed(load_digits("field").subset(np.arange(60)), digits())


def test_the_body_is_tried_in_every_field_for_one_epoch_and_for_three():
    """What comes before it, without a gradient, is asked of nobody."""
    rows, notes = two_fields()
    assert [row.kind for row in rows] == ["body"] * 4
    assert [note.split(":")[0] for note in notes] == ["rehearsal 1", "rehearsal 2"]
    for n, note in enumerate(notes):
        short, long = rows[2 * n : 2 * n + 2]
        assert short.excess == long.excess and 0 < short.visits < long.visits
        assert f"body {100 * short.gain:+.1f} in 1, body {100 * long.gain:+.1f} in 3 epochs" in note


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("without", "stages"), [((), ["closed_form", "full"]), (("bn",), ["ridge", "full"])], ids=["all", "no statistics"]
)
def test_rows_are_what_a_device_would_have_seen(without, stages, tmp_path):
    settings = resolve(flags={"backbone_precision": "fp32"})
    planned = FixedSchedule([PlannedStage(stages[0], 1), PlannedStage(stages[1], 3)])
    given = RunInputs(
        lesser(without), digits(), OrtEngine(threads=1), settings, no_meter(), tmp_path, validation=judges(),
        schedule=planned,
    )  # fmt: skip
    result = build_session(given).run()
    assert result["images"] == {"train": 120, "validation": 80, "test": 0}, "nothing is held back"
    came = [decision["came"]["gain"] for decision in result["decisions"][:-1]]
    first, *body = result["epochs"]
    seen = [(first["trained"], first["best_loss"], came[0])] if stages[0] == "ridge" else []
    seen.append((sum(epoch["trained"] for epoch in body), body[0]["best_loss"], came[1]))
    rows = [row for row in rehearsed(digits(), without=without)[0] if row.kind == "head" or row.visits > 100]
    assert len(rows) == len(seen)
    for row, (visits, loss, gain) in zip(rows, seen, strict=True):
        assert row.visits == visits and row.excess == pytest.approx(loss - CLEAN) and row.gain == pytest.approx(gain)


def test_the_same_rehearsal_gives_the_same_rows():
    assert rehearsed(digits())[0] == two_fields()[0][2:]


BODIES = ("full", "last2", "last", "affine", "first")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("without", "kinds"),
    [
        (("bn",), ["head", "body", "body"]),
        (("head",), ["body", "body"]),
        (("bn", *BODIES), ["head"]),
        (BODIES, []),
        (tuple(pack().manifest.plans), []),
    ],
    ids=["no statistics", "no head", "head only", "closed form only", "nothing"],
)
def test_a_pack_with_fewer_plans(without, kinds):
    rows, _ = rehearsed(of_counts(20, 20), without=without)
    assert [row.kind for row in rows] == kinds


def test_too_few_images_for_a_batch_tell_nothing():
    """A row of no visit could not be read again."""
    rows, notes = rehearsed(of_counts(4, 4), without=("bn",))
    assert [row.kind for row in rows] == ["head", "body"], "one epoch has no batch, three have one"
    assert rows[1].visits >= 8 and notes[0].count("body") == 1 and notes[0].endswith("in 3 epochs")
    with_rows = replace(pack().manifest, gains=rows)
    assert from_json(to_json(with_rows), "here") == with_rows


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("rate", "gains"), [(1e3, [0.0, 0.0]), (1e30, [])], ids=["worse", "diverged"])
def test_a_stage_that_was_undone_gained_nothing_and_one_that_diverged_has_no_row(rate, gains, monkeypatch):
    monkeypatch.setattr(sel_stage, "learning_rate", lambda *_: rate)
    assert [row.gain for row in rehearsed(digits(), without=("head",))[0]] == gains


def test_a_field_that_cannot_be_trained_on_is_left_out():
    """It must not cost the export."""
    rows, notes = rehearsed(of_counts(12), of_counts(20, 20))
    assert "rehearsal 1 left out: one class only" in notes[0]
    assert len(notes) == 2 and [row.kind for row in rows] == ["body", "body"]


def test_a_class_with_a_single_image_is_trained_on():
    """None of it has to be held back."""
    rows, notes = rehearsed(of_counts(20, 1))
    assert [row.kind for row in rows] == ["body", "body"] and "left out" not in notes[0]


@pytest.mark.slow
def test_what_a_stage_gained_depends_on_who_judges():
    field, other = digits(), load_digits("test").subset(np.arange(80))
    rows = [rehearse(lesser(()), OrtEngine(threads=1), [(field, judge)]) for judge in (judges(), other)]
    fitted = "the head was fitted to the field, whose images are easier than clean ones now"
    assert all(field_loss.excess < clean.excess - 0.02 for field_loss, clean in zip(*rows, strict=True)), fitted
