"""Fit the psutil model to this machine: a profile with its own idle and maximum watts.

    python tools/calibrate_power.py --out mine.toml [--meter auto|jetson|rapl|battery] [--seconds 10]
    python tools/calibrate_power.py --out mine.toml --watts-from plug.csv
    edge-sel finetune --profile mine.toml

The first form needs a meter that measures the whole board or the processor; it loads none, some and all cores in
turn and draws a line through the watts:

    watts = idle_w + (max_w - idle_w) * utilisation

With a plug meter, load the machine yourself (such as `stress-ng --matrix N`),
write down `utilisation,watts` (0 to 1, for N of all cores N/cores) in a CSV file and take the second form.

Nothing else should run meanwhile. What a meter does not see (of RAPL: all but processor and memory) is not in the
profile either; the file names the meter.
"""

from __future__ import annotations

import csv
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import fmean, linear_regression
from textwrap import wrap
from typing import NamedTuple

import click

from edge_sel.config.profiles import Profile, detect_profile, load_profile
from edge_sel.errors import DataError, EdgeSelError, SetupError, UsageError
from edge_sel.power.find import METER_KINDS, find_meter
from edge_sel.power.meter import Meter
from edge_sel.power.psutil_model import PsutilModel
from edge_sel.power.recorder import EnergyRecorder
from edge_sel.power.resources import logical_processors

# The loads leave the graphics card alone, so what measures it tells nothing of them.
METERS = tuple(name for name, kind in METER_KINDS.items() if kind.source == "measured" and kind.of != "gpu")
PERIOD_S = 0.1
SETTLE_S = 2.0  # clocks and voltage regulators take about a second to follow
MOST_LEVELS = 9
COLUMNS = ("utilisation", "watts")
LEAST_SPREAD = 0.2
"""From the least to the greatest utilisation; a line drawn from less says little about its ends."""
LEAST_RISE_W = 0.01
# Matrix products, as in training: they draw more than an empty loop. Ends by itself if this process is killed.
LOAD = """
import os, sys, time
import numpy as np
duty, parent, a = float(sys.argv[1]), os.getppid(), np.ones((96, 96), np.float32)
while os.getppid() == parent:
    start = time.perf_counter()
    while time.perf_counter() - start < 0.1 * duty:
        a @ a
    if duty < 1:
        time.sleep(0.1 * (1 - duty))
"""


class Point(NamedTuple):
    """One measurement."""

    utilisation: float
    """Busy processor time divided by all of it, 0 to 1."""
    watts: float
    """Above 0."""


class Fit(NamedTuple):
    """The line."""

    idle_w: float
    """Watts at utilisation 0."""
    max_w: float
    """Watts at utilisation 1."""
    error_percent: float
    """How far the points are from the line, root mean square, in per cent of their mean power."""
    worst_percent: float
    """The farthest of them, in per cent of its own power."""


def fit_line(points: Sequence[Point], where: object = None) -> Fit:
    """The least-squares line through the points.

    Args:
        points: at least two, of utilisations that differ.
        where: what to name in an error.

    Raises:
        DataError: no line that a computer can have: too little spread, falling, or below 0 W at rest.

    """
    loads, powers = [p.utilisation for p in points], [p.watts for p in points]
    if not points or max(loads) - min(loads) < LEAST_SPREAD - 1e-9:
        fix = "measure at rest and with all cores busy"
        raise DataError(f"two utilisations that lie {LEAST_SPREAD:g} apart are needed", where=where, fix=fix)
    slope, idle_w = linear_regression(loads, powers)
    if slope < LEAST_RISE_W:
        what = f"the watts do not rise with the load ({slope:+.2f} W from rest to full load)"
        raise DataError(what, where=where, fix="measure longer, and while nothing else runs")
    if idle_w < 0:
        what = f"the line gives {idle_w:.2f} W at rest"
        raise DataError(what, where=where, fix="measure longer, also at rest")
    misses = [watts - idle_w - slope * load for load, watts in points]
    rms_w = math.sqrt(fmean(miss * miss for miss in misses))
    worst = max(abs(miss) / watts for miss, watts in zip(misses, powers, strict=True))
    return Fit(idle_w, idle_w + slope, 100 * rms_w / fmean(powers), 100 * worst)


def read_points(path: Path) -> list[Point]:
    """The rows of a CSV file with the columns ``utilisation`` (0 to 1) and ``watts``.

    Raises:
        UsageError: the file cannot be read.
        DataError: a column is missing, or a row holds something else; it is named.

    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise DataError(f"no column {' or '.join(missing)}", where=path, fix="first line: utilisation,watts")
            return [_point(row, f"{path}, line {rows.line_num}") for row in rows]
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=path) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"is not CSV: {error}", where=path, fix="save it as CSV, UTF-8") from error


def _point(row: dict[str, str | None], where: str) -> Point:
    values = []
    for name in COLUMNS:
        text = row[name]
        try:
            values.append(float(text or ""))
        except ValueError:
            raise DataError(f"{name} is {text!r}, not a number", where=where, fix="such as 0.5,12.3") from None
    point = Point(*values)
    if not 0 <= point.utilisation <= 1:
        raise DataError(f"utilisation is {point.utilisation:g}, not 0 to 1", where=where, fix="0.5 is 50 %")
    if not 0 < point.watts < math.inf:
        raise DataError(f"watts is {point.watts:g}, which no computer draws", where=where)
    return point


def profile_toml(fit: Fit, base: Profile, notes: Sequence[str]) -> str:
    """A profile file: the line's two powers under the notes, everything else as in ``base``."""
    printable = ("".join(c if c.isprintable() else " " for c in note) for note in notes)
    lines = [f"# {line}" for note in printable for line in wrap(note, 117)]
    lines += ["", "[power]"]
    lines += [f"# Measured: the line through the points at utilisation 0, off by {fit.error_percent:.1f} % (rms)."]
    lines += [f"idle_w = {fit.idle_w:.3f}"]
    lines += ["# Measured: the same at utilisation 1.", f"max_w = {fit.max_w:.3f}"]
    lines += ["meters = [" + ", ".join(f'"{name}"' for name in base.meters) + "]"]
    if base.max_c is not None:
        lines += ["", "[thermal]", f"# As in the profile {base.name}.", f"max_c = {base.max_c}"]
    runtime = {"threads": base.threads, "batch_size": base.batch_size}
    given = [f"{key} = {value}" for key, value in runtime.items() if value is not None]
    if given:
        lines += ["", "[runtime]", f"# As in the profile {base.name}.", *given]
    return "\n".join(lines) + "\n"


def levels(cores: int) -> list[float]:
    """Loads to measure, in cores: from none to all; in halves where there are few, not each where there are many."""
    if cores < 4:
        return [half / 2 for half in range(2 * cores + 1)]
    steps = min(cores, MOST_LEVELS - 1)
    return [float(round(cores * step / steps)) for step in range(steps + 1)]


@contextmanager
def busy(cores: float) -> Iterator[None]:
    """So many cores busy, the last of them for a part of the time."""
    duties = [1.0] * int(cores) + [cores % 1] * (cores % 1 > 0)
    one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    children: list[subprocess.Popen[bytes]] = []
    try:
        for duty in duties:
            command = [sys.executable, "-c", LOAD, str(duty)]
            children.append(subprocess.Popen(command, env={**os.environ, **one_thread}))
        yield
        if any(child.poll() is not None for child in children):
            raise SetupError("a process that loads a core has ended", fix="is there memory left? see above")
    finally:
        for child in children:
            child.kill()
            child.wait()


def measure(
    meter: Meter,
    loads: Sequence[float],
    seconds: float,
    *,
    load: Callable[[float], AbstractContextManager[object]] = busy,
    model: PsutilModel | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = lambda line: click.echo(line, err=True),
) -> list[Point]:
    """Watts and utilisation under each of the loads, for so many seconds each.

    The utilisation is what the psutil model itself would see: with 0 and 1 W its joules are busy seconds.
    """
    model = model or PsutilModel(0.0, 1.0)
    seconds = max(seconds, meter.min_window_s)
    points = []
    with EnergyRecorder(meter, clock, period_s=PERIOD_S, background=False, temperature=lambda: None) as recorder:
        for cores in loads:
            with load(cores):
                sleep(SETTLE_S)
                window, before = recorder.start_window(), model.read(clock())
                for _ in range(round(seconds / PERIOD_S)):
                    sleep(PERIOD_S)
                    recorder.sample_once()
                after, figure = model.read(clock()), recorder.end_window(window)
            if figure.mean_power_w is None:
                raise SetupError(f"the meter {meter.name} was lost: {figure.why}", fix="see edge-sel doctor")
            used = ((after.energy_j or 0.0) - (before.energy_j or 0.0)) / (after.time_s - before.time_s)
            points.append(Point(min(1.0, used), figure.mean_power_w))
            share = f"{points[-1].utilisation:.0%} busy"
            tell(f"{cores:g} of {max(loads):g} cores loaded: {share}, {figure.mean_power_w:.2f} W")
    return points


def open_meter(base: Profile, wanted: str) -> Meter:
    """A meter that measures; SetupError with the reason of each that does not."""
    meter, probes = find_meter(replace(base, meters=METERS), wanted, kinds={name: METER_KINDS[name] for name in METERS})
    if meter is None:
        reasons = "; ".join(f"{probe.name}: {probe.why}" for probe in probes)
        fix = "see edge-sel doctor, or read a plug meter and pass --watts-from FILE.csv"
        raise SetupError(f"no meter measures here ({reasons})", fix=fix)
    return meter


def check_out(out: Path, force: bool) -> None:
    """Say now, not after minutes of measuring, that the profile could not be written."""
    if out.suffix != ".toml":
        raise UsageError("a profile is a .toml file", where=out, fix="such as --out mine.toml")
    if not out.parent.is_dir():
        raise UsageError("there is no such folder", where=out.parent)
    if not os.access(out.parent, os.W_OK):
        raise UsageError("no permission to write here", where=out.parent)
    if out.exists() and not force:
        raise UsageError("is there already", where=out, fix="take another name, or --force to replace it")


def write_profile(out: Path, text: str) -> None:
    """In one go, and only what ``load_profile`` accepts: an old file stays whole whatever happens."""
    draft = out.with_name(f".{out.stem}.draft.toml")
    try:
        draft.write_text(text, encoding="utf-8")
        load_profile(draft)
        draft.replace(out)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=out) from error
    finally:
        draft.unlink(missing_ok=True)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The profile to write, a .toml file.")
@click.option("--meter", type=click.Choice(["auto", *METERS]), default="auto", show_default=True)
@click.option("--seconds", type=click.FloatRange(1, 3600), default=10.0, show_default=True, help="For each load.")
@click.option("--watts-from", type=click.Path(path_type=Path), help="CSV with utilisation,watts; nothing is measured.")
@click.option("--profile", help="Where the other settings come from. [default: detected]")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def command(out: Path, meter: str, seconds: float, watts_from: Path | None, profile: str | None, force: bool) -> None:
    """Write a profile with the idle and maximum watts of this machine."""
    check_out(out, force)
    base = load_profile(profile or detect_profile())
    if watts_from:
        points, source = read_points(watts_from), f"the file {watts_from.name}"
    else:
        found = open_meter(base, meter)
        points, source = measure(found, levels(logical_processors()), seconds), f"the meter {found.name}"
    fit = fit_line(points, watts_from)
    cores, system = logical_processors(), f"{platform.system()} {platform.machine()}"
    notes = [
        f"{platform.node() or 'a computer'} ({system}, {cores} processors), calibrated on {date.today().isoformat()}.",
        f"{len(points)} points from {source}; the line is off by {fit.error_percent:.1f} % (rms), at most by "
        f"{fit.worst_percent:.1f} %.",
        "Points (utilisation, W): " + "; ".join(f"{p.utilisation:.3f}, {p.watts:.2f}" for p in points) + ".",
    ]
    write_profile(out, profile_toml(fit, base, notes))
    click.echo(f"{out}: {fit.idle_w:.2f} W idle to {fit.max_w:.2f} W, off by {fit.error_percent:.1f} % (rms)")


def main() -> None:
    """Run it; an expected error is one line on stderr and its exit status."""
    try:
        command.main(standalone_mode=False)
    except (EdgeSelError, click.ClickException) as error:
        line = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"calibrate_power: {line}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("calibrate_power: interrupted, nothing was written", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
