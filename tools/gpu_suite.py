"""All that needs an NVIDIA GPU, most valuable first, within a budget of time; a second call goes on.

    python tools/gpu_suite.py --images cifar10-jpeg.tar.gz --out gpu --budget 25m
    python tools/gpu_suite.py --list                                       # what it would run
    python tools/gpu_suite.py --smoke --out /tmp/gpu --budget 5m           # on any machine: tiny, on digits

Images are a folder with ``train`` and ``test`` (a folder for each class), or an archive of such a folder; it is
unpacked into the system's folder for temporary files. Nothing is installed or downloaded: the machine's own Python and
torch are used, and edge-sel from this checkout.

In OUT: a log of each job, its output as ``JOB.json`` where that is JSON, ``reference/`` with the results of every
system and seed, ``reference.csv``, and ``jobs.json``, which tells what is done. A job that the budget stops is asked to
save (SIGTERM) and goes on at the next call, as one that failed is tried again. Checkpoints and weights stay in OUT;
``--pack`` writes all but these into one small archive.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu.jobs import Job, all_jobs

from edge_sel.files import write_json
from edge_sel.units import format_duration, parse_duration_s

ROOT = Path(__file__).parents[1]
GRACE_S = 20.0
"""For saving a checkpoint after SIGTERM."""
RESULTS = {".json", ".csv", ".log"}
"""Ends of names of what is packed."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder with train/ and test/, or an archive of one")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="results; the same folder goes on [default: gpu]")
    parser.add_argument("--budget", type=parse_duration_s, default=1500.0, help="time for all jobs [default: 25m]")
    parser.add_argument("--only", help="these jobs, comma-separated")
    parser.add_argument("--again", help="these jobs, comma-separated, even if they are done")
    parser.add_argument("--weights", default="auto", choices=["auto", "random"], help="random: download none")
    parser.add_argument("--pack", type=Path, help="archive (.tar.gz) to write of the results at the end")
    parser.add_argument("--smoke", action="store_true", help="tiny, on a processor")
    parser.add_argument("--list", action="store_true", help="only say what it would run")
    options = parser.parse_args()
    if not options.images and not options.smoke and not options.list:
        parser.error("--images is needed (a folder with train/ and test/, or an archive of one)")
    if options.images and not options.images.exists():
        parser.error(f"no such images: {options.images}")
    return options


def unpacked(images: Path) -> Path:
    """The folder of the images; an archive is unpacked once."""
    if images.is_dir():
        return images
    target = Path(tempfile.gettempdir()) / f"{images.name.partition('.')[0]}-{images.stat().st_size}"
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch, tarfile.open(images) as archive:
            archive.extractall(Path(scratch) / "images", filter="data")
            (Path(scratch) / "images").rename(target)
    return target


def run(job: Job, out: Path, environ: dict[str, str], seconds: float) -> dict[str, Any]:
    """One job within so many seconds; what became of it."""
    began_s = time.monotonic()
    output, log = out / f"{job.name}.output", out / f"{job.name}.log"
    with output.open("wb") as stdout, log.open("ab") as stderr:
        stderr.write(f"\n$ {' '.join(job.words)}\n".encode())
        stderr.flush()
        try:
            process = subprocess.Popen(
                job.words, stdout=stdout, stderr=stderr, cwd=ROOT, env=environ, start_new_session=True
            )
        except OSError as error:
            stderr.write(f"{error}\n".encode())
            return {"status": "failed", "exit": None, "seconds": 0.0}
        status, stopped = wait(process, seconds)
    keep(output, log)
    word = "done" if status == 0 else "unfinished" if stopped or status == 75 else "failed"
    return {"status": word, "exit": status, "seconds": round(time.monotonic() - began_s, 1)}


def wait(process: subprocess.Popen[bytes], seconds: float) -> tuple[int, bool]:
    """The exit status, and whether the time was up: then it and all that it started are asked to save, and ended."""
    try:
        return process.wait(seconds), False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        return process.wait(GRACE_S), True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait(), True


def keep(output: Path, log: Path) -> None:
    """What a job printed: its own file where that is JSON, else the end of its log."""
    text = output.read_bytes()
    try:
        json.loads(text)
        output.replace(output.with_suffix(".json"))
    except ValueError:
        with log.open("ab") as file:
            file.write(text)
        output.unlink()


def pack(out: Path, archive: Path) -> None:
    """All results, without checkpoints and weights."""
    with tarfile.open(archive, "w:gz") as file:
        for path in sorted(out.rglob("*")):
            if path.suffix in RESULTS and path.is_file() and "checkpoints" not in path.parts:
                file.add(path, path.relative_to(out.parent))


def main() -> None:
    options = parse()
    until_s = time.monotonic() + options.budget
    only, again = ((given or "").split(",") if given else [] for given in (options.only, options.again))
    images = "" if options.smoke or options.list else str(unpacked(options.images).resolve())
    jobs = all_jobs(options.out.resolve(), images, weights=options.weights, smoke=options.smoke)
    if unknown := {*only, *again} - {job.name for job in jobs}:
        raise SystemExit(f"no such job: {', '.join(sorted(unknown))} (see --list)")
    if options.list:
        print("\n".join(f"{job.name:10} {job.what}: {' '.join(job.words)}" for job in jobs))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out / "jobs.json"
    outcomes = json.loads(record.read_text()) if record.exists() else {}
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environ |= {"EDGE_SEL_CIFAR10": images} if images else {}
    for job in jobs:
        done = outcomes.get(job.name, {}).get("status") == "done" and job.name not in again
        if done or (only and job.name not in only):
            continue
        left_s = until_s - time.monotonic() - GRACE_S
        if left_s < job.least_s:
            print(f"{job.name:10} not begun: {max(left_s, 0):.0f} s are left, it wants {job.least_s:.0f}", flush=True)
            continue
        outcomes[job.name] = run(job, options.out, environ, left_s)
        write_json(record, outcomes)
        took = format_duration(outcomes[job.name]["seconds"])
        print(
            f"{job.name:10} {outcomes[job.name]['status']} after {took} (status {outcomes[job.name]['exit']})",
            flush=True,
        )
    table = [sys.executable, str(ROOT / "tools" / "reference_table.py"), str(options.out / "reference")]
    subprocess.run([*table, "--csv", str(options.out / "reference.csv")], env=environ, check=False)
    if options.pack:
        pack(options.out, options.pack)


if __name__ == "__main__":
    main()
