"""The energy recorder: samples a meter in the background and gives every stretch of a run its joules.

    meter, probes = find_meter(profile)
    with EnergyRecorder(meter, profile=profile) as recorder:
        recorder.measure_idle(3.0)
        run = recorder.start_window("run")
        epoch = recorder.start_window("epoch 1")
        ...
        figure = recorder.lap(epoch, "epoch 2")  # laps follow one another without a gap, so they add up
        ...
        total = recorder.end_window(run)

Windows may overlap and nest. Their edges are read by the caller, so that they begin and end where the work
does; in between a daemon thread reads. Nothing here raises into the run: a meter that fails makes the figures
``unavailable`` from then on, and that is said once through ``on_event``.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from edge_sel.power.figure import EnergyFigure, Tally, make_figure
from edge_sel.power.meter import Meter, Source
from edge_sel.power.sampler import HANG_S, Sampler
from edge_sel.power.temperature import hottest_c
from edge_sel.profiles import Profile

TEMPERATURE_PERIOD_S = 1.0
STALE_TEMPERATURE_S = 10.0


def clock_through_sleep() -> float:
    """Seconds that go on while the machine is suspended, where the system can tell (Linux)."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@dataclass(eq=False)
class Window:
    """An open stretch of the run, to be handed back to the recorder."""

    label: str
    start_s: float
    start: Tally
    temp_c: float | None


@dataclass(frozen=True)
class RecorderCost:
    """What recording itself took; its joules are modelled from the profile."""

    cpu_s: float
    energy_j: float | None
    source: Source

    def to_json(self) -> dict[str, Any]:
        """All of it, for ``--json``."""
        return asdict(self)


class EnergyRecorder:
    """Gives the windows of a run their energy; a context manager that closes the meter at its end.

    Args:
        meter: what is read; None makes every figure ``unavailable``.
        clock: seconds; its jumps are what shows a suspended machine.
        period_s: between two samples of the background thread.
        profile: gives a modelled meter its idle power, and the recorder's own cost its joules.
        background: False starts no thread; call ``sample_once`` instead.
        on_event: is given one dict when the meter is lost.
        temperature: the hottest sensor of the device besides the meter's own.

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
    ) -> None:
        self._meter, self._clock, self._period_s, self._profile = meter, clock, period_s, profile
        self._sampler = Sampler(meter, clock, max(5 * period_s, 1.0), on_event)
        if profile is not None and meter is not None and meter.source == "modelled":
            self._sampler.idle_w = profile.idle_w
        own = getattr(meter, "temperature_c", None)
        self._thermometers = [temperature] if own is None else [temperature, own]
        self._temp_c: float | None = None
        self._temp_s = -math.inf
        self._windows: list[Window] = []
        self._edges_cpu_s = self._thread_cpu_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True) if background else None

    def __enter__(self) -> EnergyRecorder:
        self._edge()
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=HANG_S)
        self._sampler.close(hung=self._thread is not None and self._thread.is_alive())

    @property
    def idle_w(self) -> float | None:
        """Watts taken off the gross, if known."""
        return self._sampler.idle_w

    def start_window(self, label: str = "") -> Window:
        """Open a window here and now."""
        now_s, tally = self._edge()
        window = Window(label, now_s, tally, self._temp_c)
        self._windows.append(window)
        return window

    def end_window(self, window: Window | None = None) -> EnergyFigure:
        """The figure of the window, or of the one opened last, which is over now."""
        window = self._windows[-1] if window is None else window
        now_s, tally = self._edge()
        self._windows.remove(window)
        return self._figure(window, now_s, tally)

    def lap(self, window: Window, label: str = "") -> EnergyFigure:
        """The figure of the window so far, which begins anew at the same reading under a new label."""
        now_s, tally = self._edge()
        figure = self._figure(window, now_s, tally)
        window.label, window.start_s, window.start, window.temp_c = label, now_s, tally, self._temp_c
        return figure

    def peek(self, window: Window) -> EnergyFigure:
        """The figure of the window up to the latest sample; reads nothing, so it is cheap in a loop."""
        last = self._sampler.last
        now_s = self._clock() if last is None or self._sampler.lost else last.time_s
        return self._figure(window, now_s, self._sampler.tally)

    def sample_once(self) -> None:
        """Do by hand what the background thread does all the time."""
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
            if self._thread is None:
                self.sample_once()
        self._sampler.idle_w = self.end_window(window).mean_power_w
        return self.idle_w

    def max_temperature_c(self) -> float | None:
        """The hottest sensor, at most a second or so old; None if there is none or it no longer answers."""
        if self._thread is None:
            self._feel()
        return self._temp_c if self._clock() - self._temp_s < STALE_TEMPERATURE_S else None

    def cost(self) -> RecorderCost:
        """What recording took so far, of the processor and in modelled joules."""
        cpu_s = self._edges_cpu_s + self._thread_cpu_s
        if self._profile is None:
            return RecorderCost(cpu_s, None, "unavailable")
        per_core_w = (self._profile.max_w - self._profile.idle_w) / (os.cpu_count() or 1)
        return RecorderCost(cpu_s, cpu_s * per_core_w, "modelled")

    def _run(self) -> None:
        with suppress(Exception):  # at the very end of the interpreter anything may be gone
            self._feel()
            while not self._stop.wait(TEMPERATURE_PERIOD_S if self._sampler.lost else self._period_s):
                self._sampler.read()
                self._feel()
                self._thread_cpu_s = time.thread_time()

    def _edge(self) -> tuple[float, Tally]:
        began_s = time.thread_time()
        edge = self._sampler.read()
        self._edges_cpu_s += time.thread_time() - began_s
        return edge

    def _feel(self) -> None:
        """Read the temperatures, at most once a second."""
        now_s = self._clock()
        if now_s - self._temp_s < TEMPERATURE_PERIOD_S:
            return
        found: list[float | None] = []
        for thermometer in self._thermometers:
            with suppress(Exception):
                found.append(thermometer())
        self._temp_c, self._temp_s = _hotter(*found), now_s
        for window in list(self._windows):
            window.temp_c = _hotter(window.temp_c, self._temp_c)

    def _figure(self, window: Window, now_s: float, tally: Tally) -> EnergyFigure:
        spent, seconds = tally.since(window.start), max(0.0, now_s - window.start_s)
        facts = self._sampler.facts(tally)
        return make_figure(spent, seconds, facts, temp_c=window.temp_c, label=window.label)


def _hotter(*degrees: float | None) -> float | None:
    return max((c for c in degrees if c is not None), default=None)
