"""Other weights for a pack: an expert's, trained by the server for one place, or those that a run of the pack left.

Each is one safetensors file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edge_sel.arrays import Arrays, read_tensors, tensor_bytes, tensor_notes
from edge_sel.errors import BadInputError, PackError
from edge_sel.files import UnfitFileError, read_regular, write_durably
from edge_sel.pack.manifest import WEIGHTS
from edge_sel.pack.manifest_json import MOST_BYTES, MOST_CLASSES
from edge_sel.pack.reader import Pack
from edge_sel.pack.signatures import MOST_SIGNATURES_BYTES, SIGNATURES, Signers, TrustedKeys, find_signers
from edge_sel.schema import SchemaError, read_as

FORMAT = "edge-sel-expert-1"


class Expert(NamedTuple):
    """Weights to begin with, if they are better on the device's own images."""

    weights: Arrays
    """Every weight and running statistic of the pack's model, float32."""
    digest: str
    """Identity of the file, for resume checks."""
    signers: Signers | None = None
    """Who signed it, if anybody did."""


def write_expert(path: Path, pack: Pack, weights: Mapping[str, np.ndarray]) -> None:
    """Matrices and kernels as float16, of which a link carries half as much; statistics as they are.

    Raises:
        BadInputError: a weight is not a number, or too large for float16: training diverged.
        SetupError: the disk is full or the place cannot be written.
    """
    with np.errstate(over="ignore"):
        small = {name: value if value.ndim < 2 else value.astype(np.float16) for name, value in weights.items()}
    if not all(np.isfinite(value).all() for value in small.values()):
        raise BadInputError("training the expert diverged", where=path, fix="another --seed, or more images")
    write_durably(path, tensor_bytes(small, {"format": FORMAT, "pack": pack.digest}))


def signatures_of(path: Path) -> Path:
    """Where the signatures of an expert lie: beside it."""
    return path.with_name(f"{path.name}.{SIGNATURES}")


def read_beside(path: Path) -> bytes | None:
    """The signatures of an expert; None without any.

    Raises:
        PackError: it is no regular file, or too large.
        OSError: it cannot be read.
    """
    try:
        return read_regular(signatures_of(path), MOST_SIGNATURES_BYTES)
    except FileNotFoundError:
        return None
    except UnfitFileError as error:
        raise PackError(str(error), where=signatures_of(path), fix="copy the expert again") from error


def expert_bytes(path: Path) -> bytes | None:
    """The file, if it says that it is an expert."""
    try:
        content = read_regular(path, MOST_BYTES)
        return content if tensor_notes(content).get("format") == FORMAT else None
    except (OSError, ValueError):
        return None


def read_expert(path: Path, pack: Pack, trusted: TrustedKeys | None = None) -> Expert:
    """Read and check; with ``trusted`` one of these keys must have signed it.

    Raises:
        BadInputError: not an expert, not one for this pack, or not signed as required.
    """
    try:
        content, signatures = read_regular(path, MOST_BYTES), read_beside(path)
    except (OSError, ValueError, PackError) as error:
        raise _unreadable(path, error) from error
    signers = find_signers("expert", content, signatures, trusted, path)
    try:
        notes = tensor_notes(content)
        ours = notes.get("format") == FORMAT
        weights = {name: value.astype(np.float32) for name, value in read_tensors(content).items()} if ours else {}
        digest = hashlib.sha256(content).hexdigest()[:16]
    except ValueError as error:
        raise _unreadable(path, error) from error
    if not ours:
        raise BadInputError("not an expert", where=path, fix="make one with `edge-sel expert`")
    expected = {name: value.shape for name, value in pack.weights().items()}
    if notes.get("pack") != pack.digest or {name: value.shape for name, value in weights.items()} != expected:
        raise BadInputError("the expert is for another pack", where=path, fix="make one for this pack")
    if not all(np.isfinite(value).all() for value in weights.values()):
        raise BadInputError("the expert has weights that are not numbers", where=path, fix="make it again")
    return Expert(weights, digest, signers)


def _unreadable(path: Path, error: Exception) -> BadInputError:
    what = error.what if isinstance(error, PackError) else error
    return BadInputError("the expert cannot be read", where=f"{path}: {what}", fix="copy it again")


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
    except (OSError, ValueError) as error:
        raise BadInputError("the weights to begin with cannot be read", where=f"{file}: {error}") from error
    return pack.with_weights(weights, classes, str(path))


def _class_names(notes: Mapping[str, str], pack: Pack) -> tuple[str, ...]:
    """Those in the header of the file; without any the pack's."""
    known = pack.manifest.model.classes
    try:
        names = read_as(list[str], notes["classes"]) if "classes" in notes else list(known)
    except SchemaError as error:
        raise ValueError("its classes are not names") from error
    if not all(name.isprintable() for name in names):
        raise ValueError("its classes are not names")
    if not len(known) <= len(set(names)) == len(names) <= MOST_CLASSES or tuple(names[: len(known)]) != known:
        raise ValueError("its classes are not the pack's, nor these and more")
    return tuple(names)
