"""What is slow to make is made once for all processes of a run of the tests."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import edge_sel

Made = TypeVar("Made")
MAKES_EXPORTS = ("models", "graphs", "server/source", "arrays.py")
MAKES_PLANS = (*MAKES_EXPORTS, "pack", "server", "quantize.py")
"""Whose code decides what a network's export and its compiled plans are."""
KEPT_FILES = 300


def once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[], Made], *, kept: Path | None = None
) -> Made:
    """What ``make`` gives, or gave to another process of this run; ``name`` is that of a file.

    With a folder ``kept`` also what it gave to an earlier run: then the name must tell all that the result depends on.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # that of the processes together
    path = (kept or root) / f"{name}.pickle"
    if path.exists():
        path.touch()
    else:
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(pickle.dumps(make()))
        part.replace(path)
        if kept is not None:
            _forget_oldest(kept)
    return pickle.loads(path.read_bytes())


def _forget_oldest(kept: Path) -> None:
    """All but the newest; another process may do the same just now."""
    found = []
    for path in kept.glob("*.pickle"):
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path))
    for _, path in sorted(found)[:-KEPT_FILES]:
        path.unlink(missing_ok=True)


def kept_folder(config: pytest.Config) -> Path | None:
    """Where exports stay from one run of the tests to the next: in pytest's cache (``--cache-clear`` empties it)."""
    cache = getattr(config, "cache", None)
    return None if cache is None else cache.mkdir("exports")


def code_digest(parts: tuple[str, ...]) -> str:
    """Of the code of these rooms and modules, and of the versions of the exporter."""
    package, digest = Path(edge_sel.__file__).parent, hashlib.sha256()
    for path in (package / part for part in parts):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    for name in ("torch", "onnx", "onnxscript", "numpy"):
        digest.update(version(name).encode())
    return digest.hexdigest()


def exported_once(
    export: Callable[..., Made], tmp_path_factory: pytest.TempPathFactory, kept: Path | None
) -> Callable[..., Made]:
    """``export_forward`` that exports the same network once: torch takes seconds for each."""
    made: dict[str, Made] = {}
    code = code_digest(MAKES_EXPORTS)

    def export_forward(model: Any, size: tuple[int, int]) -> Made:
        key = f"{code}-{network_digest(model, size)}"
        if key not in made:
            name = "export-" + hashlib.sha256(key.encode()).hexdigest()
            made[key] = once(tmp_path_factory, name, lambda: export(model, size), kept=kept)
        return made[key]

    return export_forward


def network_digest(model: Any, size: tuple[int, int]) -> str:
    """Of a network's code, of the files that it stands in, of its weights and of whatever else its modules hold."""
    parts = [(type(part).forward.__code__, vars(part)) for part in model.modules()]
    files = {Path(code.co_filename).read_bytes() for code, _ in parts}
    plain = [
        (code.co_code, code.co_names, code.co_firstlineno,
         [(name, value) for name, value in held.items() if isinstance(value, bool | int | float | str | tuple)])
        for code, held in parts
    ]  # fmt: skip
    digest = hashlib.sha256(repr((plain, str(model), size)).encode())
    for content in sorted(files):
        digest.update(content)
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().numpy().tobytes())
    return digest.hexdigest()


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
