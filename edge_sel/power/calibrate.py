"""The two constants of the psutil model from measurements: a line through watts against processor load.

    watts = idle_w + (max_w - idle_w) * utilisation

The measurements are those of a meter (``tools/calibrate_power.py``) or what a user read off a plug meter.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, linear_regression
from textwrap import wrap
from typing import NamedTuple

from edge_sel.config.profiles import Profile
from edge_sel.errors import DataError, UsageError

COLUMNS = ("utilisation", "watts")
LEAST_SPREAD = 0.2
"""From the least to the greatest utilisation; a line drawn from less says little about its ends."""
LEAST_RISE_W = 0.01


class Point(NamedTuple):
    """One measurement."""

    utilisation: float
    """BusyError processor time divided by all of it, 0 to 1."""
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
