"""A folder after a crash, or after somebody's accident: what can be restored is, the rest is one line."""

import os

import pytest

from edge_sel.errors import EdgeSelError, SetupError
from edge_sel.runs.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from tests.edge.sessions import Tape, damage, outcome, session, tree

GIVEN = {"plan": "bn,affine", "checkpoint_every_s": 7.0}


def finished(out, **given):
    session(out, **{**GIVEN, **given}).run()
    return outcome(out), tree(out)


def harm(path, how):
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how == "a pipe":
        os.mkfifo(path)
    elif how == "a sparse file":
        with path.open("wb") as file:
            file.truncate(3 << 30)


def resumed(out, tape=None, **given):
    return session(out, resume=True, listener=tape or Tape(), **{**GIVEN, **given}).run()


@pytest.mark.sampled(6)
@pytest.mark.parametrize("how", ["gone", "damaged"])
@pytest.mark.parametrize("name", ["model.onnx", "history.csv", "weights.safetensors"])
def test_an_output_that_is_gone_or_damaged_is_restored(name, how, tmp_path):
    expected, before = finished(tmp_path)
    (tmp_path / name).unlink() if how == "gone" else damage(tmp_path / name, 100)
    tape = Tape()
    resumed(tmp_path, tape)
    assert outcome(tmp_path) == expected
    notice = "outputs_damaged" if name == "weights.safetensors" else "restored"
    assert [event["files"] for event in tape.of(notice)] == [[name]]
    assert (tmp_path / "model.onnx").read_bytes() == before["model.onnx"]
    tape = Tape()
    resumed(tmp_path, tape)
    assert tape.events == []


def test_weights_of_which_nothing_is_left_are_one_line(tmp_path):
    finished(tmp_path, checkpoint_every_s=1e9)
    (tmp_path / "weights.safetensors").unlink()
    before = tree(tmp_path)
    with pytest.raises(SetupError, match=r"weights\.safetensors .* no checkpoint .*--out"):
        resumed(tmp_path, checkpoint_every_s=1e9)
    assert tree(tmp_path) == before


def test_a_torn_result_beside_good_checkpoints_is_no_obstacle(tmp_path):
    expected, before = finished(tmp_path)
    (tmp_path / "run.json").write_bytes(before["run.json"][:300])
    tape = Tape()
    resumed(tmp_path, tape)
    assert tape.of("outputs_damaged") and outcome(tmp_path) == expected


@pytest.mark.sampled(8)
@pytest.mark.parametrize("how", ["a folder", "a pipe", "a sparse file"])
@pytest.mark.parametrize("name", ["checkpoint", "run.json", "events.jsonl", "journal.jsonl", "features.cache"])
def test_strange_things_in_the_place_of_files_neither_hang_nor_give_a_traceback(name, how, tmp_path):
    given = {"plan": "bn,head", "feature_cache_mb": 0}
    expected, _ = finished(tmp_path, **given)
    newest = list_checkpoints(tmp_path / "checkpoints")[-1][1]
    (tmp_path / "run.json").unlink()
    path = newest if name == "checkpoint" else tmp_path / name
    path.touch()
    harm(path, how)
    try:
        resumed(tmp_path, **given)
    except EdgeSelError as error:
        assert name in ("events.jsonl", "run.json") and how in ("a folder", "a pipe")
        assert "\n" not in str(error) and name in str(error)
    else:
        found = outcome(tmp_path)
        if name == "features.cache":  # where none can be kept, more is executed
            found, expected = ({key: of[key] for key in ("weights", "model", "accuracy")} for of in (found, expected))
        assert found == expected
    if how == "a sparse file" and path.exists():
        assert path.stat().st_size < 1 << 30 or name == "checkpoint"


def test_a_checkpoint_of_a_foreign_schema_is_passed_over_for_an_older_one(tmp_path):
    expected, _ = finished(tmp_path)
    tensors, scalars, identity, _ = load_checkpoint(tmp_path / "checkpoints")
    del scalars["stage/cursor"]
    save_checkpoint(tmp_path / "checkpoints", tensors, scalars, identity)
    (tmp_path / "run.json").unlink()
    tape = Tape()
    resumed(tmp_path, tape)
    assert tape.of("resumed") and outcome(tmp_path) == expected


def test_what_cut_off_writes_left_goes(tmp_path):
    session(tmp_path, **GIVEN, should_stop=lambda: "signal").run()
    orphans = [tmp_path / ".run.json.tmp", tmp_path / ".model.onnx.tmp"]
    orphans.append(tmp_path / "checkpoints" / ".checkpoint-000009-0123456789abcdef.safetensors.tmp")
    (tmp_path / ".mine.tmp").write_text("mine")
    for path in orphans:
        path.write_text("half")
    resumed(tmp_path)
    assert not [path for path in orphans if path.exists()] and (tmp_path / ".mine.tmp").exists()
