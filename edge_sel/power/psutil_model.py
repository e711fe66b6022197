"""Where nothing can be measured: joules modelled from processor time. An estimate, and labelled so.

    P_system = idle_w + (max_w - idle_w) * busy cores / cores

Integrated exactly from the counters of the operating system, not from sampled utilisation:

    gross = idle_w * seconds + (max_w - idle_w) * busy core-seconds of the system  / cores
    net   =                    (max_w - idle_w) * busy core-seconds of this process / cores

Processes this one starts count in the gross, not in the net.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from edge_sel.config.profiles import Profile
from edge_sel.power.meter import EnergySource, MeterError, Reading, Subject
from edge_sel.power.resources import logical_processors

_BUSY = ("user", "nice", "system", "irq", "softirq")  # not idle, iowait, steal; user includes guest
_TICK_S = 0.02  # cpu_times moves in steps of 10 ms; what one reading has too much belongs to the next


class PsutilModel:
    """A counter of modelled joules.

    Args:
        idle_w: watts of the device when nothing runs.
        max_w: watts when every core is busy.
        cores: logical processors; None asks the system.
        cpu_times: returns an object with seconds in ``user``, ``nice``, ``system``, …; None asks psutil.
        process_time: processor seconds of this process, all its threads.
        clock: seconds while the machine is awake, for a sleeping one draws no idle power.

    """

    name = "psutil"
    of: ClassVar[Subject] = "processor"
    source: ClassVar[EnergySource] = "modelled"
    min_window_s = 0.1

    def __init__(
        self,
        idle_w: float,
        max_w: float,
        *,
        cores: int | None = None,
        cpu_times: Callable[[], Any] | None = None,
        process_time: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if cpu_times is None:
            try:
                import psutil
            except ImportError:
                raise MeterError("the psutil module is missing", "pip install psutil") from None
            cpu_times = psutil.cpu_times
        self.idle_w, self.span_w = idle_w, max_w - idle_w
        self.cores = cores or logical_processors()
        self._cpu_times, self._process_time, self._clock = cpu_times, process_time, clock
        self._seconds = self._busy_s = self._owed_s = 0.0
        self._last_s, self._last_busy_s = clock(), self._system_busy_s()
        self._start_process_s = process_time()

    @classmethod
    def open(cls, profile: Profile) -> PsutilModel:
        """Of the profile's idle and highest power."""
        return cls(profile.idle_w, profile.max_w)

    def read(self, now_s: float) -> Reading:
        """Modelled joules since the meter was made: the system's and this process's."""
        clock_s, busy_s = self._clock(), self._system_busy_s()
        process_s = self._process_time() - self._start_process_s
        seconds = max(0.0, clock_s - self._last_s)
        most = self.cores * seconds
        moved = self._owed_s + max(0.0, busy_s - self._last_busy_s)
        self._seconds += seconds
        self._busy_s += min(moved, most)
        self._owed_s = moved - most if 0 < moved - most <= _TICK_S * self.cores else 0.0
        self._last_s, self._last_busy_s = clock_s, busy_s
        per_core_w = self.span_w / self.cores
        # The system was at least as busy as this process, even where the system's counter lags or is frozen.
        gross = self.idle_w * self._seconds + per_core_w * max(self._busy_s, process_s)
        return Reading(now_s, gross, None, per_core_w * process_s)

    def close(self) -> None:
        """Nothing is held."""

    def _system_busy_s(self) -> float:
        try:
            times = self._cpu_times()
        except OSError as error:
            raise MeterError(
                f"the processor times cannot be read: {error}",
                "allow reading /proc/stat, or use another meter",
            ) from error
        return sum(float(getattr(times, name, 0.0)) for name in _BUSY)
