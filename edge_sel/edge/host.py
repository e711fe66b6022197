"""The device that a session runs on: clocks, sensors and signals. All of them are passed in, so that a run replays."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_sel.power.battery import Supply
from edge_sel.power.throttle import Throttle

Listener = Callable[[dict[str, Any]], None]
"""Is told every event of a run."""
Notice = tuple[str, dict[str, Any]]
"""An event and its details."""


@dataclass(frozen=True)
class Host:
    """What a session asks its device, and whom it tells.

    Attributes:
        should_stop: asked at every step boundary; a reason stops the run, resumably.
        listener: told every event.
        clock: monotonic seconds, for checkpoint intervals and event times.
        cpu_time: processor seconds of this process, for what is chosen by its cost.
        wall_clock: Unix seconds, for the event of the first gradient step.
        sleep: waits so many seconds, when the governor says so.
        supply: charge and mains.
        minute: of the local day.
        throttling: what slows the device down, now and since it was started.
    """

    should_stop: Callable[[], str | None] = lambda: None
    listener: Listener = lambda event: None
    clock: Callable[[], float] = time.monotonic
    cpu_time: Callable[[], float] = time.process_time
    wall_clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    supply: Callable[[], Supply] = lambda: Supply(None, None)
    minute: Callable[[], int] = lambda: 0
    throttling: Callable[[], list[Throttle]] = list


def local_minute() -> int:
    """Of the local day, for quiet hours."""
    now = time.localtime()
    return 60 * now.tm_hour + now.tm_min
