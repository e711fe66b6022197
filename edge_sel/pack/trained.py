"""The weights that a run of a pack left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from edge_sel.errors import BadInputError, PackError
from edge_sel.files import read_regular
from edge_sel.pack.manifest import WEIGHTS
from edge_sel.pack.manifest_check import MOST_BYTES, MOST_CLASSES
from edge_sel.pack.reader import Pack
from edge_sel.pack.tensor_file import read_tensors, tensor_notes


def pack_of_run(pack: Pack, path: Path) -> Pack:
    """The pack with the weights and classes that a run of it left: in its folder, or the file in it.

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
    return pack.with_weights(weights, classes, str(path))


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
