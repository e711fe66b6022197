"""Make a session: split the images, look into the run's folder, and join everything that the session works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_sel.config.settings import Resolved
from edge_sel.data.dataset import ImageSet
from edge_sel.data.duplicates import NO_DUPLICATES
from edge_sel.data.folder import require_trainable
from edge_sel.data.roles import split_by_content
from edge_sel.edge.energy import Bookkeeper, EnergyLedger, opening_spent
from edge_sel.edge.features.shared import SharedFeatures
from edge_sel.edge.governor import make_governor
from edge_sel.edge.host import Host
from edge_sel.edge.judge import Judge
from edge_sel.edge.limits import Limit
from edge_sel.edge.open import Opened
from edge_sel.edge.outputs.earlier import JOURNAL
from edge_sel.edge.outputs.logs import POWER, EventLog, PowerLog
from edge_sel.edge.outputs.model_files import Learnt, nothing_learnt, served_of
from edge_sel.edge.outputs.session_folder import Notice, SessionFolder, identify
from edge_sel.edge.outputs.summary import run_facts
from edge_sel.edge.progress import extend_head, original_weights, start_progress
from edge_sel.edge.session import Session
from edge_sel.edge.train.auto_ladder import auto_ladder
from edge_sel.edge.train.gate import Gate, intensities
from edge_sel.edge.train.ladder import Ladder, trainable_by
from edge_sel.engines.base import Engine
from edge_sel.pack.expert import Expert
from edge_sel.pack.reader import Pack
from edge_sel.power.recorder import EnergyRecorder

VALIDATION_CAP = 500
"""Most images in the validation set: beyond this an evaluation costs more than its precision is worth."""


def build_session(
    pack: Pack,
    images: ImageSet,
    test: ImageSet | None,
    engine: Engine,
    ladder: Ladder | None,
    resolved: Resolved,
    recorder: EnergyRecorder,
    out: Path | None,
    *,
    host: Host | None = None,
    limits: Sequence[Limit] = (),
    source: str = "",
    expert: Expert | None = None,
    validation: ImageSet | None = None,
    learnt: Learnt | None = None,
    shared: SharedFeatures | None = None,
    resume: bool = False,
    opened: Opened | None = None,
    notices: Sequence[Notice] = (),
) -> Session:
    """A session that is ready to run; nothing is written yet.

    Args:
        pack: the verified pack.
        images: the device's labelled images; classes beyond the pack's extend the head. Near-duplicates are left out
            before the validation set is held back: of one scene, one half would tell the labels of the other.
        test: images that no decision looks at, for before/after; may be None.
        engine: executes the graphs.
        ladder: which plans, in which order; None for ``--plan auto``.
        resolved: settings with their origins.
        recorder: a started energy recorder.
        out: the run's folder; None for a run in memory, of which nothing is written.
        host: clocks, sensors and signals of the device.
        limits: what the governor holds the run to.
        source: what ``images`` are, for the report.
        expert: weights of the server to begin with, if they are better here.
        validation: what every decision looks at, all ``images`` being trained on; None for a part of them.
        shared: features that earlier runs have left; None for none.
        learnt: which images a model that was begun from has learnt; None where nobody knows.
        resume: continue the run in ``out`` if there is one.
        opened: journal and earlier parts of the run; None to begin and to look now.
        notices: events to begin with.

    Raises:
        DataError: fewer than two classes, or a class with a single image and no ``validation`` of its own.
        UsageError: the folder holds another run, or the run to resume is of other images, pack or settings.
    """
    host, settings, classes = host or Host(), resolved.settings, images.classes
    require_trainable(images, 2 if validation is None else 1, where=source or None)
    duplicates, witnesses, served, hashes = NO_DUPLICATES, None, None, np.zeros(0, np.uint64)
    if validation is None:
        roles = split_by_content(
            images, settings.guard_fraction, cap=VALIDATION_CAP, keep_duplicates=settings.keep_duplicates
        )
        duplicates, validation = roles.duplicates, images.subset(roles.validation)
        to_train_on = witnesses = images.subset(roles.training)
        hashes = to_train_on.content_digests()[:, 0]
        if pack.begun_from is not None:
            served = served_of(learnt, hashes, len(classes))
    else:
        to_train_on = images
    gate = Gate(settings, intensities(to_train_on))
    identity = identify(resolved, pack, images, test, engine.name, None if expert is None else expert.digest, learnt)
    folder = SessionFolder(out, identity, resume=resume, earlier=opened and opened.earlier)
    folder.notices += notices
    progress = folder.found or start_progress(
        original_weights(pack, len(classes)), len(to_train_on), len(classes), gate.start()
    )
    emit = EventLog(None if out is None else out / "events.jsonl", host.clock, host.listener)
    opening = None if opened is None else opening_spent(recorder, opened.opening)
    progress = replace(progress, run_spent=folder.spent_before(progress.run_spent, opening))
    ledger = EnergyLedger(recorder, progress.run_spent, progress.epoch_spent)
    every_s = settings.checkpoint_every_s
    book = opened.book if opened else Bookkeeper(None if out is None else out / JOURNAL, host.clock, every_s=every_s)
    book.cuts = folder.earlier.cuts(every_s)
    if out is not None:
        book.log = PowerLog(out / POWER, recorder.max_temperature_c).add
    governor = make_governor(limits, host, ledger, recorder, emit)
    governor.expect({**progress.forecast, **folder.earlier.forecast})
    facts = {
        **run_facts(pack, images, engine.name, resolved, identity, expert),
        "run": None if out is None else str(out),
        "source": source,
        "images": {"train": len(to_train_on), "guard": len(validation), "test": len(test or ())},
        "duplicates": {
            "left_out": [images.ids[row] for row in duplicates.left_out],
            "contradictory": [images.ids[row] for row in duplicates.contradictory],
        },
    }

    def breathe() -> None:
        book.tick()
        governor.breathe()

    return Session(
        pack=pack,
        expert=None if expert is None else extend_head(expert.weights, pack.manifest.model, len(classes)),
        classes=classes,
        training=to_train_on,
        engine=engine,
        settings=settings,
        ladder=ladder
        or auto_ladder(
            trainable_by(pack, engine.name), settings, images=len(to_train_on), headless=engine.name == "torch"
        ),
        gate=gate,
        judge=Judge(
            pack, engine, validation, test, recorder.phase, breathe, progress.batch_limit, witnesses, served, shared
        ),
        recorder=recorder,
        ledger=ledger,
        book=book,
        governor=governor,
        limits=limits,
        host=host,
        folder=folder,
        emit=emit,
        progress=progress,
        facts=facts,
        learnt=nothing_learnt() if pack.begun_from is None else learnt,
        hashes=hashes,
        shared=shared,
    )
