"""Make a session: split the images, look into the run's folder, and join everything that the session works with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge_sel.data.folder import require_trainable
from edge_sel.data.split import split_by_content
from edge_sel.edge.energy import Bookkeeper, EnergyLedger, opening_spent
from edge_sel.edge.governor import make_governor
from edge_sel.edge.judge import Judge
from edge_sel.edge.open import RunInputs, SplitImages
from edge_sel.edge.outputs.earlier import JOURNAL
from edge_sel.edge.outputs.logs import POWER, EventLog, PowerLog
from edge_sel.edge.outputs.model_files import nothing_learnt, served_of
from edge_sel.edge.outputs.session_folder import SessionFolder
from edge_sel.edge.outputs.summary import run_facts
from edge_sel.edge.progress import original_weights, start_progress
from edge_sel.edge.session import Session
from edge_sel.edge.train.auto_schedule import AutoSchedule, auto_schedule
from edge_sel.edge.train.gate import Gate, intensities
from edge_sel.edge.train.schedule import trainable_by

VALIDATION_CAP = 500
"""Most images in the validation set: beyond this an evaluation costs more than its precision is worth."""


def build_session(given: RunInputs) -> Session:
    """A session that is ready to run; nothing is written yet.

    Raises:
        DataError: fewer than two classes, or a class with a single image and no ``validation`` of its own.
        UsageError: the folder holds another run, or the run to resume is of other images, pack or settings.
    """
    split = _split(given)
    host, settings, out, recorder, opened = given.host, given.settings, given.out, given.recorder, given.opened
    gate, classes = Gate(settings, intensities(split.training)), len(given.classes)
    folder = SessionFolder(given)
    folder.notices += given.notices
    progress = folder.found or start_progress(
        original_weights(given.pack, classes), len(split.training), classes, gate.start()
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
    governor = make_governor(given.limits, host, ledger, recorder, emit)
    governor.expect({**progress.forecast, **folder.earlier.forecast})

    def pause_if_due() -> None:
        book.tick()
        governor.pause_if_due()

    return Session(
        given=given,
        split=split,
        schedule=given.schedule or _auto_schedule(given, split),
        gate=gate,
        judge=Judge(given, split, pause_if_due, progress.batch_limit),
        ledger=ledger,
        book=book,
        governor=governor,
        folder=folder,
        emit=emit,
        progress=progress,
        facts=run_facts(given, split, folder.identity),
        learnt=nothing_learnt() if given.pack.begun_from is None else given.learnt,
    )


def _auto_schedule(given: RunInputs, split: SplitImages) -> AutoSchedule:
    engine, images = given.engine.name, len(split.training)
    return auto_schedule(trainable_by(given.pack, engine), given.settings, images=images, headless=engine == "torch")


def _split(given: RunInputs) -> SplitImages:
    """Duplicates left out and a part held back, unless the caller brings images for validation."""
    images, settings = given.images, given.settings
    require_trainable(images, 2 if given.validation is None else 1, where=given.source or None)
    if given.validation is not None:
        return SplitImages(images, given.validation)
    roles = split_by_content(
        images, settings.validation_fraction, cap=VALIDATION_CAP, keep_duplicates=settings.keep_duplicates
    )
    training = images.subset(roles.training)
    hashes: np.ndarray = training.content_digests()[:, 0]
    served = None if given.pack.begun_from is None else served_of(given.learnt, hashes, len(images.classes))
    return SplitImages(training, images.subset(roles.validation), training, served, hashes, roles.duplicates)
