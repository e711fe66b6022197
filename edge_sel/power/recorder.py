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
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any

from edge_sel.config.profiles import Profile
from edge_sel.power.figure import (
    EnergyFigure,
    Moment,
    PhaseClock,
    Phases,
    RecorderCost,
    Window,
    add_phases,
    make_figure,
    one_step,
    share_out,
)
from edge_sel.power.meter import NO_METER, Meter, MeterError, Reading, read_checked
from edge_sel.power.resources import logical_processors
from edge_sel.power.temperature import PERIOD_S, Thermometer, hotter, hottest_c

HANG_S = 2.0
"""How long a reading may take before the meter is given up."""


class Sampler:
    """The sums of a meter's readings, for any number of threads to bring up to date.

    Args:
        meter: what is read; None is a meter that was lost from the beginning.
        phases: tells the time, and how much of it each phase had.
        gap_limit_s: samples further apart leave a gap.
        on_event: is given one dict when the meter is lost.
        hang_s: how long a reading may take before the meter is given up.
        why_none: why there is no meter, if there is none.

    """

    def __init__(
        self,
        meter: Meter | None,
        phases: PhaseClock,
        gap_limit_s: float,
        on_event: Callable[[dict[str, Any]], None] | None,
        hang_s: float = HANG_S,
        why_none: str = NO_METER,
    ) -> None:
        self._meter, self._phases, self._gap_limit_s, self._on_event = meter, phases, gap_limit_s, on_event
        self._hang_s = hang_s
        self._lock, self._losing = threading.Lock(), threading.Lock()
        self._moment = Moment(0.0)
        self._ended: Moment | None = None
        self.idle_w: float | None = None
        self.lost = why_none if meter is None else None

    def read(self) -> Moment:
        """Take one sample, whatever comes of it."""
        if self._ended is not None:
            return self._ended
        if self.lost is not None:
            return self._unread()
        if not self._lock.acquire(timeout=self._hang_s):
            self._lose(MeterError("it does not answer any more"))
            return self._unread()
        try:
            return self._sample()
        except MeterError as error:
            self._lose(error)
        except Exception as error:  # a driver may throw anything, and the run must go on
            self._lose(MeterError(f"{type(error).__name__}: {error}"))
        finally:
            self._lock.release()
        return self._unread()

    def latest(self) -> Moment:
        """The moment of the latest sample; now, once there are no more."""
        return self._ended or (self._moment if self.lost is None else self._unread())

    def close(self, *, hung: bool) -> None:
        """Take the last sample and close the meter, unless another thread hangs in it."""
        self._ended = self.read()
        if self._meter is not None and not hung:
            with suppress(Exception):
                self._meter.close()

    def _sample(self) -> Moment:
        """Read the meter. The phases are cut at the time the reading is dated, before the meter takes its time."""
        if self._meter is None or self.lost is not None:
            return self._unread()
        now_s, times, parts = self._phases.cut()
        return self._count(read_checked(self._meter, now_s), now_s, times, parts)

    def _count(self, reading: Reading, now_s: float, times: Phases, parts: Phases) -> Moment:
        moment, last = self._moment._replace(time_s=now_s, times=times), self._moment.reading
        if self.lost is not None:  # it did answer, but only after it was given up
            return moment
        if last is not None:
            tally = moment.tally.plus(one_step(last, reading, self._gap_limit_s, self.idle_w))
            joules = share_out(parts, tally.since(moment.tally), self.idle_w)
            moment = moment._replace(tally=tally, joules=add_phases(moment.joules, joules))
        self._moment = moment._replace(reading=reading)
        return self._moment

    def _unread(self) -> Moment:
        """Time goes on; joules do not."""
        now_s, times, _ = self._phases.cut()
        return self._moment._replace(time_s=now_s, times=times)

    def _lose(self, error: MeterError) -> None:
        with self._losing:
            if self.lost is not None or self._meter is None:
                return
            self.lost = error.reason
        event = {"event": "meter_lost", "meter": self._meter.name, "why": error.reason, "fix": error.fix}
        if self._on_event is not None:
            with suppress(Exception):
                self._on_event({**event, "time_s": self._phases.cut()[0]})


def clock_through_sleep() -> float:
    """Seconds that go on while the machine is suspended, where the system can tell (Linux)."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


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

    def phase(self, name: str) -> AbstractContextManager[None]:
        """A context manager: the time inside it, and its joules, are this phase's in every window that is open.

        Entering and leaving read two clocks, not the meter. An inner phase takes the place of the outer one, which
        goes on after it. One thread only may use phases. Their sums are kept for good, so names should be few.
        """
        return self._phases.phase(name)

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
        return make_figure(window, moment, self._meter, self._sampler.idle_w, self._sampler.lost)
