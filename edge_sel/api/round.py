"""``train_round`` and ``finetune``: a run, from opening the pack to what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from edge_sel.api.inputs import (
    GivenImages,
    check_images,
    load_images,
    open_pack_or_builtin,
    open_profile,
    trusted_keys,
)
from edge_sel.arrays import Arrays
from edge_sel.config.profiles import Profile
from edge_sel.config.settings import Resolved, Settings, resolve
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.build import build_session
from edge_sel.edge.features.shared import SharedFeatures
from edge_sel.edge.host import Host, Listener, Notice, local_minute
from edge_sel.edge.open import RunInputs, hold_run, named_schedule, open_meters
from edge_sel.edge.outputs.earlier import Earlier, exhausted, look_into
from edge_sel.edge.outputs.model_files import Learnt, read_learnt
from edge_sel.edge.outputs.openmetrics import MetricsFile
from edge_sel.edge.outputs.session_folder import refuse_used, tuned_at_start
from edge_sel.edge.session import Session
from edge_sel.edge.train.stage import FittedSamples
from edge_sel.engines.by_name import choose_engine
from edge_sel.errors import UsageError
from edge_sel.files import cache_folder
from edge_sel.pack.reader import Pack
from edge_sel.pack.signatures import TrustedKeys
from edge_sel.pack.weights import pack_of_run, read_expert
from edge_sel.power.meter import Meter
from edge_sel.power.recorder import clock_through_sleep
from edge_sel.power.resources import usable_cores
from edge_sel.power.throttle import ThrottleReader
from edge_sel.sel.feature_sums import SampleSums, sum_samples
from edge_sel.sysfs import sysfs_root
from edge_sel.tuning import machine, read_tuning, tuned_settings, tuning_file

AnyPath = str | PathLike[str]


@dataclass(frozen=True)
class Round:
    """A run that has ended, or was stopped.

    Attributes:
        pack: what was fine-tuned, with the weights that the run began with.
        summary: what ``run.json`` holds.
        folder: with the model, the weights and the records, docs/reference/files.md lists them; None in memory.
        weights: the best that were found, whether they ship or not; those that the run began with where nothing
            was better. None where they were not kept: of a run in a folder that had ended before, and did not ship.
        events: those that a listener is told, but for steps.
        training: ids of the images that were trained on; ``validation`` of those that judged.
        learnt: which images the model in service has learnt by then; None where nobody knows.
        fitted: the features that the head was fitted to in closed form, see ``sample_sums``.
    """

    pack: Pack
    summary: dict[str, Any]
    folder: Path | None
    weights: Arrays | None
    events: tuple[dict[str, Any], ...] = ()
    training: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    learnt: Learnt | None = None
    fitted: FittedSamples | None = None

    @property
    def done(self) -> bool:
        """Whether nothing is left of it; a stopped one in a folder goes on with ``resume=True``."""
        return bool(self.summary["stopped"] == "done")

    @property
    def shipped(self) -> bool:
        """Whether the new model replaces the original one, on evidence that it is better."""
        return bool(self.summary["shipped"])

    @property
    def evidence(self) -> dict[str, Any] | None:
        """What that was decided by; None of a run that was stopped before."""
        value: dict[str, Any] | None = self.summary["evidence"]
        return value

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the pack, then others that the images have."""
        return tuple(self.summary["classes"])

    @property
    def changed(self) -> dict[str, float]:
        """Relative change of each tensor that is no longer what the run began with: ``‖new - old‖ / ‖old‖``.

        The rows of classes that the pack lacks count as a change from 0.
        """
        old, found = self.pack.weights(), {}
        for name, new in (self.weights or {}).items():
            before = np.zeros_like(new)
            before[tuple(slice(size) for size in old[name].shape)] = old[name]
            if not np.array_equal(new, before):
                size = float(np.linalg.norm(before))
                found[name] = float(np.linalg.norm(new - before)) / size if size else float("inf")
        return found

    def sample_sums(self) -> SampleSums | None:
        """Sufficient statistics of the head in closed form, standardised as the server's are; sums of devices add up.

        None where no head was fitted by this process, or not to features of the pack's own body and statistics
        (``plan="ridge"`` keeps these), or the pack has no sums of the server's.
        """
        standard = self.pack.sums and self.pack.sums.standard
        if self.fitted is None or standard is None:
            return None
        return sum_samples(self.fitted.features, self.fitted.labels, len(self.classes), standard)

    def new_pack(self) -> Pack:
        """The pack with the new weights and classes; ``save`` writes it."""
        if self.weights is None:
            raise UsageError("the weights of a run that did not ship were not kept", where=self.folder)
        return self.pack.with_weights(self.weights, self.classes, str(self.folder or "memory"))

    @property
    def model(self) -> Path | None:
        """``model.onnx``, the new or the original one; None in memory."""
        return None if self.folder is None else self.folder / "model.onnx"

    @property
    def accuracy_before(self) -> float | None:
        """0..1, on the test images if there were any, else on the validation images."""
        value: float | None = self.summary["accuracy"]["before"]
        return value

    @property
    def accuracy_after(self) -> float | None:
        """0..1, of the new model, shipped or not; None if it was not looked at."""
        value: float | None = self.summary["accuracy"]["after"]
        return value

    @property
    def energy_j(self) -> float | None:
        """Joules of the whole run; ``energy_source`` tells whether they are measured or modelled."""
        value: float | None = self.summary["energy"]["total_j"]
        return value

    @property
    def energy_source(self) -> str:
        """``measured``, ``modelled`` or ``unavailable``."""
        return str(self.summary["energy"]["source"])


def train_round(
    pack: Pack | AnyPath | None,
    images: ImageSet | AnyPath | None,
    *,
    folder: AnyPath | None = None,
    test: ImageSet | AnyPath | None = None,
    expert: AnyPath | None = None,
    weights: Round | Mapping[str, np.ndarray] | AnyPath | None = None,
    profile: Profile | str | None = None,
    meter: Meter | str | None = None,
    config: AnyPath | None = None,
    environ: Mapping[str, str] | None = None,
    metrics: AnyPath | None = None,
    resume: bool = False,
    listener: Listener = lambda event: None,
    should_stop: Callable[[], str | None] | None = None,
    warn: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> Round:
    """Fine-tune a pack on labelled images of this device: one round, in memory or in a folder.

    Args:
        pack: an opened pack, its path, or None for the small built-in one on handwritten digits.
        images: a folder ``DIR/<class>/*.jpg``, or images in memory, uint8 [N, H, W, 3] of the model's size
            (``ImageSet.from_arrays``); None for the built-in digits.
        folder: of the run; made where it is missing. It gets the model and the records, and a run that is stopped or
            loses power can be resumed. Meanwhile no other process may use it, and this process may take no more
            memory than is free. None: nothing is written.
        test: images that only the figures before and after look at.
        expert: weights of ``edge-sel expert`` to begin with.
        weights: the model in service: an earlier round, its weights, its folder or ``weights.safetensors``. The run
            begins with it, and a new one must be better than it; its classes are known.
        profile: of the device, by name or .toml file; None to detect it.
        meter: one of the caller's own (``edge_sel.power.meter.Meter``), or the name of one of ours; None for that of
            the settings and the profile.
        config: TOML file with settings.
        environ: environment variables: settings ``EDGE_SEL_…``, and where `edge-sel tune` keeps what it found; None
            for none of it.
        metrics: OpenMetrics text file to keep up to date.
        resume: continue the run in ``folder`` if there is one. Of images in memory it compares labels and ids, not
            pixels.
        listener: told every event, a dict with the key ``event``; docs/reference/events.md lists them.
        should_stop: asked at every step; a text stops the run. None: SIGINT, SIGTERM and SIGHUP do where there is a
            folder, so that it can be resumed.
        warn: told in one line what does not stop the run.
        **settings: as in ``edge-sel finetune --help``, by their names in ``run.json``: ``plan="last"``, ``epochs=3``,
            ``energy_budget_j=500.0``.

    Raises:
        EdgeSelError: in one line what cannot be done, where, and what to do about it: UsageError for settings,
            DataError for images, PackError for the pack, SetupError for what the device lacks.
    """
    if isinstance(meter, str):
        settings, meter = {**settings, "meter": meter}, None
    device = profile if isinstance(profile, Profile) else open_profile(profile)
    layers = partial(resolve, profile=device, toml_file=_path(config), environ=environ, flags=settings)
    untuned = layers()
    trusted = trusted_keys(untuned.settings.require_signature)
    out, data, tested = _path(folder), _given(images), _given(test)
    if resume and out is None:
        raise UsageError("a run in memory cannot be resumed", where="resume", fix="name its folder")
    exported = pack if isinstance(pack, Pack) else open_pack_or_builtin(_path(pack), trusted)
    if weights is not None:
        _refuse_beside_weights(expert, trusted)
    trained = None if expert is None else read_expert(Path(expert), exported, trusted)
    opened, learnt = _begin_with(exported, weights)
    check_images(opened, data, tested)
    with ExitStack() as stack:
        notices: list[Notice] = []
        if out is not None:
            held = stack.enter_context(hold_run(out, should_stop))
            should_stop, notices = held.should_stop, [*held.notices]
        tuned = _find_tuning(untuned, exported, device.name, out if resume else None, environ, listener)
        resolved = layers(tuned=tuned)
        asked = resolved.settings
        schedule = named_schedule(opened, asked)  # a plan that the pack lacks is told first
        if out is not None and not resume:
            refuse_used(out)
        earlier = look_into(out) if out is not None and resume else Earlier()
        if out is not None and (ended := exhausted(earlier, out, asked.energy_budget_j)) is not None:
            return Round(opened, ended, out, None)
        meters = stack.enter_context(open_meters(resolved, device, out, earlier, meter, listener))
        events = _Events([listener])
        if metrics is not None:
            events.listeners.append(MetricsFile(Path(metrics), meters.recorder, str(out), on_error=warn))
        shared = _open_features(asked, environ)
        if shared is not None:
            stack.callback(shared.close)
        read = load_images(opened, data, tested, asked)
        engine = choose_engine(
            asked.engine, asked.threads, spinning=asked.spinning, device=asked.device,
            note=lambda why: notices.append(("device", {"device": "cpu", "why": why})),
        )  # fmt: skip

        host = Host(
            should_stop=should_stop or (lambda: None), listener=events, clock=clock_through_sleep,
            supply=meters.supply, minute=local_minute, throttling=ThrottleReader(sysfs_root()).read,
        )  # fmt: skip
        given = RunInputs(
            opened, read.images, engine, resolved, meters.recorder, out, test=read.test, schedule=schedule, host=host,
            limits=meters.limits, source=read.source, expert=trained, learnt=learnt, shared=shared, resume=resume,
            opened=meters, notices=notices,
        )  # fmt: skip
        session = build_session(given)
        summary = session.run()
        if shared is not None and shared.stopped and asked.feature_store != "auto":  # who names it wants to know
            warn(f"no features were kept for later runs: {shared.stopped}: {shared.folder}")
        return _round_of(session, summary, out, events.kept)


def finetune(pack: Pack | AnyPath | None, images: ImageSet | AnyPath | None, *, out: AnyPath, **options: Any) -> Round:
    """``train_round`` in the folder ``out``."""
    return train_round(pack, images, folder=out, **options)


class _Events:
    """Tells every listener of an event, and keeps those that are no steps."""

    def __init__(self, listeners: list[Listener]) -> None:
        self.listeners = listeners
        self.kept: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] != "step":
            self.kept.append(event)
        for listen in self.listeners:
            listen(event)


def _refuse_beside_weights(expert: AnyPath | None, trusted: TrustedKeys | None) -> None:
    if expert is not None:
        raise UsageError("a run begins with one model", where="--from and --expert", fix="give one of them")
    if trusted is not None:  # the weights would stay if nothing is better
        raise UsageError("the weights of a run are not signed", where="--from with --require-signature",
                         fix="leave out one of them")  # fmt: skip


def _begin_with(
    exported: Pack, weights: Round | Mapping[str, np.ndarray] | AnyPath | None
) -> tuple[Pack, Learnt | None]:
    """The pack with the model in service, and what that has learnt."""
    if weights is None:
        return exported, None
    if isinstance(weights, Round):
        if weights.weights is None:
            raise UsageError("the weights of that round were not kept", where=weights.folder, fix="name its folder")
        if not weights.shipped and weights.pack.begun_from is None:
            return exported, None
        if not weights.shipped:  # what it began with is in service still
            before = weights.pack
            begun = exported.with_weights(before.weights(), before.manifest.model.classes, str(before.begun_from))
            return begun, weights.learnt
        begun = exported.with_weights(weights.weights, weights.classes, str(weights.folder or "memory"))
        return begun, weights.learnt
    if isinstance(weights, Mapping):
        return exported.with_weights(weights), None
    opened = pack_of_run(exported, Path(weights))
    return opened, read_learnt(Path(weights), len(opened.manifest.model.classes))


def _round_of(session: Session, summary: dict[str, Any], out: Path | None, events: list[dict[str, Any]]) -> Round:
    weights: Arrays | None = session.judged.weights if session.judged else session.progress.latest_weights()
    learnt = session.learnt
    if out is not None and session.folder.finished is not None:
        weights = session.folder.weights() if summary["shipped"] else None
        learnt = read_learnt(out, len(summary["classes"]))
    return Round(
        session.pack, summary, out, weights, tuple(events), session.split.training.ids, session.split.validation.ids,
        learnt, session.fitted,
    )  # fmt: skip


def _open_features(settings: Settings, environ: Mapping[str, str] | None) -> SharedFeatures | None:
    """Those of earlier runs; ``auto`` is the user's cache, where the environment may tell it."""
    if settings.feature_store == "off" or (settings.feature_store == "auto" and environ is None):
        return None
    folder: Path | None = Path(settings.feature_store)
    if settings.feature_store == "auto":
        folder = cache_folder(environ or {}, "features")
    return None if folder is None else SharedFeatures(folder, settings.feature_store_mb)


def _path(given: AnyPath | None) -> Path | None:
    return None if given is None else Path(given)


def _given(images: ImageSet | AnyPath | None) -> GivenImages:
    return images if images is None or isinstance(images, ImageSet) else Path(images)


def _find_tuning(
    untuned: Resolved, pack: Pack, profile: str, resumed: Path | None, environ: Mapping[str, str] | None, tell: Listener
) -> dict[str, Any]:
    """The settings that `edge-sel tune` found to take the fewest joules, of those that the user did not give.

    A run that is resumed keeps what it began with.
    """
    tuned = None if resumed is None else tuned_at_start(resumed)
    path = None if environ is None else tuning_file(pack.digest, "ort", environ)
    if tuned is None and untuned.settings.engine in ("auto", "ort") and path is not None:
        costs, why = read_tuning(path, machine(profile, usable_cores()))
        tuned = {} if costs is None else tuned_settings(untuned, costs, untuned.settings.plan)
        if why:
            tell({"event": "tuning_ignored", "why": why})
    if tuned:
        tell({"event": "tuned", "settings": tuned})
    return tuned or {}
