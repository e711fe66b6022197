"""``edge-sel`` in a process of its own, with what it took."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import edge_sel

MOST_CPU_S, MOST_MB, PATIENCE_S = 2.0, 300, 100


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    cpu_s: float
    peak_mb: float


MEASURE = """\
import json, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
open(sys.argv[1], "w").write(json.dumps([code, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""
"""In a process of its own: what a child is said to have taken includes what its parent had before."""


def command(*arguments: object, cwd: Path) -> Ended:
    """``edge-sel ARGUMENTS``, and what it took, with the processes that it started."""
    source = {"PYTHONPATH": str(Path(edge_sel.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    measured, words = cwd / "measured.json", ["-m", "edge_sel", *map(str, arguments)]
    child = subprocess.Popen(
        [sys.executable, "-c", MEASURE, measured, sys.executable, *words], cwd=cwd, env={**os.environ, **source},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = child.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        pytest.fail("it hangs")
    code, cpu_s, peak_mb = json.loads(measured.read_text())
    return Ended(code, out, err, cpu_s, peak_mb)


def refused(ended: Ended, *words: str) -> None:
    lines = ended.err.splitlines()
    assert ended.code == 4 and len(lines) == 1 and lines[0].startswith("edge-sel: "), ended
    assert ended.cpu_s < MOST_CPU_S and ended.peak_mb < MOST_MB and ended.out == "", ended
    for word in words:
        assert word in lines[0]
