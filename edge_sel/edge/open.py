"""What a run on this device opens before it begins: its folder, its meter, its journal, the plans it may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edge_sel.config.profiles import Profile
from edge_sel.config.settings import Resolved, Settings
from edge_sel.data.dataset import ImageSet
from edge_sel.data.duplicates import NO_DUPLICATES, Duplicates
from edge_sel.edge.energy import LOST, Bookkeeper, opening_spent
from edge_sel.edge.features.shared import SharedFeatures
from edge_sel.edge.host import Host, Listener, Notice
from edge_sel.edge.limits import Limit, limits_of, require_sensors
from edge_sel.edge.memory import limited_memory
from edge_sel.edge.outputs.earlier import JOURNAL, Earlier
from edge_sel.edge.outputs.model_files import Learnt, Served
from edge_sel.edge.train.schedule import FixedSchedule, Schedule, fixed_schedule, trainable_by
from edge_sel.engines.base import Engine
from edge_sel.errors import EdgeSelError, SetupError, UsageError
from edge_sel.files import cannot_write, open_no_link
from edge_sel.pack.plan_kinds import plan_kind
from edge_sel.pack.reader import Pack
from edge_sel.pack.weights import Expert
from edge_sel.power.battery import Supply, read_supply
from edge_sel.power.figure import Window
from edge_sel.power.find import METER_KINDS, find_meter, why_none
from edge_sel.power.meter import Meter
from edge_sel.power.recorder import EnergyRecorder, clock_through_sleep
from edge_sel.power.temperature import find_thermometer
from edge_sel.runs.lock import BusyError, hold_lock
from edge_sel.runs.stop_signal import StopSignal
from edge_sel.sysfs import sysfs_root

# --- The folder


LOCK = ".lock"


class Held(NamedTuple):
    """The folder is ours."""

    notices: tuple[Notice, ...]
    """Events to begin with."""
    should_stop: Callable[[], str | None]


@contextmanager
def hold_run(out: Path, should_stop: Callable[[], str | None] | None = None) -> Iterator[Held]:
    """Hold a run's folder, made where it is missing; folders that end up empty are removed.

    Meanwhile this process may take no more memory than is free (``limited_memory``), and without ``should_stop`` its
    signals stop the run so that it can be resumed (``StopSignal``).

    Raises:
        UsageError: it is a file, or another process holds it.
        SetupError: it cannot be made or written to.
    """
    missing: list[Path] = []
    with suppress(OSError):  # such as a name that is too long, which is told below
        missing += [folder for folder in (out, *out.parents) if not folder.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, missing)
        prepare_folder(out)
        try:
            locked = stack.enter_context(hold_lock(out / LOCK))
        except BusyError as error:
            what = f"{error} works in this folder"
            raise UsageError(what, where=out, fix="wait until it is done, or another --out") from None
        except OSError as error:
            raise cannot_write(out / LOCK, error) from error
        stack.enter_context(limited_memory())
        notices = () if locked else (("unlocked", {"why": "the file system has no locks"}),)
        yield Held(notices, should_stop or stack.enter_context(StopSignal()))


def prepare_folder(out: Path) -> None:
    """Make the run's folder, or say at once why that will not work.

    Raises:
        UsageError: it is a file.
        SetupError: it cannot be made or written to.
    """
    try:
        if out.exists() and not out.is_dir():
            raise UsageError("--out is a file", where=out, fix="name a folder")
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".edge-sel-write-test"
        open_no_link(probe, "wb").close()
        probe.unlink()
    except OSError as error:
        raise SetupError(
            f"cannot write to --out ({error.strerror})", where=out, fix="choose a folder you may write to"
        ) from error


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # what is not empty stays
        for folder in folders:
            folder.rmdir()


# --- Meter and journal


IDLE_S = 2.0
"""How long idle power is measured before a run, with a meter that measures."""


class Opened(NamedTuple):
    """What a run measures with and writes its books with, and what earlier processes of it left."""

    recorder: EnergyRecorder
    book: Bookkeeper
    opening: Window
    """Of the recorder, since this process began to open the run: part of what the run takes."""
    earlier: Earlier
    limits: tuple[Limit, ...]
    """What the governor holds the run to."""
    supply: Callable[[], Supply]


@contextmanager
def open_meters(
    resolved: Resolved, profile: Profile, out: Path | None, earlier: Earlier, meter: Meter | None, listener: Listener
) -> Iterator[Opened]:
    """Measure from here on; the meter is released at the end. The caller holds the folder (``hold_run``).

    A run that is refused inside leaves no journal of its own.

    Args:
        resolved: settings with their origins.
        profile: of this device: its meters, idle and highest power.
        out: the run's folder; None for a run in memory.
        earlier: what it held before.
        meter: the caller's own; None for that of the settings and the profile.
        listener: told of a meter that is lost.

    Raises:
        UsageError: the power cap is below what the idle device draws.
        SetupError: a meter or sensor that was asked for is missing.
    """
    settings, why = resolved.settings, ""
    if meter is None:
        meter, why = _find_meter(settings, profile)
    elif settings.require_measured and meter.source != "measured":
        raise SetupError(f"the meter {meter.name} does not measure", fix="leave out require_measured")
    supply = partial(read_supply, sysfs_root())
    limits = tuple(limits_of(resolved, clock_through_sleep()))
    every_s = settings.checkpoint_every_s
    book = Bookkeeper(
        None if out is None else out / JOURNAL, clock_through_sleep, every_s=every_s, cuts=earlier.cuts(every_s)
    )
    with (
        EnergyRecorder(
            meter, profile=profile, on_event=listener, temperature=find_thermometer(), why_none=why
        ) as recorder,
        book.in_background(),
        _taken_back(book, new=not earlier.began),
    ):
        opening = recorder.start_window("opening")
        if not earlier.began:  # to measure the idle device is no part of the work; who comes again pays for it
            recorder.measure_idle(IDLE_S)
            recorder.end_window(opening)
            opening = recorder.start_window("opening")
        if (earlier.result or {}).get("stopped") != "done":
            book.begin(
                lambda: earlier.spent().plus_phase(LOST, opening_spent(recorder, opening)),
                lambda: earlier.forecast,
                runs=False,
            )
        if earlier.began:
            recorder.measure_idle(IDLE_S)
        require_sensors(resolved, recorder, supply())
        yield Opened(recorder, book, opening, earlier, limits, supply)


@contextmanager
def _taken_back(book: Bookkeeper, *, new: bool) -> Iterator[None]:
    """A run that is refused while it is opened leaves its journal as it was, and a new one that ends there leaves none.

    Otherwise the same command would find a run that never began.
    """
    try:
        yield
    except BaseException as error:
        if not book.runs and (new or isinstance(error, EdgeSelError)):
            book.withdraw()
        raise


def named_schedule(pack: Pack, settings: Settings) -> FixedSchedule | None:
    """The plans that the user named; None for ``auto``.

    Raises:
        UsageError: the pack or the engine does not have one of them.
    """
    pack = trainable_by(pack, settings.engine)
    if settings.plan == "auto":
        return None
    schedule = fixed_schedule(pack, settings.plan, settings.epochs)
    refused = [kind for stage in schedule.stages if (kind := plan_kind(stage.plan)).needs_features]
    if settings.engine == "torch" and refused:
        raise UsageError(
            f"{refused[0].words} needs features, which the torch engine does not give",
            where=f"--plan {settings.plan}",
            fix="--engine ort, or --plan bn,head",
        )
    return schedule


def _may_use_gpu(settings: Settings) -> bool:
    if settings.device == "cpu" or settings.engine == "ort-training":
        return False
    if settings.engine == "torch":
        return True
    from edge_sel.engines.ort import choose_device  # it imports onnxruntime, which takes long

    return choose_device(settings.device)[0] == "cuda"


def _find_meter(settings: Settings, profile: Profile) -> tuple[Meter | None, str]:
    """The meter that the settings and the profile name, None if none works and none is required; and why not."""
    meter, probes = find_meter(profile, settings.meter, on_processor=not _may_use_gpu(settings))
    if settings.require_measured and (meter is None or meter.source != "measured"):
        tried = [probe for probe in probes if METER_KINDS[probe.name].source == "measured"]
        reasons = "; ".join(f"{probe.name}: {probe.why}" for probe in tried)
        raise SetupError("no meter measures energy here", where=reasons or None, fix="leave out --require-measured")
    return meter, why_none(probes)


# --- All together


@dataclass(frozen=True)
class RunInputs:
    """What a run is given. Whatever works for the run, such as its stages and its judge, reads it from here.

    Attributes:
        pack: the verified pack.
        images: the device's labelled images; classes beyond the pack's extend the head. Near-duplicates are left out
            before the validation set is held back: of one scene, one half would tell the labels of the other.
        engine: executes the graphs.
        resolved: settings with their origins.
        recorder: a started energy recorder.
        out: the run's folder; None for a run in memory, of which nothing is written.
        test: images that no decision looks at, for before/after; None for none.
        validation: what every decision looks at, all ``images`` being trained on; None for a part of them.
        schedule: which plans, in which order; None for ``--plan auto``.
        host: clocks, sensors and signals of the device.
        limits: what the governor holds the run to.
        source: what ``images`` are, for the report.
        expert: weights of the server to begin with, if they are better here.
        learnt: which images a model that was begun from has learnt; None where nobody knows.
        shared: features that earlier runs have left; None for none.
        resume: continue the run in ``out`` if there is one.
        opened: journal and earlier parts of the run; None to begin and to look now.
        notices: events to begin with.
    """

    pack: Pack
    images: ImageSet
    engine: Engine
    resolved: Resolved
    recorder: EnergyRecorder
    out: Path | None
    test: ImageSet | None = None
    validation: ImageSet | None = None
    schedule: Schedule | None = None
    host: Host = field(default_factory=Host)
    limits: Sequence[Limit] = ()
    source: str = ""
    expert: Expert | None = None
    learnt: Learnt | None = None
    shared: SharedFeatures | None = None
    resume: bool = False
    opened: Opened | None = None
    notices: Sequence[Notice] = ()

    @property
    def settings(self) -> Settings:
        """The values without their origins."""
        return self.resolved.settings

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the pack's classes, then of the device's own."""
        return self.images.classes


class SplitImages(NamedTuple):
    """The images of a run by what they are for."""

    training: ImageSet
    validation: ImageSet
    """Of the device, and not trained on; every decision looks at them."""
    fair_images: ImageSet | None = None
    """Training images of the same place, which judge what has not learnt from them; None for none."""
    served: Served | None = None
    """Which training images the model in service has learnt; None where it has learnt none."""
    hashes: np.ndarray = np.zeros(0, np.uint64)
    """Of the training images, uint64 [N]; empty where nobody will ask what was learnt."""
    duplicates: Duplicates = NO_DUPLICATES
