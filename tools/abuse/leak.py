"""Whether sessions in one process leave memory, open files or disk space behind."""

from __future__ import annotations

import time
from itertools import cycle
from pathlib import Path
from shutil import rmtree

import numpy as np
import psutil

from edge_sel.api.round import train_round
from edge_sel.data.builtin import load_digits
from edge_sel.data.shifts import apply_shift
from edge_sel.pack.reader import builtin_pack

PLANS = ("closed_form", "bn,last-c25", "head")
"""In turns; one session is stopped inside and resumed each time, so that this is seen as well."""
WARM_UP = 2 * len(PLANS)
"""Sessions before the figures begin: libraries load, and allocators find their size."""
MOST_MB_PER_RUN = 0.1
"""A slope above this is called a leak: a thousand runs would take 100 MB."""


class _After:
    """``should_stop`` that stops at this step boundary; 0 for never."""

    def __init__(self, boundary: int) -> None:
        self._left = boundary

    def __call__(self) -> str | None:
        self._left -= 1
        return "signal" if self._left == 0 else None


def one_run(out: Path, plan: str) -> None:
    """A run as ``edge-sel finetune`` makes it, which is stopped once before and resumed in the same folder."""
    settings = {"plan": plan, "epochs": 1, "threads": 1, "batch_size": 64, "backbone_precision": "fp32"}
    images = apply_shift("field_camera", load_digits("field"), seed=0)
    for boundary in (3, 0):
        made = train_round(
            builtin_pack(), images, folder=out, metrics=out / "metrics.prom", resume=True, engine="ort",
            should_stop=_After(boundary), feature_cache_mb=0, **settings,
        )  # fmt: skip
    if not made.done:
        raise SystemExit(f"a run in {out} ended with {made.summary['stopped']}")


def leaks(seconds: float, scratch: Path) -> bool:
    """Run sessions for so long and print three figures; whether nothing leaks."""
    process, rss_mb, handles, began_s = psutil.Process(), [], [], time.monotonic()
    for plan in cycle(PLANS):
        one_run(scratch / "run", plan)
        rmtree(scratch / "run")
        rss_mb.append(process.memory_info().rss / 2**20)
        handles.append(process.num_fds())
        if time.monotonic() - began_s >= seconds and len(rss_mb) >= 3 * WARM_UP:
            break
    left = [path for path in scratch.rglob("*") if path.is_file()]
    warm = np.array(rss_mb[WARM_UP:])
    slope = float(np.polyfit(np.arange(len(warm)), warm, 1)[0])
    grown = handles[-1] - handles[WARM_UP]
    print(f"{len(rss_mb)} runs, each of two sessions, in {time.monotonic() - began_s:.0f} s; {WARM_UP} to warm up")
    print(f"memory: {slope:+.4f} MB per run ({warm[0]:.1f} MB at first, {warm[-1]:.1f} MB at last)")
    print(f"open files: {handles[-1]}, {grown:+d} since the warm-up")
    print(f"disk: {sum(path.stat().st_size for path in left)} bytes left in {len(left)} files")
    return slope <= MOST_MB_PER_RUN and grown <= 0 and not left
