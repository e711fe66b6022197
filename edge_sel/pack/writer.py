"""Write a pack: weights once in safetensors, graphs that point into that file, a manifest with every hash."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from edge_sel.arrays import TensorPlace, tensor_bytes, tensor_places
from edge_sel.errors import SetupError, UsageError
from edge_sel.pack.container import write_zip
from edge_sel.pack.manifest import MANIFEST, WEIGHTS, Manifest, file_info
from edge_sel.pack.manifest_json import to_json


def write_pack(
    path: Path,
    manifest: Manifest,
    weights: Mapping[str, np.ndarray],
    graphs: Mapping[str, onnx.ModelProto],
    others: Mapping[str, bytes] | None = None,
) -> None:
    """Write everything beside the final place, then move it there in one step.

    A path ending in ``.edgepack`` becomes one file, any other a folder. An existing pack is replaced only when the
    new one is complete; anything else that exists there is refused.

    Raises:
        UsageError: ``path`` exists and is not a pack.
        SetupError: the disk is full or the place cannot be written.
    """
    refuse_foreign(path)
    content = {WEIGHTS: tensor_bytes(weights)}
    places = tensor_places(content[WEIGHTS])
    content |= {name: externalise(model, places).SerializeToString() for name, model in graphs.items()}
    content |= others or {}
    files = {name: file_info(data) for name, data in content.items()}
    content[MANIFEST] = to_json(replace(manifest, files=files)).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
            staged = Path(temporary) / path.name
            if path.suffix == ".edgepack":
                write_zip(staged, content)
                staged.replace(path)
            else:
                staged.mkdir()
                for name, data in content.items():
                    (staged / name).write_bytes(data)
                _replace_folder(path, staged, Path(temporary) / "old")
    except OSError as error:
        raise SetupError("the pack cannot be written", where=f"{path}: {error.strerror or error}") from error


def refuse_foreign(path: Path) -> None:
    """Raise UsageError when writing a pack to ``path`` would replace something that is not a pack."""
    if path.exists() and not ({MANIFEST, WEIGHTS} <= _content_names(path) or _is_empty_folder(path)):
        raise UsageError("--out exists and is not a pack", where=path, fix="choose another name")


def _is_empty_folder(path: Path) -> bool:
    return path.suffix != ".edgepack" and path.is_dir() and not any(path.iterdir())


def _content_names(path: Path) -> set[str]:
    """What is inside a folder or, for a name that ends in .edgepack, a zip file."""
    try:
        if path.suffix != ".edgepack":
            return {child.name for child in path.iterdir()}
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return set()


def _replace_folder(path: Path, new: Path, old: Path) -> None:
    """Put ``new`` in place of ``path``, which comes back from ``old`` when that fails."""
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise


def externalise(model: onnx.ModelProto, places: Mapping[str, TensorPlace]) -> onnx.ModelProto:
    """Replace the values of initializers that stand in the weights file by references into it."""
    slim = onnx.ModelProto()
    slim.CopyFrom(model)
    for tensor in slim.graph.initializer:
        if tensor.name not in places:
            continue
        place = places[tensor.name]
        for content in ("raw_data", "float_data", "external_data"):
            tensor.ClearField(content)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", str(place.offset)), ("length", str(place.length))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    return slim
