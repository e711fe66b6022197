"""A governor whose limits, time and joules are given by hand."""

from __future__ import annotations

from contextlib import contextmanager

from edge_sel.edge.governor import Governor
from edge_sel.edge.limits import Decision, Limit, Readings

PAUSE, STOP = Decision("pause", "too much"), Decision("stop", "far too much")


class Scripted(Limit):
    """Gives these verdicts in turn, the last one for ever, and keeps what it was asked."""

    def __init__(self, *verdicts, name="script", rests=False):
        self.name, self.stopped, self.rests = name, f"by {name}", rests
        self.verdicts, self.asked = list(verdicts), []

    def check(self, readings, forecast, *, paused, ending):
        self.asked.append((readings, forecast, paused, ending))
        return self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]

    @property
    def forecast(self):
        return self.asked[-1][1]


class Bench:
    """A governor with time and joules of its own: sleeping takes two watts."""

    def __init__(self, *limits, interrupt_s=float("inf")):
        self.now_s, self.spent_j = 1000.0, 0.0
        self.looks, self.events, self.slept, self.idle = 0, [], [], []
        self.governor = Governor(
            limits, self.sense, sleep=self.sleep, emit=self.emit,
            interrupted=lambda: self.now_s >= interrupt_s, idle=self.resting,
        )  # fmt: skip

    def sense(self):
        self.looks += 1
        return Readings(self.now_s, self.spent_j)

    def sleep(self, seconds):
        assert self.idle[-1] == "begin", "what is slept is idle"
        self.slept.append(seconds)
        self.work(seconds, 2.0)

    def emit(self, event, **details):
        assert event == "governor"
        self.events.append(details)

    @contextmanager
    def resting(self):
        self.idle.append("begin")
        yield
        self.idle.append("end")

    def work(self, seconds, watts=10.0):
        self.now_s, self.spent_j = self.now_s + seconds, self.spent_j + seconds * watts

    def step(self, left, seconds=1.0, watts=10.0):
        self.work(seconds, watts)
        return self.governor.at_boundary(left)

    def reported(self, key="action"):
        return [event[key] for event in self.events]
