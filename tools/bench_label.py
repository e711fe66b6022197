"""What one label more takes: the candidate, what is in doubt, and the next image, on one thread.

    python tools/bench_label.py --pack PACK [--labels 1000] [--kept 5000] [--repeats 7]

The features are random, around a centre for each class: times do not depend on their values. Processor seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import numpy as np

from edge_sel.engines.ort import OrtEngine
from edge_sel.watch.home import make_home, open_home
from edge_sel.watch.learner import Learner
from edge_sel.watch.records import Seen
from edge_sel.watch.teacher import Teacher


def main() -> None:
    """Print medians and the worst."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, required=True)
    for name, default in (("labels", 1000), ("kept", 5000), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder) / "home", given)))


def measure(folder: Path, given: argparse.Namespace) -> dict[str, object]:
    """In a home that is made for it."""
    make_home(folder, given.pack)
    home = open_home(folder)
    learner = Learner(home, OrtEngine(1))
    observer, rng = learner.observer, np.random.default_rng(0)
    classes, standard = observer.classes, observer.server.standard
    scale = np.where(standard.scale == 0, 1, standard.scale)
    centres = rng.standard_normal((len(classes), observer.width))
    labels = rng.integers(0, len(classes), given.kept)
    for start in range(0, given.kept, 500):
        part = labels[start : start + 500]
        noise = 3 * rng.standard_normal((len(part), observer.width))
        rows = ((centres[part] + noise) / np.sqrt(observer.width) / scale + standard.mean).astype(np.float16)
        home.records.add(
            [Seen(f"{start + at}.jpg", 1, 1, 0.0, classes[0], 0.5, 1.0, 0, int(rng.integers(1 << 62)),
                  f"kept/{start + at}.jpg", row.tobytes(), observer.computed_by) for at, row in enumerate(rows)],
            {"images": len(part)},
        )  # fmt: skip
    teacher = Teacher(learner, time.monotonic, np.random.default_rng(0))
    images = home.records.kept()
    for image, label in zip(images[: given.labels - given.repeats], labels, strict=False):
        home.records.add_label(image.number, classes[label], "bench", 0.0)
    teacher.refresh(learner.candidate())
    taken: dict[str, list[float]] = {"candidate": [], "doubt": [], "next": []}
    for at in range(given.labels - given.repeats, given.labels):
        home.records.add_label(images[at].number, classes[labels[at]], "bench", 0.0)
        began_s = [time.process_time()]
        candidate = learner.candidate()
        began_s.append(time.process_time())
        teacher.refresh(candidate)
        began_s.append(time.process_time())
        shown = teacher.next_image("bench")
        began_s.append(time.process_time())
        teacher.skip(shown.number if shown else 0, "nobody")
        for name, seconds in zip(taken, np.diff(began_s).tolist(), strict=True):
            taken[name].append(seconds)
    total = [sum(parts) for parts in zip(*taken.values(), strict=True)]
    summary = {f"{name}_cpu_s": round(median(parts), 3) for name, parts in taken.items()}
    home.close()
    return {"labels": given.labels, "kept": given.kept, "features": observer.width, **summary,
            "all_cpu_s": round(median(total), 3), "worst_cpu_s": round(max(total), 3), "n": given.repeats}  # fmt: skip


if __name__ == "__main__":
    main()
