"""How long ``edge-sel --help`` and the first update of the default run take, from the start of the process.

    python tools/bench_startup.py [--runs 9]

Medians over fresh processes; wall seconds, and CPU seconds of the process for ``--help``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median


def help_seconds() -> tuple[float, float]:
    """(wall, CPU) of ``edge-sel --help``."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start_s = time.perf_counter()
    subprocess.run([sys.executable, "-m", "edge_sel", "--help"], check=True, stdout=subprocess.DEVNULL)
    wall_s = time.perf_counter() - start_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_step_seconds() -> float:
    """Wall seconds from launching the default run to its first update."""
    with tempfile.TemporaryDirectory() as scratch:
        start_s = time.time()
        command = [
            sys.executable,
            "-m",
            "edge_sel",
            "finetune",
            "--json",
            "--out",
            f"{scratch}/run",
            "--feature-store",
            "off",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        events = (Path(scratch) / "run" / "events.jsonl").read_text().splitlines()
    return next(e["unix_s"] for e in map(json.loads, events) if e["event"] == "first_step") - start_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    helps = [help_seconds() for _ in range(runs)]
    steps = [first_step_seconds() for _ in range(runs)]
    wall_s, cpu_s = median(h[0] for h in helps), median(h[1] for h in helps)
    print(f"edge-sel --help: {wall_s:.3f} s wall, {cpu_s:.3f} s CPU, n={runs}")
    print(f"default run, start to first update: {median(steps):.2f} s wall, n={runs}")


if __name__ == "__main__":
    main()
