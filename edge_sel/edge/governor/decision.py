"""What a limit is told, and what it may ask for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple


class Readings(NamedTuple):
    """What the governor knows at a step boundary; None is unknown."""

    now_s: float
    spent_j: float | None = None
    """Gross joules of the run so far, its earlier parts included."""
    temp_c: float | None = None
    battery: float | None = None
    """How full, 0 to 1."""
    on_mains: bool | None = None
    minute: int = 0
    """Of the local day."""


class Forecast(NamedTuple):
    """What the next step and the end of the run are expected to take; ``None`` joules are unknown."""

    step_s: float
    step_j: float | None
    closing_s: float
    closing_j: float | None
    ahead_s: float
    """For the work that is still planned, at the gate's own rate."""
    ahead_j: float | None


class Decision(NamedTuple):
    """What one limit asks for."""

    action: Literal["go", "pause", "stop"] = "go"
    why: str = ""
    pressure: float = 0.0
    duty: float = 1.0
    """Share of the time that may be worked; the rest is slept after each step."""


GO = Decision()


class Limit(ABC):
    """One limit; ``stopped`` is the reason of a run that it stops."""

    name = ""
    stopped = ""
    rests = False
    """Whether it also holds while the run is being ended: heat and power do, for what was begun must be ended."""

    @abstractmethod
    def check(self, readings: Readings, forecast: Forecast, *, paused: bool, ending: bool) -> Decision:
        """What to do now; ``paused``: no step was taken since the last check; ``ending``: what runs will be ended."""
