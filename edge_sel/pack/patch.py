"""What makes one pack of another: a device that has the old one gets the new one for the bytes that differ."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edge_sel.arrays import Arrays, read_tensors, tensor_bytes
from edge_sel.errors import PackError
from edge_sel.files import write_durably
from edge_sel.pack.container import write_zip
from edge_sel.pack.manifest import WEIGHTS
from edge_sel.pack.reader import Pack, open_pack
from edge_sel.pack.signatures import TrustedKeys

_NAMES, _FILE, _WEIGHT = "names", "file ", "weight "
"""Parts of a patch: the names of all files of the new pack as JSON; a file; a weight of ``WEIGHTS``."""


def make_patch(old: Pack, new: Pack) -> Arrays:
    """The files of ``new`` that ``old`` has not, as uint8, and of the weights those that differ."""
    before, patch = old.files, {_NAMES: _bytes(json.dumps([*new.files]).encode())}
    for name, content in new.files.items():
        if before.get(name) == content:
            continue
        if name == WEIGHTS:
            known, wanted = read_tensors(before[WEIGHTS]), read_tensors(content)
            changed = {key: value for key, value in wanted.items() if not _same(known.get(key), value)}
            if tensor_bytes(known | changed) == content:
                patch |= {_WEIGHT + key: value for key, value in changed.items()}
                continue
        patch[_FILE + name] = _bytes(content)
    return patch


def apply_patch(
    old: Pack, patch: Mapping[str, np.ndarray], digest: str, path: Path, trusted: TrustedKeys | None = None
) -> Pack:
    """Write the new pack, one file, once it is verified as any pack is.

    Args:
        old: what the patch was made for.
        patch: of ``make_patch``.
        digest: of the pack that it must make.
        path: of the file; what was there is replaced in one step.
        trusted: as of ``open_pack``.

    Raises:
        PackError: it makes no pack, another one, or one that is not signed as required.
        SetupError: it cannot be written.
    """
    staged = path.with_name(f".{path.name}.new")
    try:
        whole = io.BytesIO()
        write_zip(whole, _patched(old, patch))
        write_durably(staged, whole.getvalue())
        made = open_pack(staged, trusted)
        if made.digest != digest:
            raise PackError(f"the patch makes another pack ({made.digest[:12]}) than was told", where=path)
        staged.replace(path)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise PackError(f"the patch makes no pack: {str(error)[:200]}", where=path) from error
    finally:
        staged.unlink(missing_ok=True)
    return open_pack(path, trusted)


def _patched(old: Pack, patch: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """The files of the new pack; ValueError, KeyError or TypeError if the patch is none."""
    files = {**old.files, **{n.removeprefix(_FILE): v.tobytes() for n, v in patch.items() if n.startswith(_FILE)}}
    if weights := {n.removeprefix(_WEIGHT): v for n, v in patch.items() if n.startswith(_WEIGHT)}:
        files[WEIGHTS] = tensor_bytes(read_tensors(files[WEIGHTS]) | weights)
    return {str(name): files[name] for name in json.loads(patch[_NAMES].tobytes())}


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def _same(one: np.ndarray | None, other: np.ndarray) -> bool:
    return one is not None and one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
