"""A run's figures in a file that a monitoring system collects: ``--metrics-file``.

The format is OpenMetrics text, of which only gauges and counters are used: node_exporter's textfile collector reads
Prometheus's older format, which knows no other of OpenMetrics' types and drops the whole file where it meets one.
That collector takes files that end in ``.prom``. What is not known has no line: it is never 0 and never NaN.

Counters begin anew with each part of a run that was stopped and resumed, as Prometheus expects of them. The series do
not name their run, so that they go on from one run to the next; ``edge_sel_info`` does. So of several runs on one
device only one may write into a collector's folder. A run that was killed leaves the file as it was: look at its
age (``node_textfile_mtime_seconds``).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edge_sel.files import open_no_link, refuse_device
from edge_sel.power.figure import EnergyFigure
from edge_sel.power.recorder import EnergyRecorder
from edge_sel.version import __version__

WRITTEN_AT_ONCE = frozenset({"started", "resumed", "epoch", "governor", "decided", "finished", "stopped"})
"""Events that do not wait for the next period."""

REASONS = ("done", "budget", "temperature", "battery", "deadline", "power", "signal")
"""Why a run may have stopped; each has a series from the beginning, so that an alert on it can be written."""

Sample = tuple[Mapping[str, str], float | None]


class Family(NamedTuple):
    """All samples of one name, without the ``_total`` that a counter's samples end in."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    """Empty, or the last word of the name."""
    help: str
    samples: Sequence[Sample]


def to_text(families: Iterable[Family]) -> str:
    """OpenMetrics text; samples without a finite value are left out, as is a family without samples."""
    lines = []
    for name, kind, unit, text, samples in families:
        known = [(labels, value) for labels, value in samples if value is not None and math.isfinite(value)]
        if known:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [f"# UNIT {name} {unit}"] if unit else []
            end = "_total" if kind == "counter" else ""
            lines += [f"{name}{end}{_labels(labels)} {float(value)!r}" for labels, value in known]
    return "\n".join([*lines, "# EOF", ""])


def _labels(labels: Mapping[str, str]) -> str:
    escape = {"\\": r"\\", '"': r"\"", "\n": r"\n"}
    pairs = [f'{key}="{"".join(escape.get(c, c) for c in value)}"' for key, value in labels.items()]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _gauge(name: str, unit: str, text: str, value: float | None, labels: Mapping[str, str] | None = None) -> Family:
    return Family(name, "gauge", unit, text, [(labels or {}, value)])


def _count(name: str, text: str, value: float) -> Family:
    return Family(name, "counter", "", text, [({}, value)])


class MetricsFile:
    """A listener of a session that keeps the file up to date; a failing disk never reaches the run.

    Args:
        path: the file; its folder must be there.
        recorder: a started energy recorder; joules are counted from now on.
        run: what the run is called, such as its folder.
        clock: monotonic seconds.
        period_s: between two writes, other than those of ``WRITTEN_AT_ONCE``.
        on_error: is told once, in one line, when the file cannot be written; writing is tried again all the same.

    """

    def __init__(
        self,
        path: Path,
        recorder: EnergyRecorder,
        run: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        period_s: float = 1.0,
        on_error: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._path, self._recorder, self._run = path, recorder, run
        self._clock, self._period_s, self._on_error = clock, period_s, on_error
        self._window = recorder.start_window("metrics")
        self._mark: EnergyFigure | None = None
        self._power_w: float | None = None
        self._written_s = -math.inf
        self._failed = False
        self._plan, self._reason = "", ""
        self._known: dict[str, float | None] = {}
        self._steps = self._images = self._images_of_epoch = 0
        self._stage_step: int | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        """Take in one event; write the file if it is time to."""
        kind = event.get("event")
        if kind == "meter_lost":  # told by the recorder's thread; the next write shows it
            return
        self._learn(str(kind), event)
        now_s = self._clock()
        if kind in WRITTEN_AT_ONCE or now_s - self._written_s >= self._period_s:
            self._written_s = now_s
            self._write(to_text(self._families()))

    def _learn(self, kind: str, event: Mapping[str, Any]) -> None:
        if kind == "started":
            self._known["epoch"], self._stage_step = 0, 0
        elif kind == "stage_begun":
            # The training stage in which a run is resumed goes on at a step that only its first boundary tells.
            self._plan = str(event.get("plan", ""))
            self._stage_step = None if self._stage_step is None else 0
        elif kind == "step":
            step = int(event.get("step", 0))
            self._steps += max(0, step - (step if self._stage_step is None else self._stage_step))
            self._stage_step = step
            self._images_of_epoch = int(event.get("trained", 0))
        elif kind == "evaluated":
            self._known["validation"] = event.get("accuracy", {}).get("validation_before")
        elif kind == "epoch":
            self._known |= {"epoch": event.get("epoch"), "validation": event.get("validation_acc")}
            self._images, self._images_of_epoch = self._images + int(event.get("trained", 0)), 0
        elif kind == "decided":
            self._known["validation"] = event.get("after" if event.get("shipped") else "before")
        elif kind == "governor":
            self._known["paused"] = float(event.get("action") == "pause")
        elif kind == "stopped":
            self._reason, self._known["paused"] = str(event.get("reason", "")), 0.0
        elif kind == "finished":  # also of a run that a limit has stopped
            self._reason = self._reason or "done"
        self._known |= {key: event[key] for key in ("active_rate", "pressure") if key in event}

    def _families(self) -> list[Family]:
        figure = self._recorder.peek(self._window)
        power_w = self._mean_power_w(figure)
        meter = {"meter": figure.meter or "", "source": figure.source}
        spent_j = figure.total_j if figure.seconds > 0 else None
        stopped = [({"reason": r}, float(r == self._reason)) for r in dict.fromkeys([*REASONS, self._reason]) if r]
        about = {"run": self._run, "plan": self._plan, "version": __version__}
        spent = "Gross energy of the device since this part of the run began."
        known = self._known.get
        return [
            Family("edge_sel_energy_joules", "counter", "joules", spent, [(meter, spent_j)]),
            _gauge("edge_sel_power_watts", "watts", "Mean gross power since the previous look.", power_w, meter),
            _gauge(
                "edge_sel_temperature_celsius", "celsius", "The hottest sensor.", self._recorder.max_temperature_c()
            ),
            _gauge("edge_sel_epoch", "", "Finished epochs of the run.", known("epoch")),
            _count("edge_sel_steps", "Training steps since this part of the run began.", self._steps),
            _count(
                "edge_sel_images_trained",
                "Images trained on since this part of the run began, each time they were.",
                self._images + self._images_of_epoch,
            ),
            _gauge(
                "edge_sel_validation_accuracy_ratio", "ratio", "Accuracy on the validation set.", known("validation")
            ),
            _gauge("edge_sel_gate_rate_ratio", "ratio", "Share of images the gate let pass.", known("active_rate")),
            _gauge("edge_sel_pressure_ratio", "ratio", "How far the target rate is lowered.", known("pressure")),
            _gauge("edge_sel_paused", "", "1 while the governor lets the run wait.", known("paused")),
            Family("edge_sel_stopped", "gauge", "", "1 for the reason why the run ended.", stopped),
            _gauge("edge_sel_info", "", "The run, its plan now, and the version of edge-sel.", 1.0, about),
        ]

    def _mean_power_w(self, figure: EnergyFigure) -> float | None:
        """Watts between two looks that are at least a period apart; a gap in between makes them unknown."""
        before = self._mark
        if before is None or figure.total_j is None or before.total_j is None:
            self._mark, self._power_w = figure, None
        elif figure.seconds - before.seconds >= self._period_s:
            whole = figure.gap_s == before.gap_s
            spent_j, seconds = figure.total_j - before.total_j, figure.seconds - before.seconds
            self._mark, self._power_w = figure, spent_j / seconds if whole and seconds > 0 else None
        return self._power_w

    def _write(self, text: str) -> None:
        try:
            write_metrics(self._path, text)
        except OSError as error:
            if not self._failed:
                self._failed = True
                self._on_error(f"cannot write the metrics ({error.strerror or error}): {self._path}")


def write_metrics(path: Path, text: str) -> None:
    """Replace the file in one go. Not fsynced: after a power cut there is nobody whom these figures help.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        refuse_device(path)
        with open_no_link(temporary, "wb") as file:
            file.write(text.encode("utf-8", "replace"))  # a folder's name need not be UTF-8
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
