"""Rehearse a device's session on the server, for the table of gains of a pack."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_sel.config.settings import Settings
from edge_sel.data.dataset import ImageSet
from edge_sel.data.folder import load_folder
from edge_sel.data.split import stratified_split
from edge_sel.edge.rehearsal import rehearse
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import DataError
from edge_sel.pack.manifest import GainRow
from edge_sel.pack.reader import Pack
from edge_sel.server.source.base import WarmupInfo

TRAINED_ON, JUDGED_BY = 1700, 1000
"""Most images of a rehearsal: as many as a device may have, and as many as tell half a point from chance."""
LEAST_UNSEEN = 200
"""Images; a rehearsal judged by fewer tells more of chance than of training."""


def rehearse_pack(
    pack: Pack,
    images: ImageSet,
    unseen: ImageSet | None,
    rehearsals: int,
    seed: int,
    note: Callable[[str], None],
) -> tuple[GainRow, ...]:
    """The table of gains; none without rehearsals, or without torch, which simulates the cameras."""
    if not rehearsals:
        return ()
    if importlib.util.find_spec("torch") is None:
        note("no rehearsals: simulated cameras need torch; a device decides by a generic table")
        return ()
    from edge_sel.server.simulate import simulate_fields

    rng = np.random.default_rng(seed)
    held = set() if unseen is None else set(unseen.ids)
    others = np.array([row for row, name in enumerate(images.ids) if name not in held], np.int64)
    if not len(others):  # the folder holds nothing else
        unseen, others = None, np.arange(len(images))
    known = images.subset(rng.permutation(others)[:TRAINED_ON])
    if unseen is None:
        rest, judged = stratified_split(known.labels, 0.4, rng, cap=JUDGED_BY)
        known, unseen, seen = known.subset(rest), known.subset(judged), "which training may have seen"
    else:
        unseen, seen = unseen.subset(rng.permutation(len(unseen))[:JUDGED_BY]), "which training never saw"
    note(f"rehearsing on {len(known)} images, judged by {len(unseen)}, {seen}")
    return rehearse(pack, OrtEngine(), simulate_fields(known, unseen, rehearsals, seed), note)


def load_unseen(data: Path, info: WarmupInfo, max_pixels: int = Settings.max_pixels) -> ImageSet | None:
    """The images that pretraining held out, if there are enough of them in the folder."""
    if len(info.held_out) < LEAST_UNSEEN:
        return None
    try:
        found = load_folder(data, info.image_size, classes=info.classes, only=set(info.held_out),
                            max_pixels=max_pixels)  # fmt: skip
    except DataError:  # none is there
        return None
    return found if len(found) >= LEAST_UNSEEN else None
