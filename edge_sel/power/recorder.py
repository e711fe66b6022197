"""The energy recorder: samples a meter in the background and gives every stretch of a run its joules.

    meter, probes = find_meter(profile)
    with EnergyRecorder(meter, profile=profile) as recorder:
        recorder.measure_idle(3.0)
        run = recorder.start_window("run")
        epoch = recorder.start_window("epoch 1")
        ...
        with recorder.phase("train"):  # figure.phases["train"] will be its part of every window
            ...
        figure = recorder.lap(epoch, "epoch 2")  # laps follow one another without a gap, so they add up
        ...
        total = recorder.end_window(run)

Windows may overlap and nest. Their edges are read by the caller, so that they begin and end where the work
does; in between a daemon thread reads. Phases are what one thread of the run is doing; they alternate without a
reading. Nothing here raises into the run: a meter that fails makes the figures ``unavailable`` from then on, and
that is said once through ``on_event``.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from edge_sel.config.profiles import Profile
from edge_sel.power.figure import EnergyFigure, RecorderCost, make_figure
from edge_sel.power.meter import NO_METER, Meter
from edge_sel.power.phases import Phase, PhaseClock
from edge_sel.power.processors import logical_processors
from edge_sel.power.sampler import HANG_S, Moment, Sampler
from edge_sel.power.temperature import PERIOD_S, Thermometer, hotter, hottest_c


def clock_through_sleep() -> float:
    """Seconds that go on while the machine is suspended, where the system can tell (Linux)."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@dataclass(eq=False)
class Window:
    """An open stretch of the run, to be handed back to the recorder."""

    label: str
    start: Moment
    temp_c: float | None
    throttled: dict[str, None] = field(default_factory=dict)


class EnergyRecorder:
    """Gives the windows of a run their energy; a context manager that closes the meter at its end.

    Args:
        meter: what is read; None makes every figure ``unavailable``.
        clock: seconds; its jumps are what shows a suspended machine.
        period_s: between two samples of the background thread.
        profile: gives a modelled meter its idle power, and the recorder's own cost its joules.
        background: False starts no threads; call ``sample_once`` instead.
        on_event: is given one dict when the meter is lost.
        temperature: the hottest sensor of the device besides the meter's own.
        cpu_time: processor seconds of this process, which share joules out among phases.
        hang_s: how long a reading, or the end of the threads, is waited for.
        temperature_period_s: between two questions to the thermometers.
        why_none: why there is no meter, if there is none.

    """

    def __init__(
        self,
        meter: Meter | None,
        clock: Callable[[], float] = clock_through_sleep,
        *,
        period_s: float = 0.1,
        profile: Profile | None = None,
        background: bool = True,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        temperature: Callable[[], float | None] = hottest_c,
        cpu_time: Callable[[], float] = time.process_time,
        hang_s: float = HANG_S,
        temperature_period_s: float = PERIOD_S,
        why_none: str = NO_METER,
    ) -> None:
        self._meter, self._period_s, self._profile = meter, period_s, profile
        self._phases = PhaseClock(clock, cpu_time)
        self._sampler = Sampler(meter, self._phases, max(5 * period_s, 1.0), on_event, hang_s, why_none)
        if profile is not None and meter is not None and meter.source == "modelled":
            self._sampler.idle_w = profile.idle_w
        self._throttle_reasons: Callable[[], list[str]] = getattr(meter, "throttle_reasons", list)
        own = getattr(meter, "temperature_c", None)
        thermometers = [temperature] if own is None else [temperature, own]
        self._thermometer = Thermometer(thermometers, clock, period_s=temperature_period_s)
        self._hang_s, self._temperature_period_s = hang_s, temperature_period_s
        self._windows: list[Window] = []
        self._edges_cpu_s = 0.0
        self._threads_cpu_s = {"energy": 0.0, "temperature": 0.0}
        self._background = background
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()

    def __enter__(self) -> EnergyRecorder:
        self._edge()
        if self._background:
            # Two, as a thermometer can hang, and samples must go on.
            sample = partial(self._repeat, "energy", self._sampler.read, lambda: self._period_s if self.works else 1.0)
            feel = partial(self._repeat, "temperature", self._feel, lambda: self._temperature_period_s)
            for name, work in (("energy", sample), ("temperature", feel)):
                thread = threading.Thread(target=work, name=name, daemon=True)
                with suppress(RuntimeError):  # no more threads can be had: the edges are still read
                    thread.start()
                    self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        deadline_s = time.monotonic() + self._hang_s
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline_s - time.monotonic()))
        self._sampler.close(hung=any(thread.is_alive() for thread in self._threads))

    @property
    def works(self) -> bool:
        """Whether there is a meter and it still tells something."""
        return self._sampler.lost is None

    @property
    def idle_w(self) -> float | None:
        """Watts taken off the gross, if known."""
        return self._sampler.idle_w

    def phase(self, name: str) -> Phase:
        """A context manager: the time inside it, and its joules, are this phase's in every window that is open.

        Entering and leaving read two clocks, not the meter. An inner phase takes the place of the outer one, which
        goes on after it. One thread only may use phases. Their sums are kept for good, so names should be few.
        """
        return Phase(self._phases, name)

    def start_window(self, label: str = "") -> Window:
        """Open a window here and now."""
        window = Window(label, self._edge(), self._thermometer.latest_c())
        self._windows.append(window)
        return window

    def end_window(self, window: Window) -> EnergyFigure:
        """The figure of the window, which is over now."""
        moment = self._edge()
        self._windows.remove(window)
        return self._figure(window, moment)

    def lap(self, window: Window, label: str = "") -> EnergyFigure:
        """The figure of the window so far, which begins anew at the same reading under a new label."""
        moment = self._edge()
        figure = self._figure(window, moment)
        window.label, window.start, window.temp_c = label, moment, self._thermometer.latest_c()
        window.throttled = {}
        return figure

    def refresh(self) -> None:
        """Take a sample now, so that ``peek`` is up to date."""
        self._edge()

    def peek(self, window: Window) -> EnergyFigure:
        """The figure of the window up to the latest sample; reads nothing, so it is cheap in a loop."""
        return self._figure(window, self._sampler.latest())

    def sample_once(self) -> None:
        """Do by hand what the background threads do all the time."""
        self._edge()
        self._feel()

    def measure_idle(self, seconds: float, sleep: Callable[[float], None] = time.sleep) -> float | None:
        """Watts while nothing runs, from now on taken off the gross; None if they cannot be known.

        With a measured meter this waits, at least its shortest window; a modelled one knows its idle power.
        """
        if self._meter is None or self._meter.source != "measured":
            return self.idle_w
        seconds = max(seconds, self._meter.min_window_s)
        window = self.start_window("idle")
        for _ in range(steps := max(1, math.ceil(seconds / self._period_s))):
            sleep(seconds / steps)
            if not self._threads:
                self.sample_once()
        self._sampler.idle_w = self.end_window(window).mean_power_w
        return self.idle_w

    def max_temperature_c(self) -> float | None:
        """The hottest sensor, at most a second or so old; None if there is none or it no longer answers."""
        if self._threads:
            self._thermometer.await_first()
        else:
            self._feel()
        return self._thermometer.latest_c()

    def cost(self) -> RecorderCost:
        """What recording took so far, of the processor and in modelled joules."""
        cpu_s = self._edges_cpu_s + sum(self._threads_cpu_s.values())
        if self._profile is None:
            return RecorderCost(cpu_s, None, "unavailable")
        per_core_w = (self._profile.max_w - self._profile.idle_w) / logical_processors()
        return RecorderCost(cpu_s, cpu_s * per_core_w, "modelled")

    def _repeat(self, name: str, work: Callable[[], object], period_s: Callable[[], float]) -> None:
        with suppress(Exception):  # at the very end of the interpreter anything may be gone
            while not self._stop.is_set():
                work()
                self._threads_cpu_s[name] = time.thread_time()
                self._stop.wait(period_s())

    def _edge(self) -> Moment:
        began_s = time.thread_time()
        moment = self._sampler.read()
        self._edges_cpu_s += time.thread_time() - began_s
        return moment

    def _feel(self) -> None:
        temp_c, reasons = self._thermometer.ask(), []
        with suppress(Exception):  # as a sensor's, its failure is no failure of the run
            reasons = self._throttle_reasons()
        for window in list(self._windows):
            window.temp_c = hotter(window.temp_c, temp_c)
            window.throttled |= dict.fromkeys(reasons)

    def _figure(self, window: Window, moment: Moment) -> EnergyFigure:
        return make_figure(
            moment.tally.since(window.start.tally),
            max(0.0, moment.time_s - window.start.time_s),
            self._sampler.facts(moment),
            temp_c=window.temp_c,
            throttled=tuple(window.throttled),
            label=window.label,
            phases=moment.phases_since(window.start),
        )
