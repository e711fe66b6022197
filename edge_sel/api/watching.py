"""``watch_home``: a watcher with this device's meter, limits and sensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from edge_sel.api.inputs import open_profile
from edge_sel.api.round import train_round
from edge_sel.config.settings import resolve
from edge_sel.edge.governor import Governor, make_reader
from edge_sel.edge.host import local_minute
from edge_sel.edge.limits import limits_of, require_sensors
from edge_sel.edge.memory import limited_memory
from edge_sel.edge.outputs.openmetrics import write_metrics
from edge_sel.edge.train.auto_schedule import BODY_EPOCHS, GENERIC, LEAST_GAIN, clean_loss, expected_gain
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import EdgeSelError, SetupError, UsageError
from edge_sel.power.battery import read_supply
from edge_sel.power.find import find_meter, why_none
from edge_sel.power.recorder import EnergyRecorder, clock_through_sleep
from edge_sel.power.temperature import find_thermometer
from edge_sel.runs.lock import BusyError, hold_lock
from edge_sel.sysfs import sysfs_root
from edge_sel.watch.arrivals import Arrival, FolderArrivals, FrameArrivals
from edge_sel.watch.home import LABELLED, RUNS, Home
from edge_sel.watch.learner import LOCK, Learner, collect_labels
from edge_sel.watch.metrics import metrics_text
from edge_sel.watch.watcher import Options, Surroundings, Watcher

WATCH_LOCK = ".watch.lock"
METRICS_S = 15.0
SESSION_LABELS, SESSION_GROWTH = 30, 1.5
"""Labels before the first full session, and how many more before the next."""


def watch_home(
    home: Home, source: Path | IO[bytes], *, tell: Callable[[dict[str, Any]], None] = lambda event: None,
    should_stop: Callable[[], str | None] = lambda: None, environ: Mapping[str, str] | None = None,
    alive: Callable[[], None] = lambda: None, rate: float = 0.05, keep: int = 500, keep_mb: float = 500.0,
    once: bool = False, no_learning: bool = False, finetune: bool = False, config: Path | None = None,
    metrics: Path | None = None, threads: int = 0, max_pixels: int = Options.max_pixels, profile: str | None = None,
) -> str:  # fmt: skip
    """Watch until a signal or a limit ends it, or the stream of frames does; says which.

    Args:
        home: opened.
        source: a folder, or a stream of JPEG frames.
        tell: is given every event, a dict with the key ``event``.
        should_stop: asked all the time; a text ends the watcher.
        environ: environment variables: settings ``EDGE_SEL_…``.
        alive: called whenever something was done, for a watchdog.
        rate: target share of images that are kept for a human.
        keep: images without a label, at most; ``keep_mb``: their size.
        once: look at what is in the folder now, then leave.
        no_learning: do not learn from labels.
        finetune: start full sessions.
        config: TOML file with limits.
        metrics: OpenMetrics text file to keep up to date.
        threads: 0 for all.
        max_pixels: larger images are unreadable.
        profile: of the device; None to detect it.

    Raises:
        UsageError: another process watches with this home.
        SetupError: a limit was asked for that cannot be watched here.
    """
    device = open_profile(profile)
    resolved = resolve(profile=device, toml_file=config, environ=environ, flags={})
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(home.folder / WATCH_LOCK))
        except BusyError as error:
            raise UsageError(f"{error} watches with this home", where=home.folder) from None
        except OSError as error:
            raise SetupError(f"the home cannot be held ({error.strerror})", where=home.folder) from error
        stack.enter_context(limited_memory())
        meter, probes = find_meter(device, resolved.settings.meter, on_processor=True)
        recorder = stack.enter_context(EnergyRecorder(
            meter, profile=device, temperature=find_thermometer(), on_event=tell,
            why_none="" if meter else why_none(probes),
        ))  # fmt: skip
        window = recorder.start_window("watch")

        def joules() -> tuple[float | None, str]:
            recorder.refresh()
            figure = recorder.peek(window)
            return figure.total_j, figure.source

        def rest(seconds: float) -> None:
            alive()
            time.sleep(seconds)

        supply = partial(read_supply, sysfs_root())
        require_sensors(resolved, recorder, supply())
        clock = clock_through_sleep
        governor = Governor(
            limits_of(resolved, clock()),
            make_reader(clock, lambda: joules()[0], recorder.max_temperature_c, supply, local_minute),
            sleep=rest, emit=lambda name, **details: tell({"event": name, **details}),
            interrupted=lambda: should_stop() is not None, idle=partial(recorder.phase, "idle"),
        )  # fmt: skip
        written_s = [-1e9]

        def pressure() -> tuple[float, str | None]:
            alive()
            if metrics is not None and clock() - written_s[0] >= METRICS_S:
                _write_metrics(metrics, home, tell)
                written_s[0] = clock()
            return governor.pressure, governor.at_boundary(None)

        learner = Learner(home, OrtEngine(threads))
        around = Surroundings(clock, time.time, tell, should_stop, pressure, recorder.phase, joules)
        options = Options(rate, keep, keep_mb, max_pixels, not no_learning)
        if home.restored:
            tell({"event": "restored", "why": home.restored})
        watcher = Watcher(learner, options, around, np.random.default_rng(resolved.settings.seed))
        sessions = _Sessions(learner, config, environ, tell, should_stop, alive) if finetune else None
        arrivals = _arrivals(source, home)
        shown = str(source) if isinstance(source, Path) else "frames on stdin"
        tell({"event": "started", "source": shown, "model": learner.observer.number, "kept": len(home.records.kept())})
        files = arrivals.once() if once and isinstance(arrivals, FolderArrivals) else iter(arrivals)
        why = watcher.run(_beside(files, arrivals, sessions, tell))
        if isinstance(arrivals, FrameArrivals) and arrivals.dropped:
            home.records.count("dropped", arrivals.dropped)
        if metrics is not None:
            _write_metrics(metrics, home, tell)
    tell({"event": "finished", "why": why, "counters": home.records.counters()})
    return why


def _arrivals(source: Path | IO[bytes], home: Home) -> FolderArrivals | FrameArrivals:
    if not isinstance(source, Path):
        return FrameArrivals(source)
    return FolderArrivals(source.absolute(), home.records, (home.folder.absolute(),))


def _beside(
    files: Iterator[list[Arrival]], arrivals: FolderArrivals | FrameArrivals, sessions: _Sessions | None,
    tell: Callable[[dict[str, Any]], None],
) -> Iterator[list[Arrival]]:  # fmt: skip
    """The same files; when there is nothing to do, a full session if one is due."""
    reported = ""
    for part in files:
        if arrivals.why_polling != reported:
            reported = arrivals.why_polling
            tell({"event": "polling", "why": reported})
        if sessions is not None and not part:
            sessions.run_if_due()
        yield part


def _write_metrics(path: Path, home: Home, tell: Callable[[dict[str, Any]], None]) -> None:
    try:
        write_metrics(path, metrics_text(home))
    except OSError as error:
        tell({"event": "cannot_write", "why": f"{path}: {error.strerror or error}"})


class _Sessions:
    """Full sessions of fine-tuning, the body's stages too, under the limits of the settings."""

    def __init__(
        self, learner: Learner, config: Path | None, environ: Mapping[str, str] | None,
        tell: Callable[[dict[str, Any]], None], should_stop: Callable[[], str | None], alive: Callable[[], None],
    ) -> None:  # fmt: skip
        self._alive = alive
        self._learner, self._home, self._tell, self._should_stop = learner, learner.home, tell, should_stop
        self._config, self._environ = config, environ
        self._looked_at = -1

    def run_if_due(self) -> None:
        """Begin one where enough was labelled since the last one, or go on with one that was cut."""
        home, latest = self._home, self._home.records.latest_label()
        if latest == self._looked_at:
            return
        self._looked_at = latest
        asked = int(home.records.noted("session_labels") or 0)
        numbers = sorted(int(path.name) for path in (home.folder / RUNS).iterdir() if path.name.isdecimal())
        unfinished = [number for number in numbers if not (self._folder(number) / "run.json").exists()]
        labels = len(collect_labels(home, home.pack.manifest.model.classes).numbers)
        if not unfinished:
            if labels < max(SESSION_LABELS, SESSION_GROWTH * asked) or not self._promising(labels):
                return
            home.records.note("session_labels", str(labels))
        number = unfinished[0] if unfinished else max([0, *numbers]) + 1
        self._tell({"event": "session", "number": number, "labels": labels})
        try:
            self._run(number)
        except EdgeSelError as error:
            self._tell({"event": "cannot_write", "why": f"session {number}: {error}"})

    def _promising(self, labels: int) -> bool:
        """Whether the pack's table expects that training the body gives enough, at the loss that there is."""
        candidate = self._learner.candidate()
        if candidate is None:
            return False
        manifest = self._home.pack.manifest
        excess = candidate.fit.loss - clean_loss(manifest.calibration)
        gain = expected_gain(manifest.gains or GENERIC, "body", excess=excess, visits=max(BODY_EPOCHS) * labels)
        return gain >= LEAST_GAIN

    def _run(self, number: int) -> None:
        home, out, service = self._home, self._folder(number), self._home.service()
        run = train_round(
            home.pack, home.folder / LABELLED, folder=out, weights=home.model_folder(service), resume=True,
            new_classes="extend", listener=lambda event: self._alive(), should_stop=self._should_stop,
            config=self._config,
            environ=self._environ,
        )  # fmt: skip
        shipped = None
        if run.done and run.shipped and run.weights is not None:
            with hold_lock(home.folder / LOCK, wait=True):
                if home.service() == service:  # labels may have put another one there meanwhile
                    about = {"session": number, "why": (run.evidence or {}).get("why", ""), "before": service}
                    shipped = home.put_in_service(run.weights, run.classes, run.learnt, about)
        joules = run.energy_j
        self._tell({"event": "session_ended", "number": number, "shipped": shipped, "energy_j": joules})

    def _folder(self, number: int) -> Path:
        return self._home.folder / RUNS / f"{number:04d}"
