"""``edge-sel export``: the table of gains, and on which images it was rehearsed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from edge_sel.api import rehearsal
from edge_sel.cli import export
from edge_sel.data.folder import load_folder
from edge_sel.data.images import MAX_PIXELS
from edge_sel.data.shifts import write_folder
from edge_sel.engines.ort_training_api import owners
from edge_sel.errors import SetupError
from edge_sel.pack.reader import open_pack
from edge_sel.server import cameras, warmup
from tests.server.conftest import CLASSES, noise_images


@pytest.fixture
def data(tmp_path):
    write_folder(noise_images(24), tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def run(warm, data, tmp_path):
    def call(*arguments, checkpoint=warm):
        out = tmp_path / "pack"
        given = [checkpoint, "--data", data, "--out", out, "--plans", "bn,head", *arguments]
        result = CliRunner().invoke(export.command, [str(part) for part in given], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return open_pack(out).manifest.gains, result.output

    return call


def test_without_rehearsals_there_is_no_table(run):
    gains, text = run("--rehearsals", 0)
    assert gains == () and "rehearsing" not in text


def test_a_rehearsal_in_each_place_and_one_as_it_is(run):
    gains, text = run("--rehearsals", 1, "--plans", "bn,head,affine")
    assert "rehearsing on 15 images, judged by 9, which training may have seen" in text
    assert gains and {row.kind for row in gains} == {"body"}, "what comes before is asked of nobody"
    assert "rehearsal 2:" in text and "rehearsal 3" not in text


def with_held_out(warm, path, held_out):
    model, info = warmup.load(warm)
    warmup.save(path, model, replace(info, held_out=tuple(held_out)))
    return path


@pytest.mark.slow
def test_it_is_judged_by_what_training_never_saw(run, warm, data, tmp_path, monkeypatch):
    """If that is not too little."""
    ids = load_folder(data, (16, 16), classes=CLASSES).ids
    half = with_held_out(warm, tmp_path / "half.safetensors", ids[::2])
    assert "judged by 9, which training may have seen" in run("--rehearsals", 1, checkpoint=half)[1]
    monkeypatch.setattr(rehearsal, "LEAST_UNSEEN", 12)
    text = run("--rehearsals", 1, checkpoint=half)[1]
    assert "rehearsing on 12 images, judged by 12, which training never saw" in text


@pytest.mark.parametrize(("seen", "count"), [(12, 12), (0, 15)], ids=["half held out", "nothing else there"])
def test_no_image_is_both_trained_on_and_judged_by(seen, count, run, warm, data, tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "LEAST_UNSEEN", 12)
    fields = []
    monkeypatch.setattr(cameras, "simulate_fields", lambda *given: fields.append(given) or ())
    ids = load_folder(data, (16, 16), classes=CLASSES).ids
    run("--rehearsals", 1, checkpoint=with_held_out(warm, tmp_path / "held.safetensors", ids[seen:]))
    ((training, validation, *_),) = fields
    assert len(training) == count and not {*training.ids} & {*validation.ids}
    if seen:
        assert {*training.ids} == {*ids[:seen]} and {*validation.ids} == {*ids[seen:]}


def test_a_rehearsal_has_no_more_images_than_it_needs(run, warm, data, tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "LEAST_UNSEEN", 12)
    monkeypatch.setattr(rehearsal, "TRAINED_ON", 8)
    monkeypatch.setattr(rehearsal, "JUDGED_BY", 6)
    half = with_held_out(warm, tmp_path / "half.safetensors", load_folder(data, (16, 16), classes=CLASSES).ids[::2])
    assert "rehearsing on 8 images, judged by 6" in run("--rehearsals", 1, checkpoint=half)[1]


@pytest.mark.parametrize("there", [0, 11, 12])
def test_images_that_are_no_more_in_the_folder_are_not_counted(there, warm, data, tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "LEAST_UNSEEN", 12)
    ids = load_folder(data, (16, 16), classes=CLASSES).ids
    gone = [f"{CLASSES[0]}/gone{n}.png" for n in range(12)]
    info = replace(warmup.load(warm)[1], held_out=(*np.array(ids)[:there].tolist(), *gone))
    found = rehearsal.load_unseen(data, info, MAX_PIXELS)
    assert (None if found is None else list(found.ids)) == (list(ids[:12]) if there == 12 else None)


@pytest.mark.skipif("onnxruntime-training" in owners(), reason="this is the environment of that runtime")
def test_artifacts_without_their_runtime_are_refused_before_anything_is_done(warm, data, tmp_path):
    arguments = [str(warm), "--data", str(data), "--out", str(tmp_path / "pack"), "--with", "ort-training"]
    with pytest.raises(SetupError, match="environment of its own") as caught:
        CliRunner().invoke(export.command, arguments, catch_exceptions=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "pack").exists()
