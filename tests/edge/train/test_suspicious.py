"""Images whose labels look wrong: told, left out when asked, and no reason to train on when nearly all do."""

import numpy as np
import pytest

from edge_sel.cli.show import DOUBTFUL
from edge_sel.edge.train.auto_schedule import NONSENSE
from tests.edge.recording import Recording
from tests.edge.sessions import StopAt, Tape, outcome, session
from tests.edge.test_ship import CLOSED, clean, noise, with_labels
from tests.edge.train.stages import AUTO

BODY = {"plan": "closed_form,full", "epochs": 1, "learning_rate": 1e-3, "gate": "off", "curriculum": "off"}


def swapped(count=240, share=0.2):
    """Clean images, and which of their labels were changed."""
    rng, images = np.random.default_rng(1), clean(count)
    hit = np.sort(rng.permutation(count)[: round(share * count)])
    labels = images.labels.copy()
    labels[hit] = (labels[hit] + rng.integers(1, 10, len(hit))) % 10
    return with_labels(images, labels), hit


def test_they_are_told_by_name_with_what_they_look_like(tmp_path):
    images, hit = swapped()
    run = session(tmp_path, images=images, **CLOSED)
    result = run.run()["suspicious"]
    bad = {images.ids[row] for row in hit} & {*run.split.training.ids}
    found = {entry["path"]: entry for entry in result["files"]}
    assert not result["dropped"] and result["share"] == len(found) / len(run.split.training) > DOUBTFUL
    assert len(bad & {*found}) > 0.8 * len(bad) and len(bad & {*found}) > 0.8 * len(found)
    truth = clean(240).labels  # an image is named by its number
    right = [entry["looks_like"] == images.classes[truth[int(path)]] for path, entry in found.items() if path in bad]
    assert np.mean(right) > 0.8


def test_good_labels_are_left_in_peace(tmp_path):
    assert session(tmp_path, images=clean(240), **CLOSED).run()["suspicious"]["share"] < 0.02


def test_nobody_has_looked_where_there_is_no_closed_form(tmp_path):
    result = session(tmp_path, images=swapped()[0], plan="bn").run()["suspicious"]
    assert result["share"] is None and result["files"] == []


def test_they_are_left_out_of_the_head_and_of_the_body_when_asked(tmp_path):
    images, _ = swapped()
    engine = Recording()
    run = session(tmp_path, images=images, engine=engine, drop_suspicious=True, **BODY)
    result = run.run()
    doubted, count = len(result["suspicious"]["files"]), len(run.split.training)
    closed, full = result["epochs"]
    assert result["suspicious"]["dropped"] and closed["trained"] == count - doubted < closed["candidates"] == count
    assert full["candidates"] == count - doubted
    assert result["evidence"]["images"] == len(run.judge.validation), "chosen ones judge nothing"


@pytest.mark.slow
def test_dropping_them_is_resumed_to_the_same_bits(tmp_path):
    images, tape = swapped(120)[0], Tape()
    given = {**BODY, "drop_suspicious": True, "images": images}
    session(tmp_path / "one", listener=tape, **given).run()
    expected = outcome(tmp_path / "one")
    for boundary in range(1, len(tape.of("step")) + 1, 3):
        out = tmp_path / str(boundary)
        session(out, should_stop=StopAt(boundary), **given).run()
        session(out, resume=True, **given).run()
        assert outcome(out) == expected, boundary


@pytest.mark.parametrize("worth", [10, 0])
def test_an_automatic_run_spends_nothing_more_on_noise(worth, tmp_path):
    result = session(tmp_path, images=noise(clean(240)), **{**AUTO, "min_gain_per_kj": worth}).run()
    assert [epoch["plan"] for epoch in result["epochs"]] == ["closed_form"] and result["epochs"][0][
        "doubted"
    ] > NONSENSE
    assert "nothing to learn from" in result["decisions"][-1]["why"] and not result["shipped"]
