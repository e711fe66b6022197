"""Nothing that a session changes can be forgotten by a checkpoint: whatever a field holds comes back from it."""

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest

from edge_sel.edge.progress import EpochTotals, Progress, start_progress
from edge_sel.errors import UsageError
from edge_sel.runs.checkpoint import flatten, load_checkpoint, save_checkpoint, unflatten
from edge_sel.sel.sundew import SundewState
from tests.edge.sessions import StopAt, events, history, session

GATE = SundewState(0.5, 0.1, 0.0)


def fresh() -> Progress:
    return start_progress({"w": np.ones((2, 3), np.float32)}, images=4, classes=3, gate=GATE)


def leaves(state, path=()):
    """The path of every field that is not taken apart any further."""
    for name in state._fields if hasattr(state, "_fields") else [field.name for field in fields(state)]:
        value = getattr(state, name)
        nested = is_dataclass(value) or hasattr(value, "_fields")
        yield from leaves(value, (*path, name)) if nested else [(*path, name)]


def other(value):
    """A value of the same type that is not equal to this one."""
    if isinstance(value, np.ndarray):
        return np.arange(5) % 2 == 0 if value.dtype == bool else np.arange(5).astype(value.dtype) + 7
    changed = {str: "changed", dict: {"changed": 1.5}, list: [{"changed": 2}], type(None): "measured"}
    return changed[type(value)] if type(value) in changed else type(value)(value if value == value else 0) + 3


def changed(state, path, value):
    """A copy of the state with another value at the path."""
    name, *rest = path
    inner = changed(getattr(state, name), rest, value) if rest else value
    return state._replace(**{name: inner}) if hasattr(state, "_fields") else replace(state, **{name: inner})


def at(state, path):
    for name in path:
        state = getattr(state, name)
    return state


@pytest.mark.parametrize("path", list(leaves(fresh())), ids="/".join)
def test_every_field_comes_back_from_a_checkpoint(path, tmp_path):
    arrays = path[-1] in ("weights", "trainer")
    value = {"a": np.arange(3.0)} if arrays else other(at(fresh(), path))
    save_checkpoint(tmp_path, *flatten(changed(fresh(), path, value)), {})
    tensors, scalars, _, _ = load_checkpoint(tmp_path)
    found = at(unflatten(Progress, tensors, scalars), path)
    if arrays:
        assert found.keys() == {"a"} and np.array_equal(found["a"], value["a"])
    elif isinstance(found, np.ndarray):
        assert found.tobytes() == np.asarray(value).tobytes() and found.dtype == np.asarray(value).dtype
    else:
        assert found == value and type(found) is type(value)


def test_there_are_fields_to_test():
    assert len(list(leaves(fresh()))) > 40


def test_a_new_stage_begins_with_nothing_of_the_last_one(tmp_path):
    """Its state is a new object: what a stopped stage left is gone, and what is remembered of the images is not."""
    session(tmp_path, plan="bn,affine", should_stop=StopAt(10)).run()
    tensors, scalars, _, _ = load_checkpoint(tmp_path / "checkpoints")
    saved = unflatten(Progress, tensors, scalars)
    assert saved.stage.plan == "affine" and saved.stages_done == 1 and saved.memory.hardness.seen.any()
    assert saved.stage.epoch == saved.stage.cursor == 0 and saved.stage.totals == EpochTotals()
    assert saved.history[0]["trained"] > 0, "the last one's totals were not these"


def test_a_checkpoint_of_another_version_is_one_line(tmp_path):
    session(tmp_path, should_stop=StopAt(7)).run()
    tensors, scalars, identity, path = load_checkpoint(tmp_path / "checkpoints")
    path.unlink()
    del scalars["stage/cursor"]
    save_checkpoint(tmp_path / "checkpoints", tensors, scalars, identity)
    before = len(events(tmp_path)), history(tmp_path)
    with pytest.raises(UsageError, match="another version of edge-sel") as caught:
        session(tmp_path, resume=True)
    assert "\n" not in str(caught.value) and (len(events(tmp_path)), history(tmp_path)) == before
