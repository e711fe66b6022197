"""Adam's moments in a checkpoint of onnxruntime-training, whose API neither reads nor writes them.

A checkpoint is a flatbuffer; the runtime's own package has the classes that read it. To write, bytes are replaced in
place: moments have the size of their weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edge_sel.arrays import Arrays

SLOTS = {b"momentum0": "m", b"momentum1": "v"}
_SCHEMA = "onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.Checkpoint"
_STEP_FIELD = 6
"""Place of ``step`` in the table ``OptimizerGroup`` (checkpoint.fbs)."""


def read_moments(checkpoint: bytes, weights: Sequence[str]) -> Arrays:
    """``m::WEIGHT`` and ``v::WEIGHT``; copies."""
    shapes = {key: shape for key, shape, _ in _moments(bytearray(checkpoint))}
    found = {key: raw.view("<f4").reshape(shapes[key]).copy() for key, _, raw in _moments(bytearray(checkpoint))}
    assert found.keys() == {f"{slot}::{name}" for slot in SLOTS.values() for name in weights}
    return found


def with_moments(checkpoint: bytes, state: Mapping[str, np.ndarray]) -> bytes:
    """A checkpoint of at least one step with the moments and the count of steps of another state."""
    changed = bytearray(checkpoint)
    for key, _, raw in _moments(changed):
        raw[...] = np.ascontiguousarray(state[key], "<f4").reshape(-1).view(np.uint8)
    group = _root(changed).OptimizerGroups(0)._tab
    place = group.Pos + group.Offset(_STEP_FIELD)
    changed[place : place + 8] = int(state["steps"]).to_bytes(8, "little")
    return bytes(changed)


def _root(checkpoint: bytearray) -> Any:
    return importlib.import_module(_SCHEMA).Checkpoint.GetRootAs(checkpoint, 0)


def _moments(checkpoint: bytearray) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """Name, shape and bytes of each moment; the bytes are a view."""
    group = _root(checkpoint).OptimizerGroups(0)
    for place in range(group.OptimizerStatesLength()):
        of_weight = group.OptimizerStates(place)
        for number in range(of_weight.MomentumsLength()):
            tensor = of_weight.Momentums(number)
            name = f"{SLOTS[tensor.Name()]}::{of_weight.ParamName().decode()}"
            yield name, tuple(tensor.DimsAsNumpy()), tensor.RawDataAsNumpy()
