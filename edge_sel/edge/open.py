"""Open a session on this device: what it measures with, which limits hold it, which plans it may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from edge_sel.config.profiles import Profile
from edge_sel.config.settings import Resolved, Settings
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.bookkeeper import Bookkeeper
from edge_sel.edge.build import build_session
from edge_sel.edge.energy import LOST, opening_spent
from edge_sel.edge.governor.from_settings import limits_of, local_minute, require_sensors
from edge_sel.edge.host import Host, Listener
from edge_sel.edge.outputs.earlier import JOURNAL, Earlier, exhausted, look_into
from edge_sel.edge.outputs.openmetrics import MetricsFile
from edge_sel.edge.outputs.session_folder import Notice, refuse_used
from edge_sel.edge.session import Session
from edge_sel.edge.train.ladder import FixedLadder, fixed_ladder, trainable_by
from edge_sel.engines.base import Engine
from edge_sel.errors import EdgeSelError, SetupError, UsageError
from edge_sel.pack.expert import Expert
from edge_sel.pack.manifest import CLOSED, RIDGE
from edge_sel.pack.reader import Pack
from edge_sel.power.battery import read_supply
from edge_sel.power.find import find_meter, find_thermometer, sysfs_root, why_none
from edge_sel.power.meter import Meter
from edge_sel.power.recorder import EnergyRecorder, clock_through_sleep
from edge_sel.power.throttle import ThrottleReader

IDLE_S = 2.0
"""How long idle power is measured before a run, with a meter that measures."""


class RunImages(NamedTuple):
    """What a run looks at."""

    images: ImageSet
    """To train on; a part is held out for validation."""
    test: ImageSet | None
    """For the figures before and after only."""
    source: str
    """Where ``images`` are from, for the report."""


class EndedSession(NamedTuple):
    """A run of which nothing is left to do."""

    result: dict[str, Any]

    def run(self) -> dict[str, Any]:
        """The result."""
        return self.result


@contextmanager
def open_session(
    pack: Pack,
    resolved: Resolved,
    profile: Profile,
    out: Path,
    *,
    read_images: Callable[[], RunImages],
    make_engine: Callable[[], Engine],
    should_stop: Callable[[], str | None],
    listener: Listener,
    expert: Expert | None = None,
    metrics: Path | None = None,
    resume: bool = False,
    warn: Callable[[str], None] = lambda line: None,
    notices: Sequence[Notice] = (),
) -> Iterator[Session | EndedSession]:
    """A session that is ready to run; its meter is released at the end.

    The caller holds the folder (``hold_folder``). A run that has used up its energy budget is not opened: its result
    is all that there is.

    Args:
        pack: what is fine-tuned.
        resolved: settings with their origins.
        profile: of this device: its meters, idle and highest power.
        out: the run's folder.
        read_images: called when nothing else can be refused any more.
        make_engine: called after it.
        should_stop: asked at every step boundary; a reason stops the run, resumably.
        listener: told every event of the session, and of a meter that is lost.
        expert: weights of the server to begin with, if they are better here.
        metrics: the OpenMetrics file to keep up to date, if any.
        resume: continue the run in ``out`` if there is one.
        warn: told in one line if that file cannot be written.
        notices: events to begin with.

    Raises:
        UsageError: the pack does not have the plan, the folder holds a run that is not to be resumed, or the power cap
            is below what the idle device draws.
        BudgetSpentError: the run to resume has nothing left of its energy budget.
        SetupError: a meter or sensor that was asked for is missing.
    """
    settings = resolved.settings
    ladder = _named_ladder(pack, settings)  # a plan that the pack lacks is told first
    if not resume:
        refuse_used(out)
    earlier = look_into(out) if resume else Earlier()
    if (result := exhausted(earlier, out, settings.energy_budget_j)) is not None:
        yield EndedSession(result)
        return
    meter, why = _open_meter(settings, profile)
    supply = partial(read_supply, sysfs_root())
    limits = limits_of(resolved, clock_through_sleep())
    every_s = settings.checkpoint_every_s
    book = Bookkeeper(out / JOURNAL, clock_through_sleep, every_s=every_s, cuts=earlier.cuts(every_s))
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
        listeners = [listener]
        if metrics is not None:
            listeners.append(MetricsFile(metrics, recorder, str(out), on_error=warn))
        images, test, source = read_images()

        def tell(event: dict[str, Any]) -> None:
            for listen in listeners:
                listen(event)

        yield build_session(
            pack,
            images,
            test,
            make_engine(),
            ladder,
            resolved,
            recorder,
            out,
            host=Host(
                should_stop=should_stop,
                listener=tell,
                clock=clock_through_sleep,
                supply=supply,
                minute=local_minute,
                throttling=ThrottleReader(sysfs_root()).read,
            ),
            limits=limits,
            source=source,
            expert=expert,
            resume=resume,
            book=book,
            opening=opening,
            earlier=earlier,
            notices=notices,
        )


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


def _named_ladder(pack: Pack, settings: Settings) -> FixedLadder | None:
    """The plans that the user named; None for ``auto``."""
    pack = trainable_by(pack, settings.engine)
    if settings.plan == "auto":
        return None
    ladder = fixed_ladder(pack, settings.plan, settings.epochs)
    if settings.engine == "torch" and any(stage.plan in (RIDGE, CLOSED) for stage in ladder.stages):
        raise UsageError(
            "a head in closed form needs features, which the torch engine does not give",
            where=f"--plan {settings.plan}",
            fix="--engine ort, or --plan bn,head",
        )
    return ladder


def _may_use_gpu(settings: Settings) -> bool:
    if settings.device == "cpu" or settings.engine == "ort-training":
        return False
    if settings.engine == "torch":
        return True
    from edge_sel.engines.ort_device import choose_device  # it imports onnxruntime, which takes long

    return choose_device(settings.device)[0] == "cuda"


def _open_meter(settings: Settings, profile: Profile) -> tuple[Meter | None, str]:
    """The meter that the settings and the profile name, None if none works and none is required; and why not."""
    # Of work on the processor a graphics card's watts say nothing: they would be somebody else's, or idle ones.
    meter, probes = find_meter(profile, settings.meter, skip=() if _may_use_gpu(settings) else ("nvml",))
    if settings.require_measured and (meter is None or meter.source != "measured"):
        reasons = "; ".join(f"{probe.name}: {probe.why}" for probe in probes if probe.name != "psutil")
        raise SetupError("no meter measures energy here", where=reasons or None, fix="leave out --require-measured")
    return meter, why_none(probes)
