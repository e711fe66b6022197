"""Full sessions beside watching, and what a watcher tells to metrics."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from edge_sel.api.watching import watch_home
from edge_sel.edge.classifier import open_classifier
from edge_sel.watch.home import open_home
from edge_sel.watch.labelling import settle
from tests.watch.conftest import write_digits


@pytest.fixture
def labelled(watched, tmp_path):
    """A home in which 50 images have a label: so few that training the body promises something."""
    shutil.copytree(watched / "home", tmp_path / "home")
    home = open_home(tmp_path / "home")
    names = json.loads((watched / "CLASSES.json").read_text())
    for image in home.records.kept()[:50]:
        home.records.add_label(image.number, names[str(image.number)], "somebody", 1.0)
        settle(home, image.number, image.file)
    return home


def watch(home, folder, until, seconds=60.0, **options):
    """Until an event of this name; all events."""
    events: list[dict] = []
    config = folder.parent / "limits.toml"
    config.write_text('plan = "affine"\nepochs = 1\nthreads = 1\nmeter = "psutil"\n')
    deadline_s = time.monotonic() + seconds

    def ended() -> bool:
        assert time.monotonic() < deadline_s, events
        return any(event["event"] == until for event in events)

    why = watch_home(
        home, folder, tell=events.append, config=config, threads=1, environ={},
        should_stop=lambda: "signal" if ended() else None, **options,
    )  # fmt: skip
    assert why == "signal"
    return events


def test_a_session_begins_where_labels_promise_something_and_its_model_is_served(labelled, tmp_path):
    write_digits(tmp_path / "camera", 2, 300)
    events = watch(labelled, tmp_path / "camera", "session_ended", finetune=True, no_learning=True)
    by_name = {event["event"]: event for event in events}
    assert by_name["session"]["labels"] == 50 and by_name["session_ended"]["energy_j"] > 0
    summary = json.loads((labelled.folder / "runs" / "0001" / "run.json").read_text())
    assert summary["stopped"] == "done" and (by_name["session_ended"]["shipped"] is not None) == summary["shipped"]
    if summary["shipped"]:
        assert labelled.service() == by_name["session_ended"]["shipped"] == 1
        assert open_classifier(labelled.model_folder(1), 1).classes == labelled.pack.manifest.model.classes
    again = watch(labelled, tmp_path / "camera", "started", finetune=True, no_learning=True)
    assert "session" not in {event["event"] for event in again}  # no label has come since


def test_a_session_that_was_cut_goes_on(labelled, tmp_path):
    write_digits(tmp_path / "camera", 2, 300)
    stopped: list[dict] = []

    def tell(event):
        stopped.append(event)

    config = tmp_path / "limits.toml"
    config.write_text('plan = "affine"\nepochs = 3\nthreads = 1\nmeter = "psutil"\n')
    asked = []

    def should_stop():
        if any(event["event"] == "session" for event in stopped):
            asked.append(1)
        return "signal" if len(asked) > 3 else None

    watch_home(labelled, tmp_path / "camera", tell=tell, should_stop=should_stop, config=config, threads=1, environ={},
               finetune=True, no_learning=True)  # fmt: skip
    run = labelled.folder / "runs" / "0001"
    assert run.is_dir() and not (run / "run.json").exists()
    done: list[dict] = []
    watch_home(labelled, tmp_path / "camera", tell=done.append, config=config, threads=1, environ={}, finetune=True,
               should_stop=lambda: "signal" if any(e["event"] == "session_ended" for e in done) else None,
               no_learning=True)  # fmt: skip
    assert (run / "run.json").exists() and not (labelled.folder / "runs" / "0002").exists()


def test_few_labels_begin_no_session_and_metrics_are_kept(watched, tmp_path):
    shutil.copytree(watched / "home", tmp_path / "home")
    home = open_home(tmp_path / "home")
    write_digits(tmp_path / "camera", 3, 300)
    events: list[dict] = []
    why = watch_home(home, tmp_path / "camera", tell=events.append, once=True, finetune=True, threads=1, environ={},
                     metrics=tmp_path / "m.prom")  # fmt: skip
    assert why == "done" and "session" not in {event["event"] for event in events}
    text = (tmp_path / "m.prom").read_text()
    assert text.endswith("# EOF\n") and "edge_sel_watch_images_total" in text and "edge_sel_watch_model 0.0" in text
