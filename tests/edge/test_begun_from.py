"""Runs that begin with the model of an earlier one."""

from __future__ import annotations

import json
from shutil import copytree

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_sel.api.round import finetune
from edge_sel.data.builtin import load_digits
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.outputs.model_files import read_learnt, write_weights
from edge_sel.errors import UsageError
from edge_sel.pack.weights import pack_of_run
from tests.edge.sessions import digits, pack, session

ASKED = {"plan": "closed_form", "meter": "psutil", "threads": 1, "engine": "ort", "device": "cpu"}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run on 120 images, whose model ships."""
    out = tmp_path_factory.mktemp("first") / "run"
    assert finetune(pack(), digits(120), out=out, **ASKED).shipped
    return out


def test_it_begins_where_the_other_ended_and_says_so(first, tmp_path):
    earlier = load_file(first / "weights.safetensors")
    run = finetune(pack(), digits(240), out=tmp_path / "run", weights=first, **ASKED)
    assert run.summary["from"] == str(first)
    built = session(tmp_path / "built", base=pack_of_run(pack(), first), images=digits(240))
    assert all((built.progress.weights[name] == value).all() for name, value in earlier.items())
    of_pack = json.loads((first / "run.json").read_text())["accuracy"]["before"]
    assert run.accuracy_before > of_pack + 0.3, "that of the model in service"
    alone = finetune(pack(), digits(240), out=tmp_path / "alone", **ASKED)
    assert run.summary["accuracy"]["pack"] == alone.accuracy_before and alone.summary["accuracy"]["pack"] is None
    images = run.summary["images"]
    assert run.summary["evidence"]["images"] == images["validation"] + images["train"], "it says what it has learnt"


def test_the_same_images_again_are_no_evidence_for_either(first, tmp_path):
    """Each has learnt them, and is judged as if it had not."""
    run = finetune(pack(), digits(120), out=tmp_path / "run", weights=first, **ASKED)
    assert not run.shipped
    known, now = (read_learnt(at, 10) for at in (first, tmp_path / "run"))
    assert known.digest == now.digest, "the model in service is the same"


def test_a_grown_folder_is_judged_by_all_of_its_images(first, tmp_path):
    run = finetune(pack(), digits(400), out=tmp_path / "run", weights=first, **ASKED)
    assert run.shipped
    before, now = (read_learnt(at, 10) for at in (first, tmp_path / "run"))
    assert set(before.images) < set(now.images) and len(now.images) == run.summary["images"]["train"]
    assert np.isfinite(now.left_out).all()


def damaged(path):
    path.write_bytes(path.read_bytes()[:-9] + 9 * b"x")


def of_other_weights(path):
    file = path.with_name("weights.safetensors")
    tensors = load_file(file)
    tensors["head.bias"] += 1
    write_weights(file, tensors, pack().manifest.model.classes)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), damaged, of_other_weights])
def test_where_nobody_knows_what_was_learnt_only_validation_images_judge(spoil, first, tmp_path):
    copytree(first, tmp_path / "first")
    spoil(tmp_path / "first" / "learnt.safetensors")
    run = finetune(pack(), digits(240), out=tmp_path / "run", weights=tmp_path / "first", **ASKED)
    assert run.summary["evidence"]["images"] == run.summary["images"]["validation"]
    assert not (tmp_path / "run" / "learnt.safetensors").exists()


def test_what_is_not_better_than_the_model_in_service_does_not_replace_it(first, tmp_path):
    rng, images = np.random.default_rng(0), digits(240)
    wrong = ImageSet.from_arrays(images.read(np.arange(240)), rng.permutation(images.labels), images.classes)
    run = finetune(pack(), wrong, out=tmp_path / "run", weights=first / "weights.safetensors", **ASKED)
    assert not run.shipped
    kept, earlier = (load_file(at / "weights.safetensors") for at in (tmp_path / "run", first))
    assert all((kept[name] == value).all() for name, value in earlier.items())


def test_classes_that_the_other_learnt_are_known(first, tmp_path):
    images = digits(240)
    labels = np.where(images.labels == 3, 10, images.labels)
    taught = ImageSet.from_arrays(images.read(np.arange(240)), labels, (*images.classes, "drei"))
    finetune(pack(), taught, out=tmp_path / "one", new_classes="extend", **ASKED)
    again = finetune(pack(), taught, out=tmp_path / "two", weights=tmp_path / "one", **ASKED)
    assert list(again.summary["classes"]) == [*images.classes, "drei"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("forget", [0.67, 1.0])
def test_a_class_that_the_device_added_is_not_forgotten_for_want_of_its_images(forget, tmp_path):
    """The server has none of them, so nothing would show that it was."""
    images = load_digits("test").subset(np.arange(240))  # as the server sees them: what comes next is another camera's
    taught = images.relabelled(np.where(images.labels == 3, 10, images.labels), (*images.classes, "drei"))
    assert finetune(pack(), taught, out=tmp_path / "one", new_classes="extend", forget=1.0, **ASKED).shipped
    dark = digits(300)
    others = dark.subset(np.flatnonzero(dark.labels != 3)).relabelled(dark.labels[dark.labels != 3], taught.classes)
    run = finetune(pack(), others, out=tmp_path / "two", weights=tmp_path / "one", forget=forget, **ASKED)
    assert run.shipped == (forget == 1)
    assert (
        "1 of the classes that this device added have no image here, nor on the server"
        in run.summary["evidence"]["why"]
    ) == (forget < 1)


def test_a_run_is_resumed_with_the_same_beginning_only(first, tmp_path):
    finetune(pack(), digits(120), out=tmp_path / "run", weights=first, **ASKED)
    assert finetune(pack(), digits(120), out=tmp_path / "run", weights=first, resume=True, **ASKED).done
    with pytest.raises(UsageError, match=r"cannot resume.* from"):
        finetune(pack(), digits(120), out=tmp_path / "run", resume=True, **ASKED)


def test_one_beginning_is_enough(first, tmp_path):
    with pytest.raises(UsageError, match="--from and --expert"):
        finetune(pack(), digits(120), out=tmp_path / "run", weights=first, expert="e", **ASKED)
    assert not (tmp_path / "run").exists()


def test_where_a_signature_is_required_weights_that_have_none_are_refused(first, tmp_path, monkeypatch):
    monkeypatch.setattr("edge_sel.api.round.trusted_keys", lambda files: {"a key": None})
    with pytest.raises(UsageError, match="not signed: --from with --require-signature"):
        finetune(pack(), digits(120), out=tmp_path / "run", weights=first, **ASKED)
    assert not (tmp_path / "run").exists()
