"""A watcher for a long time: many images, kills, labels; what its memory and its files do.

    python tools/watch_soak.py --work DIR [--images 200000] [--kills 50] [--at-once 20000]

Digits with noise of their own are written into a folder in bursts and removed by the camera when they have been seen.
`edge-sel watch` is killed (SIGKILL) at random moments and started again; meanwhile another process adds labels. At the
end: each image has one line, the counters agree with the lines, no label is lost; memory and handles over time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from edge_sel.data.builtin import load_relit
from edge_sel.watch.records import Records

PACK = Path(__file__).parents[1] / "edge_sel" / "pack" / "assets" / "digits.edgepack"
BURST = 500
WAITING = 3000
"""Files that wait, at most: the camera then pauses."""


def main() -> None:
    """Run to the end, then print one JSON object; status 1 where something was lost or counted twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--at-once", type=int, default=20_000, help="files that are there before it begins")
    given = parser.parse_args()
    shutil.rmtree(given.work, ignore_errors=True)
    camera, home = given.work / "camera", given.work / "home"
    camera.mkdir(parents=True)
    rng = np.random.default_rng(0)
    digits = load_relit("field")
    pixels = digits.read(np.arange(len(digits))).astype(np.int16)
    write_burst(camera, pixels, 0, given.at_once, rng)
    process = start(camera, home)
    wait_for(lambda: (home / "home.json").exists())
    records = Records(home)
    written, kills, labels = given.at_once, 0, 0
    memory: list[dict[str, Any]] = []
    began_s = sampled_s = time.monotonic()
    while True:
        seen = records.counters().get("images", 0)
        if written < given.images and written - seen < WAITING:
            write_burst(camera, pixels, written, min(BURST, given.images - written), rng)
            written += BURST
        remove_seen(camera, records)
        kept = records.kept()
        if kept and labels * 400 < seen:
            records.add_label(kept[int(rng.integers(len(kept)))].number, str(rng.integers(10)), "soak", time.time())
            labels += 1
        if kills < given.kills and seen > (kills + 1) * given.images / (given.kills + 1):
            process.kill()
            process.wait()
            kills += 1
            process = start(camera, home)
        if time.monotonic() - sampled_s > 5:
            sampled_s = time.monotonic()
            memory.append({"seen": seen, "kills": kills, **usage(process)})
        if seen >= given.images:
            break
        if process.poll() is not None:
            raise SystemExit(f"the watcher has ended: {process.returncode}")
        time.sleep(0.05)
    process.terminate()
    process.wait()
    took_s = time.monotonic() - began_s
    summary = verdict(home, given.images, labels, memory) | {"kills": kills, "seconds": round(took_s)}
    print(json.dumps(summary))
    sys.exit(0 if summary["lost"] == summary["twice"] == summary["labels_lost"] == 0 else 1)


def start(camera: Path, home: Path) -> subprocess.Popen[bytes]:
    """A watcher of its own process."""
    model = [] if (home / "home.json").exists() else ["--model", str(PACK)]
    command = [sys.executable, "-m", "edge_sel", "watch", str(camera), "--home", str(home), *model, "--threads", "1"]
    return subprocess.Popen([*command, "--keep", "300", "--no-learning"], stdout=subprocess.DEVNULL)


def write_burst(camera: Path, pixels: np.ndarray, first: int, count: int, rng: np.random.Generator) -> None:
    """Files that are there at once, each with noise of its own and a number in its first pixels."""
    for number in range(first, first + count):
        image = pixels[number % len(pixels)] + rng.integers(-12, 13, pixels.shape[1:])
        content = np.clip(image, 0, 255).astype(np.uint8)
        content[0, 0] = number & 255, number >> 8 & 255, number >> 16 & 255
        path = camera / f"{number:07d}.png"
        Image.fromarray(content).save(path.with_suffix(".tmp"), "PNG", compress_level=1)
        path.with_suffix(".tmp").rename(path)


def remove_seen(camera: Path, records: Records) -> None:
    """As a camera's ring of files does."""
    files = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in camera.glob("*.png")]
    unknown = {source for source, *_ in records.unknown(files)}
    for source, *_ in files:
        if source not in unknown:
            Path(source).unlink()


def usage(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Resident megabytes and open files of the watcher."""
    try:
        of = psutil.Process(process.pid)
        return {
            "mb": round(of.memory_info().rss / 2**20, 1),
            "files": of.num_fds(),
            "age_s": time.time() - of.create_time(),
        }
    except psutil.Error:
        return {"mb": None, "files": None, "age_s": 0}


def verdict(home: Path, images: int, labels: int, memory: list[dict[str, Any]]) -> dict[str, Any]:
    """What is there at the end."""
    with sqlite3.connect(home / "watch.sqlite") as records:
        (lines,) = records.execute("SELECT count(*) FROM images WHERE source LIKE '%.png'").fetchone()
        (sources,) = records.execute("SELECT count(DISTINCT source) FROM images").fetchone()
        (labelled,) = records.execute("SELECT count(*) FROM labels").fetchone()
        counters = dict(records.execute("SELECT name, value FROM counters"))
    settled = [row for row in memory if row["mb"] and row["age_s"] > 10]
    slope = None
    if len(settled) > 2:
        slope = float(np.polyfit([row["seen"] for row in settled], [row["mb"] for row in settled], 1)[0]) * 1e5
    twice = abs(lines - sources) + abs(counters["images"] - lines)
    return {
        "images": images, "lost": max(images - sources, 0), "twice": twice,
        "labels": labels, "labels_lost": labels - labelled, "mb_per_100_000_images": slope,
        "mb": [min(row["mb"] for row in settled), max(row["mb"] for row in settled)] if settled else None,
        "files": [min(row["files"] for row in settled), max(row["files"] for row in settled)] if settled else None,
        "counters": counters,
    }  # fmt: skip


def wait_for(reached: Any) -> None:
    """At most a minute."""
    deadline_s = time.monotonic() + 60
    while not reached():
        if time.monotonic() > deadline_s:
            raise SystemExit("the home was not made")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
