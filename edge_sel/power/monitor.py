"""``EnergyMonitor``: joules of any code, on this device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from edge_sel.config.profiles import Profile, detect_profile, load_profile
from edge_sel.power.figure import EnergyFigure
from edge_sel.power.find import find_meter, why_none
from edge_sel.power.meter import Meter, Probe
from edge_sel.power.recorder import EnergyRecorder
from edge_sel.power.temperature import find_thermometer


class Measured:
    """What a window came to, once it is over."""

    def __init__(self) -> None:
        self._figure: EnergyFigure | None = None

    @property
    def figure(self) -> EnergyFigure:
        """Joules, watts, seconds, degrees, and whether they are measured or modelled.

        Raises:
            RuntimeError: the window is still open.
        """
        if self._figure is None:
            raise RuntimeError("the window is still open: its energy is known at its end")
        return self._figure

    @property
    def total_j(self) -> float | None:
        """Joules of the whole device or processor, idle power included; None without a meter."""
        return self.figure.total_j


class EnergyMonitor(Measured):
    """Measures what runs inside of it; windows of it may nest and overlap::

        with EnergyMonitor() as monitor:
            with monitor.window("epoch") as epoch:
                train()
        print(epoch.total_j, monitor.figure.source)

    The meter is the best one that gives values here (Jetson rails, RAPL, NVML, battery), else a model of this
    process's processor time; ``figure.source`` tells which. What it cannot measure is None, never a guess. A meter that
    fails meanwhile makes the figures ``unavailable``; nothing is raised into the code that is measured.

    Args:
        meter: ``auto``, one of those that ``edge-sel doctor`` lists, or one of the caller's own, which is closed in
            the end.
        profile: of the device, by name or .toml file, for idle and highest power; None to detect it.
        idle_s: how many seconds to measure idle power at the beginning, with a meter that measures.

    Attributes:
        probes: every meter that was tried, and why it was not taken.

    Raises:
        EdgeSelError: no such meter or profile.
    """

    def __init__(
        self, meter: Meter | str = "auto", *, profile: Profile | str | None = None, idle_s: float = 0.0
    ) -> None:
        super().__init__()
        if not isinstance(profile, Profile):
            profile = load_profile(detect_profile() if profile is None else profile)
        self.profile, self._idle_s = profile, idle_s
        found, probes = find_meter(profile, meter) if isinstance(meter, str) else (meter, [])
        self.probes: tuple[Probe, ...] = tuple(probes)
        self._recorder = EnergyRecorder(
            found, profile=profile, temperature=find_thermometer(), why_none=why_none(probes)
        )

    def __enter__(self) -> EnergyMonitor:
        self._recorder.__enter__()
        self._recorder.measure_idle(self._idle_s)
        self._window = self._recorder.start_window("all")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._figure = self._recorder.end_window(self._window)
        self._recorder.__exit__(kind, error, trace)

    @contextmanager
    def window(self, label: str = "") -> Iterator[Measured]:
        """A stretch of its own; its figure is there at its end, also when an exception ends it."""
        measured, opened = Measured(), self._recorder.start_window(label)
        try:
            yield measured
        finally:
            measured._figure = self._recorder.end_window(opened)
