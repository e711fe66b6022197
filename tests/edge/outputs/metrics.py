"""A metrics file that is written by hand, and read back with its grammar checked."""

from __future__ import annotations

import re
from pathlib import Path

from edge_sel.edge.outputs.openmetrics import MetricsFile
from edge_sel.power.meter import MeterError, Reading
from edge_sel.power.recorder import EnergyRecorder

NAME = r"[a-zA-Z_][a-zA-Z0-9_]*"
LABEL = rf'{NAME}="(?:[^"\\\n]|\\["\\n])*"'
NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? ({NUMBER})")
META = re.compile(rf"# (HELP|TYPE|UNIT) ({NAME}) (.+)")


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Lamp:
    """10 W, told by a counter."""

    name, source, min_window_s = "lamp", "measured", 0.0

    def __init__(self) -> None:
        self.broken = False
        self.reads = 0

    def read(self, now_s: float) -> Reading:
        self.reads += 1
        if self.broken:
            raise MeterError("it is gone")
        return Reading(now_s, 10.0 * now_s, None)

    def close(self) -> None:
        pass


class Bench:
    """A recorder by hand, a metrics file and a clock."""

    def __init__(self, folder: Path, **given) -> None:
        self.clock, self.lamp, self.temp_c = Clock(), Lamp(), 41.5
        self.recorder = EnergyRecorder(self.lamp, self.clock, background=False, temperature=lambda: self.temp_c)
        self.recorder.sample_once()
        self.path = folder / "edge_sel.prom"
        self.errors: list[str] = []
        given = {"clock": self.clock, "on_error": self.errors.append, "run": "runs/a", **given}
        self.file = MetricsFile(self.path, self.recorder, **given)

    def wait(self, seconds: float) -> None:
        for _ in range(steps := max(1, round(2 * seconds))):
            self.clock.now_s += seconds / steps
            self.recorder.sample_once()

    def tell(self, event: str, **details) -> dict[str, float]:
        self.file({"event": event, **details})
        return self.samples()

    def samples(self) -> dict[str, float]:
        return samples(self.path)


def samples(path: Path) -> dict[str, float]:
    """Every sample by its name and labels, of a file whose grammar is checked on the way."""
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n# EOF\n") and text.count("# EOF") == 1 and "\n\n" not in text
    found: dict[str, float] = {}
    family, kind, families = "", "", set()
    for line in text.splitlines()[:-1]:
        if meta := META.fullmatch(line):
            word, name, rest = meta.groups()
            if word == "HELP":
                assert name not in families, f"{name} twice"
                families.add(family := name)
            assert name == family, line
            if word == "TYPE":
                kind = rest
                assert kind in ("counter", "gauge"), "node_exporter drops the whole file for any other"
            if word == "UNIT":
                assert name.endswith(f"_{rest}")
        else:
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            name, labels, value = sample.groups()
            assert name == family + ("_total" if kind == "counter" else ""), line
            key = f"{name}{{{labels}}}" if labels else name
            assert key not in found, line
            found[key] = float(value)
    return found


LAMP = '{meter="lamp",source="measured"}'
