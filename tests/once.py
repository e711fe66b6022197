"""What is slow to make is made once for all processes of a run of the tests."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import pytest

Made = TypeVar("Made")


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[], Made]) -> Made:
    """What ``make`` gives, or gave to another process of this run; ``name`` is that of a file."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # that of the processes together
    path = root / f"{name}.pickle"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(pickle.dumps(make()))
        part.replace(path)
    return pickle.loads(path.read_bytes())


def loaded_once(load: Callable[..., Any]) -> Callable[..., Any]:
    """``OrtEngine.session`` that gives a session of the same graph, constants and options again, of the hundred used last."""
    loaded: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def session(engine: Any, graph: bytes, constants: Mapping[str, np.ndarray], *, int8: bool = False) -> Any:
        values = tuple((name, value.shape, value.tobytes()) for name, value in constants.items())
        key = (engine.threads, engine.spinning, engine.device, int8, hash(graph), hash(values))
        if key not in loaded:
            kept = {name: np.array(value) for name, value in constants.items()}  # read in place
            loaded[key] = load(engine, graph, kept, int8=int8), kept
            while len(loaded) > 100:
                loaded.popitem(last=False)
        loaded.move_to_end(key)
        return loaded[key][0]

    return session
