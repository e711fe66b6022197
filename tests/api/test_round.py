"""``edge_sel.train_round``: a round in memory is the round that a folder would have, and writes nothing."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
from safetensors.numpy import load_file

import edge_sel
from edge_sel.data.dataset import ImageSet
from edge_sel.errors import BadInputError, SetupError, UsageError
from edge_sel.power.meter import Reading
from tests.edge.sessions import digits, pack, tree

ASKED = {"plan": "closed_form", "threads": 1, "engine": "ort", "device": "cpu", "backbone_precision": "fp32"}


class MyMeter:
    """A meter of the caller's own, which has measured 3 W always."""

    name, source, min_window_s = "mine", "measured", 0.01

    def __init__(self):
        self.closed = 0

    def read(self, now_s):
        return Reading(now_s, energy_j=3 * now_s, power_w=3.0)

    def close(self):
        self.closed += 1


@pytest.fixture(scope="module")
def in_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("round") / "run"
    return edge_sel.train_round(pack(), digits(120), folder=out, **ASKED)


def test_a_meter_of_the_callers_own_is_used():
    meter = MyMeter()
    made = edge_sel.train_round(pack(), digits(120), meter=meter, require_measured=True, **ASKED)
    assert made.energy_source == "measured" and made.summary["energy"]["meter"] == "mine" and meter.closed == 1
    assert made.energy_j == pytest.approx(3 * made.summary["time_s"], rel=0.05)


def test_a_meter_of_the_callers_own_that_only_models_does_not_pass_for_one_that_measures():
    meter = MyMeter()
    meter.source = "modelled"
    with pytest.raises(SetupError, match="mine does not measure"):
        edge_sel.train_round(pack(), digits(120), meter=meter, require_measured=True, **ASKED)


def test_a_round_in_memory_writes_nothing_and_ends_with_the_same_weights(in_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = edge_sel.train_round(pack(), digits(120), **ASKED)
    assert tree(tmp_path) == {} and made.folder is made.model is None
    written = load_file(in_folder.folder / "weights.safetensors")
    assert made.shipped and made.done
    assert all((made.weights[name] == value).all() for name, value in written.items())
    assert made.summary["evidence"] == in_folder.summary["evidence"] and made.summary["outputs"] == {}
    assert {event["event"] for event in made.events} >= {"started", "epoch", "finished"}
    assert len(made.training) == made.summary["images"]["train"] and not set(made.training) & set(made.validation)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("plan", ["bn,last-c25", "auto", "full"])
def test_every_plan_ends_in_memory_as_it_does_in_a_folder(plan, tmp_path):
    asked = {**ASKED, "plan": plan, "epochs": 1}
    of_folder = edge_sel.train_round(pack(), digits(120), folder=tmp_path / "run", **asked)
    made = edge_sel.train_round(pack(), digits(120), **asked)
    assert made.weights.keys() == of_folder.weights.keys()
    assert all(np.array_equal(made.weights[name], value) for name, value in of_folder.weights.items())


def test_new_weights_are_told_whether_they_ship_or_not():
    rng, images = np.random.default_rng(0), digits(120)
    wrong = ImageSet.from_arrays(images.read(np.arange(120)), rng.permutation(images.labels), images.classes)
    made = edge_sel.train_round(pack(), wrong, **{**ASKED, "plan": "last", "epochs": 1})
    assert not made.shipped
    good = edge_sel.train_round(pack(), images, **ASKED)
    head = set(pack().manifest.model.head)
    assert head <= good.changed.keys() and all(value > 0 for value in good.changed.values())
    assert good.changed.keys() == {n for n, v in good.weights.items() if not np.array_equal(v, pack().weights()[n])}


def test_rounds_follow_each_other_in_memory():
    first = edge_sel.train_round(pack(), digits(120), **ASKED)
    again = edge_sel.train_round(pack(), digits(240), weights=first, **ASKED)
    assert again.accuracy_before > first.accuracy_before and again.summary["from"] == "memory"
    by_weights = edge_sel.train_round(pack(), digits(240), weights=first.weights, **ASKED)
    assert by_weights.summary["accuracy"] == again.summary["accuracy"]


def test_after_a_round_that_did_not_ship_the_model_in_service_is_the_one_before():
    images = digits(120)
    wrong = images.relabelled(np.random.default_rng(0).permutation(images.labels), images.classes)
    lost = edge_sel.train_round(pack(), wrong, **{**ASKED, "plan": "last"})
    assert not lost.shipped
    again = edge_sel.train_round(pack(), images, weights=lost, **ASKED)
    assert again.summary["from"] is None


def test_a_finished_round_that_is_looked_at_again_tells_what_it_has_learnt(tmp_path):
    """Else the next one would compare with a model that knows its images by heart."""
    asked = {**ASKED, "folder": tmp_path / "run"}
    first = edge_sel.train_round(pack(), digits(120), **asked)
    again = edge_sel.train_round(pack(), digits(120), resume=True, **asked)
    assert again.shipped and again.learnt.digest == first.learnt.digest and len(again.learnt.images) == 100


def test_the_pack_that_is_named_is_the_one_that_is_trained(tmp_path):
    """Also where the round to go on from did not ship and had begun with another."""
    images = digits(240)
    first = edge_sel.train_round(pack(), images, **ASKED)
    wrong = images.relabelled(np.random.default_rng(0).permutation(images.labels), images.classes)
    lost = edge_sel.train_round(pack(), wrong, weights=first, **ASKED)
    assert not lost.shipped
    pack().save(tmp_path / "copy.edgepack")
    again = edge_sel.train_round(tmp_path / "copy.edgepack", images, weights=lost, **ASKED)
    assert again.pack.path == tmp_path / "copy.edgepack"
    assert again.accuracy_before == pytest.approx(first.accuracy_after)


def test_the_new_pack_holds_new_weights_and_classes(tmp_path):
    images = digits(240)
    taught = images.relabelled(np.where(images.labels == 3, 10, images.labels), (*images.classes, "drei"))
    made = edge_sel.train_round(pack(), taught, new_classes="extend", **ASKED)
    made.new_pack().save(tmp_path / "new.edgepack")
    opened = edge_sel.open_pack(tmp_path / "new.edgepack")
    assert opened.manifest.model.classes[-1] == "drei"
    later = edge_sel.train_round(opened, taught, **ASKED)
    assert later.accuracy_before == pytest.approx(made.accuracy_after)


def test_sums_of_two_devices_add_up_to_those_of_both():
    """Of which ridge regression is made."""
    images = digits(240)
    asked = {**ASKED, "plan": "ridge", "keep_duplicates": True}
    whole, parts = [
        [edge_sel.train_round(pack(), images.subset(rows), **asked) for rows in split]
        for split in ([np.arange(240)], [np.arange(0, 240, 2), np.arange(1, 240, 2)])
    ]
    sums = [made.sample_sums() for made in (*whole, *parts)]
    assert all(each is not None for each in sums)
    for name in ("counts", "gram", "right"):
        together, one, two = (getattr(each, name) for each in sums)
        np.testing.assert_allclose(one + two, together, rtol=1e-6, atol=1e-6)


def test_no_sums_of_features_that_are_no_longer_the_packs():
    made = edge_sel.train_round(pack(), digits(120), **{**ASKED, "plan": "last", "epochs": 1})
    assert made.sample_sums() is None


def test_signals_belong_to_the_folder_and_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def stop_soon(event):
        if event["event"] == "step":
            os.kill(os.getpid(), signal.SIGTERM)

    asked = {**ASKED, "plan": "last", "epochs": 2}
    made = edge_sel.train_round(pack(), digits(120), folder=tmp_path / "run", listener=stop_soon, **asked)
    assert made.summary["stopped"] == "signal" and signal.getsignal(signal.SIGTERM) is before
    assert edge_sel.train_round(pack(), digits(120), folder=tmp_path / "run", resume=True, **asked).done


def test_a_thread_may_call_it(tmp_path):
    found = []
    asked = {**ASKED, "folder": tmp_path / "run"}
    thread = threading.Thread(target=lambda: found.append(edge_sel.train_round(pack(), digits(120), **asked)))
    thread.start()
    thread.join()
    assert found[0].done


def test_a_run_in_memory_cannot_be_resumed():
    with pytest.raises(UsageError, match="in memory cannot be resumed"):
        edge_sel.train_round(pack(), digits(120), resume=True, **ASKED)


@pytest.mark.parametrize("spoil", [lambda w: w.pop(next(iter(w))), lambda w: w.update(more=np.zeros(3, np.float32))])
def test_weights_of_another_model_are_refused(spoil):
    weights = pack().weights()
    spoil(weights)
    with pytest.raises(BadInputError, match="another model's"):
        edge_sel.train_round(pack(), digits(120), weights=weights, **ASKED)
