"""A run that is given an expert: it begins with it if it is better here, and is the run without it if not."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from edge_sel.data.dataset import ImageSet
from edge_sel.edge.limits import Deadline, EnergyBudget
from edge_sel.errors import UsageError
from edge_sel.pack.weights import Expert
from tests.edge.sessions import KillAt, Killed, StopAt, Tape, digits, outcome, pack, session, some_or_all, tree
from tests.edge.train.stages import AUTO
from tests.edge.world import World, governed


@cache
def good():
    """The weights of a run on other images of the same place."""
    with TemporaryDirectory() as out:
        built = session(Path(out), images=digits(400).subset(np.arange(200, 400)), plan="closed_form")
        built.run()
        return Expert(dict(built.progress.weights), "good")


def bad():
    rng = np.random.default_rng(0)
    return Expert({n: v + rng.normal(size=v.shape).astype("f4") for n, v in pack().weights().items()}, "bad")


def broken():
    """Weights that are numbers, and logits that are not."""
    weights = dict(pack().weights())
    name = next(name for name in weights if name.endswith("running_var"))
    return Expert({**weights, name: -np.ones_like(weights[name])}, "broken")


LONG = {**AUTO, "plan": "closed_form,full", "epochs": 3, "batch_size": 16}


@cache
def uninterrupted():
    with TemporaryDirectory() as out:
        tape = Tape()
        session(Path(out), expert=good(), listener=tape, **LONG).run()
        return outcome(Path(out)), tape


def test_a_better_one_is_begun_with(tmp_path):
    tape = Tape()
    result = session(tmp_path, expert=good(), listener=tape, **{**AUTO, "plan": "bn"}).run()
    (taken,) = tape.of("expert")
    before = result["before"]["validation"]["accuracy"]
    assert taken["taken"] is True and taken["accuracy"] > taken["instead_of"] == before
    assert result["epochs"][0]["best_acc"] == taken["accuracy"], "the first stage begins with it"
    assert [event["event"] for event in tape.events][:3] == ["started", "evaluated", "expert"]
    assert result["accuracy"]["validation_before"] == before, "what the pack's own weights did is told all the same"


@pytest.mark.parametrize("make", [bad, broken])
def test_a_worse_one_is_ignored_and_the_run_is_the_one_without_it(make, tmp_path):
    tape = Tape()
    session(tmp_path / "with", expert=make(), listener=tape, **AUTO).run()
    session(tmp_path / "without", **AUTO).run()
    assert [event["taken"] for event in tape.of("expert")] == [False]
    assert outcome(tmp_path / "with") == outcome(tmp_path / "without")


def test_the_packs_own_weights_as_an_expert_are_ignored(tmp_path):
    tape = Tape()
    session(tmp_path, expert=Expert(pack().weights(), "same"), listener=tape, **AUTO).run()
    assert [event["taken"] for event in tape.of("expert")] == [False], "it must be better"


def test_where_training_does_not_help_the_expert_ships(tmp_path):
    result = session(tmp_path, expert=good(), **{**AUTO, "plan": "full", "learning_rate": 10.0, "gate": "off"}).run()
    assert result["shipped"] and result["accuracy"]["validation_after"] > result["accuracy"]["validation_before"]
    written = session_weights(tmp_path)
    assert all(np.array_equal(written[name], value) for name, value in good().weights.items())


def session_weights(out):
    from safetensors.numpy import load_file

    return load_file(out / "weights.safetensors")


@pytest.mark.slow
@pytest.mark.sampled(2)
@some_or_all
@pytest.mark.parametrize("interrupt", ["stopped", "killed"])
def test_resumed_at_every_few_boundaries_it_ends_the_same(interrupt, apart, tmp_path):
    expected, tape = uninterrupted()
    boundaries = len(tape.of("step"))
    assert boundaries > 10
    for boundary in range(1, boundaries, 4 * apart):
        out = tmp_path / str(boundary)
        if interrupt == "stopped":
            session(out, expert=good(), should_stop=StopAt(boundary), **LONG).run()
        else:
            with pytest.raises(Killed):
                session(out, expert=good(), listener=KillAt(boundary), checkpoint_every_s=7.0, **LONG).run()
        rest = Tape()
        session(out, expert=good(), listener=rest, resume=True, **LONG).run()
        assert outcome(out) == expected, f"{interrupt} at boundary {boundary} of {boundaries}"
        assert not (interrupt == "stopped" and rest.of("expert")), "it is looked at once"


@pytest.mark.sampled(5)
@pytest.mark.parametrize("finished", [False, True], ids=["stopped", "finished"])
@pytest.mark.parametrize("begun", [True, False], ids=["with", "without"])
@pytest.mark.parametrize("other", [None, "bad", "good"])
def test_a_run_is_resumed_with_the_expert_that_it_began_with(begun, other, finished, tmp_path):
    given = {None: None, "bad": bad(), "good": good()}
    session(tmp_path, expert=good() if begun else None, should_stop=StopAt(0 if finished else 4), **AUTO).run()
    before = tree(tmp_path)
    if other == ("good" if begun else None):
        assert session(tmp_path, expert=given[other], resume=True, **AUTO).run()["stopped"] == "done"
        return
    with pytest.raises(UsageError, match=r"began with: expert\b"):
        session(tmp_path, expert=given[other], resume=True, **AUTO).run()
    assert tree(tmp_path) == before


def test_classes_of_the_device_get_a_row_in_the_experts_head(tmp_path):
    plain, tape = digits(200), Tape()
    labels = np.where(np.arange(len(plain)) % 10 == 0, 10, plain.labels)
    images = ImageSet.from_arrays(plain.read(np.arange(len(plain))), labels, (*plain.classes, "odd"))
    result = session(tmp_path, images=images, expert=good(), listener=tape, **AUTO).run()
    assert [event["taken"] for event in tape.of("expert")] == [True] and result["shipped"]
    assert len(session_weights(tmp_path)[pack().manifest.model.head[-1]]) == 11


def test_what_looking_at_it_takes_is_the_runs_and_no_epochs(tmp_path):
    """The epochs' own joules are those of the run that did not look; the rest is one look at the validation set."""
    spent = []
    for name, expert in (("with", bad()), ("without", None)):
        result = governed(tmp_path / name, World(), expert=expert, **AUTO)
        spent.append((sum(epoch["energy_j"] for epoch in result["epochs"]), result["energy"]["total_j"]))
    (epochs, run), (epochs_without, run_without) = spent
    assert epochs == pytest.approx(epochs_without)
    assert run - run_without == pytest.approx(0.02 * 10 * result["images"]["validation"], rel=0.05)


@pytest.mark.parametrize("limit", [Deadline(3.0), EnergyBudget(30.0)], ids=["time", "joules"])
def test_a_limit_that_ends_the_run_at_once_keeps_the_expert(limit, tmp_path):
    result = governed(tmp_path, World(), limit, expert=good(), **AUTO)
    assert result["stopped"] in ("deadline", "budget") and not result["epochs"] and result["shipped"]
    assert result["accuracy"]["validation_after"] > result["accuracy"]["validation_before"]
