"""A pack with the weights of a run, for a run that begins with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.errors import BadInputError, PackError
from edge_sel.pack.container import read_regular
from edge_sel.pack.manifest import WEIGHTS, FileInfo
from edge_sel.pack.manifest_check import MOST_BYTES, MOST_CLASSES
from edge_sel.pack.reader import Pack
from edge_sel.pack.sums import SUMS, write_sums
from edge_sel.pack.tensor_file import read_tensors, tensor_notes


class Trained(NamedTuple):
    """The model that a run left."""

    weights: Arrays
    """Every one, and every running statistic."""
    classes: tuple[str, ...]
    """Those of the pack, then others."""
    path: Path
    """Of the run, or of the file."""


def read_trained(path: Path, pack: Pack) -> Trained:
    """The weights of a run of this pack: its folder, or the file in it.

    Raises:
        BadInputError: there are none, or they are another model's, or not finite.
    """
    file = path / WEIGHTS if path.is_dir() else path
    try:
        content = read_regular(file, MOST_BYTES)
        weights = read_tensors(content)
        classes = _class_names(tensor_notes(content), pack)
    except FileNotFoundError as error:
        fix = "name the folder of a run that has ended, or its weights.safetensors"
        raise BadInputError("no weights to begin with", where=file, fix=fix) from error
    except (OSError, ValueError, PackError) as error:
        what = error.what if isinstance(error, PackError) else error
        raise BadInputError("the weights to begin with cannot be read", where=f"{file}: {what}") from error
    if wrong := _unlike(weights, pack, len(classes)):
        raise BadInputError(f"the weights to begin with are another model's: {wrong}", where=file,
                            fix="name a run of this pack")  # fmt: skip
    return Trained(weights, classes, path)


def with_weights(pack: Pack, trained: Trained) -> Pack:
    """The pack as if it had been exported with these weights and classes, with a digest of its own.

    The server's sums of features stay where the body is the pack's, its anchors in any case. Graphs and signatures are
    the pack's: whoever signed it did not sign the weights.
    """
    from safetensors.numpy import save

    manifest, known = pack.manifest, len(pack.manifest.model.classes)
    body = {name for name in trained.weights if name not in manifest.model.head}
    old = pack.weights()
    changed = {WEIGHTS: save({name: np.ascontiguousarray(value) for name, value in trained.weights.items()})}
    content = dict(pack.files)
    if pack.sums is None or any(not np.array_equal(trained.weights[name], old[name]) for name in body):
        content.pop(SUMS, None)
    elif len(trained.classes) > known:
        changed[SUMS] = write_sums(pack.sums.with_classes(len(trained.classes)))
    files = {name: info for name, info in manifest.files.items() if name in content}
    files |= {name: FileInfo(len(of), hashlib.sha256(of).hexdigest()) for name, of in changed.items()}
    unseen = (None,) * (len(trained.classes) - known)
    calibration = replace(manifest.calibration, embarrassment=(*manifest.calibration.embarrassment, *unseen))
    grown = sum(value.size for value in trained.weights.values()) - sum(value.size for value in old.values())
    model = replace(manifest.model, classes=trained.classes, parameters=manifest.model.parameters + grown)
    manifest = replace(manifest, files=files, model=model, calibration=calibration)
    return Pack(pack.path, manifest, {**content, **changed}, pack.signers, trained.path)


def _class_names(notes: Mapping[str, str], pack: Pack) -> tuple[str, ...]:
    """Those in the header of the file; without any the pack's."""
    known = pack.manifest.model.classes
    try:
        told = json.loads(notes["classes"]) if "classes" in notes else list(known)
    except RecursionError as error:
        raise ValueError("its classes are not names") from error
    if not isinstance(told, list) or not all(isinstance(name, str) and name.isprintable() for name in told):
        raise ValueError("its classes are not names")
    if not len(known) <= len(set(told)) == len(told) <= MOST_CLASSES or tuple(told[: len(known)]) != known:
        raise ValueError("its classes are not the pack's, nor these and more")
    return tuple(told)


def _unlike(weights: Arrays, pack: Pack, classes: int) -> str:
    """In which way these are no weights of the pack's model; empty if they are."""
    model, expected = pack.manifest.model, pack.weights()
    if missing := sorted(expected.keys() - weights.keys()):
        return f"{missing[0]} is missing"
    if unknown := sorted(weights.keys() - expected.keys()):
        return f"{unknown[0][:100]} is not in the pack"
    for name, value in weights.items():
        shape: Sequence[int] = expected[name].shape
        if name in model.head:
            shape = (shape[0] + classes - len(model.classes), *shape[1:])
        if value.shape != tuple(shape) or value.dtype != expected[name].dtype:
            return f"{name[:100]} is {value.dtype} {list(value.shape)}"
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return f"{name[:100]} holds numbers that are not finite"
    return ""
