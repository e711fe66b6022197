"""The schedule on images that the server made up: what each stage gained there is the pack's table of gains.

It runs the sessions that a device runs, without a meter and in a folder that is thrown away.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edge_sel.api.inputs import aligned
from edge_sel.config.settings import resolve
from edge_sel.data.dataset import ImageSet
from edge_sel.data.folder import load_folder
from edge_sel.data.split import stratified_split
from edge_sel.edge.build import build_session
from edge_sel.edge.open import RunInputs
from edge_sel.edge.train.auto_schedule import BODY_EPOCHS, body_of, clean_loss, head_stage
from edge_sel.edge.train.schedule import FixedSchedule, PlannedStage, outcome_of, stages_of
from edge_sel.engines.base import Engine
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import DataError
from edge_sel.pack.manifest import GainRow
from edge_sel.pack.plan_kinds import BN, CLOSED, plan_kind
from edge_sel.pack.reader import Pack
from edge_sel.power.recorder import EnergyRecorder
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
    """The table of gains; none without rehearsals, or without torch, which simulates the cameras.

    Args:
        pack: without a table.
        images: of the server.
        unseen: images that training never saw, see ``load_unseen``; without any, some of ``images`` judge.
        rehearsals: simulated field conditions.
        seed: of all that is drawn.
        note: told a line for what is done.
    """
    if not rehearsals:
        return ()
    if importlib.util.find_spec("torch") is None:
        note("no rehearsals: simulated cameras need torch; a device decides by a generic table")
        return ()
    from edge_sel.server.cameras import simulate_fields

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


def load_unseen(given: ImageSet | str | PathLike[str], info: WarmupInfo, max_pixels: int) -> ImageSet | None:
    """The images that pretraining held out, if there are enough of them among those given."""
    if len(info.held_out) < LEAST_UNSEEN:
        return None
    held = set(info.held_out)
    if isinstance(given, ImageSet):
        rows = [row for row, name in enumerate(given.ids) if name in held]
        found = aligned(given, info.image_size, info.classes, "strict").subset(np.array(rows, np.int64))
    else:
        try:
            found = load_folder(given, info.image_size, classes=info.classes, only=held, max_pixels=max_pixels)
        except DataError:  # none is there
            return None
    return found if len(found) >= LEAST_UNSEEN else None


def rehearse(
    pack: Pack,
    engine: Engine,
    fields: Iterable[tuple[ImageSet, ImageSet]],
    note: Callable[[str], None] = lambda line: None,
) -> tuple[GainRow, ...]:
    """Run every kind of stage on each set of images.

    Args:
        pack: without a table.
        engine: executes its graphs.
        fields: labelled images to train on and to judge by, each pair in a condition of its own. The model should not
            have seen those to judge by.
        note: told a line for each set.
    """
    start, body = _first_stages(pack), body_of(pack.plan_names)
    rows: list[GainRow] = []
    for number, field in enumerate(fields, start=1):
        here: dict[tuple[str, int], GainRow] = {}  # by epochs; what comes before the body is the same in every run
        for epochs in BODY_EPOCHS if body else (0,):
            stages = [*start, *([PlannedStage(body, epochs)] if body else [])]
            try:
                here |= _run(pack, engine, field, stages)
            except DataError as error:  # such as a class with a single image
                note(f"rehearsal {number} left out: {error.what}")
                break
        if not here:
            continue
        gained = ", ".join(f"{kind} {100 * row.gain:+.1f} in {epochs}" for (kind, epochs), row in here.items())
        note(f"rehearsal {number}: {gained} epochs")
        rows += here.values()
    return tuple(rows)


def _first_stages(pack: Pack) -> list[PlannedStage]:
    """What ``--plan auto`` does before it trains the body."""
    names = pack.plan_names
    if CLOSED in names:
        return [PlannedStage(CLOSED, 1)]
    stages = [PlannedStage(BN, 1)] if BN in names and pack.plan(BN).buffers else []
    head = head_stage(names)
    return [*stages, head] if head else stages


def _run(
    pack: Pack, engine: Engine, field: tuple[ImageSet, ImageSet], stages: list[PlannedStage]
) -> dict[tuple[str, int], GainRow]:
    """A row for each stage of the head or the body, by its kind and epochs.

    None where the model diverged, or where there were too few images for a batch.
    """
    # No backbone in integers: whether they are faster is a question to the device, and chosen by a clock.
    resolved = resolve(flags={"backbone_precision": "fp32"})
    training, validation = field
    with TemporaryDirectory() as folder, EnergyRecorder(None, background=False) as recorder:
        given = RunInputs(
            pack,
            training,
            engine,
            resolved,
            recorder,
            Path(folder),
            validation=validation,
            schedule=FixedSchedule(stages),
        )
        history = build_session(given).run()["epochs"]
    clean = clean_loss(pack.manifest.calibration)
    rows: dict[tuple[str, int], GainRow] = {}
    for entries in stages_of(history):
        first, last, kind = entries[0], entries[-1], plan_kind(entries[0]["plan"]).gains
        visits = sum(entry["trained"] for entry in entries)
        if kind is not None and visits and None not in (first["best_loss"], last["validation_loss"]):
            rows[kind, len(entries)] = GainRow(kind, visits, first["best_loss"] - clean, outcome_of(entries).gain)
    return rows
