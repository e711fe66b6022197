"""What every update tells of itself, and how a file of one is put together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, TypedDict

import numpy as np

from edge_sel.arrays import tensor_bytes
from edge_sel.errors import DataError
from edge_sel.pack.manifest_json import MOST_CLASSES
from edge_sel.pack.reader import Pack
from edge_sel.schema import Longest, Within

FORMAT = "edge-sel-update-2"
LEAST_IMAGES = 20
LEAST_OF_CLASS = 5
"""Of a class with a single image ``ΦᵀT`` is that image's features; so fewer are not sent."""
MOST_IMAGES = 10**7
LEAST_EPSILON, MOST_EPSILON = 1e-3, 100.0
LEAST_DELTA, MOST_DELTA = 1e-12, 0.5

_Number = Annotated[float, Within(0, 1e15)]
_Name = Annotated[str, Longest(400)]
_Word = Annotated[str, Longest(64)]


class Privacy(TypedDict):
    """Of the noise that was added."""

    epsilon: Annotated[float, Within(LEAST_EPSILON, MOST_EPSILON)]
    delta: Annotated[float, Within(LEAST_DELTA, MOST_DELTA)]


class Header(TypedDict):
    """Of an update."""

    format: str
    kind: Literal["statistics", "delta"]
    pack: _Word
    round: _Word
    nonce: _Word
    classes: Annotated[list[_Name], Longest(MOST_CLASSES)]
    images: Annotated[int, Within(1, MOST_IMAGES)]
    energy_j: _Number | None
    energy_source: _Name
    privacy: Privacy | None
    plan: _Name | None


class Origin(NamedTuple):
    """What an update tells beside its numbers."""

    nonce: str
    """A text that no other update has."""
    round: str = ""
    """That the server named; none of files that are carried."""
    energy_j: float | None = None
    energy_source: str = "unavailable"


def usable_rows(labels: np.ndarray, known: np.ndarray, classes: int) -> np.ndarray:
    """bool[N]: images that may be in an update: whose features are ``known``, of classes that have enough of them.

    Raises:
        DataError: there are too few.
    """
    counts = np.bincount(labels[known], minlength=classes)
    used: np.ndarray = known & (counts[labels] >= LEAST_OF_CLASS)
    if used.sum() < LEAST_IMAGES:
        fix = f"at least {LEAST_IMAGES} images to train on, and {LEAST_OF_CLASS} of a class, else single ones show"
        raise DataError(f"an update of {used.sum()} images", fix=fix)
    return used


def update_bytes(
    pack: Pack, kind: Literal["statistics", "delta"], origin: Origin, tensors: Mapping[str, np.ndarray],
    classes: Sequence[str], images: int, *, privacy: Privacy | None = None, plan: str | None = None,
) -> bytes:  # fmt: skip
    """The content of a file."""
    header: Header = {
        "format": FORMAT, "kind": kind, "pack": pack.digest, "round": origin.round, "nonce": origin.nonce,
        "classes": list(classes), "images": images, "energy_j": origin.energy_j,
        "energy_source": origin.energy_source, "privacy": privacy, "plan": plan,
    }  # fmt: skip
    return tensor_bytes(tensors, {"update": json.dumps(header)})
