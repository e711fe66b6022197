"""A fleet that learns in one round: sums of features against federated averaging, local and central training.

    python tools/fleet_benchmark.py --work DIR --cifar CIFAR --small PACK --checkpoint ROBUST.safetensors
    python tools/fleet_benchmark.py --work DIR --photos PHOTOS --pack PACK

``cifar``: ten devices (``--devices``), each sees CIFAR-10 through one of the eight shifts of ``data/shifts.py`` and has
200 images whose classes are drawn from Dirichlet(0.3); where there are too few images for all, devices share some.
``paintings``: seven devices, each with 40 paintings of two of the seven classes. Judged by each device's own test
images (its shift, its classes), by those of all devices, and by clean images of the server.

``shipped``; ``local``: each device's own head in closed form (mean over devices); ``statistics``: one round of `fleet
update` and `merge`; ``central``: the same sums of all images in one place; ``central-loo``: the head in closed form of
`finetune` on all features; ``fedavg-N``: every weight, one local epoch in each of N rounds (SGD 0.01, batches of 32,
weighted by images, batch statistics averaged), in torch; ``fedavg-head-N``: the head alone, on features;
``central-dense-N``: N epochs of torch on all images. ``statistics-failing``: a fifth of the devices send nothing;
``-flipped-K``: K of ten devices have every label moved by one, with and without the robust merge; ``-scaled``: one
device's sums times a hundred; ``-private-ε``: with noise. ``personal``: each device's own head, fitted on top of the
fleet's. ``delta-N``: rounds of what training the plan ``last`` changes, a quarter of the numbers;
``-trimmed-flipped-1``: the trimmed mean, where one device has every label moved. Joules are nominal: seconds of this
machine at the watts of a busy core of a Raspberry Pi 5, by its profile.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import numpy as np
from fleet_opponents import Case, Device, Head, average_heads, delta_rounds, dense

from edge_sel.data.dataset import ImageSet
from edge_sel.data.folder import load_folder
from edge_sel.data.shifts import SHIFTS, apply_shift
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import EdgeSelError
from edge_sel.fleet.header import Origin, usable_rows
from edge_sel.fleet.merge import merge_updates
from edge_sel.fleet.statistics import features_of, make_statistics
from edge_sel.fleet.update import Update, read_update, write_update
from edge_sel.pack.reader import Pack, open_pack
from edge_sel.sel.ridge import fit_head

IMAGES, TEST, ALPHA = 200, 200, 0.3
CORE_W = (9.8 - 3.3) / 4
"""Of a busy core: profiles/raspberry-pi-5.toml."""
COLUMNS = ("case", "seed", "method", "own", "all", "clean", "bytes", "cpu_s")


def main() -> None:
    """Run every method on every seed, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("work", "photos", "pack", "cifar", "small", "checkpoint", "csv"):
        parser.add_argument(f"--{name}", type=Path, required=name == "work")
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", default="1,5,20", help="of FedAvg in torch")
    parser.add_argument("--central-epochs", type=int, default=20, help="of torch on all images; 0 for none")
    parser.add_argument("--parts", default=",".join(PARTS), help="which methods to run; the table shows what was run")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in [*(["paintings"] if given.photos else []), *(["cifar"] if given.cifar else [])]:
        for seed in map(int, given.seeds.split(",")):
            files = {part: given.work / f"{name}-{given.devices}-{seed}-{part}.json" for part in PARTS}
            missing = [part for part in given.parts.split(",") if not files[part].exists()]
            case = None
            for part in missing:
                case = case or (make_paintings(seed, given) if name == "paintings" else make_cifar(seed, given))
                files[part].write_text(json.dumps(PARTS[part](case, given)))
            rows += [row for file in files.values() if file.exists() for row in json.loads(file.read_text())]
    print(table(rows))
    if given.csv:
        with given.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


# The fleets


def make_cifar(seed: int, given: argparse.Namespace) -> Case:
    """Each device with a shift and classes of its own."""
    pack, rng = open_pack(given.small), np.random.default_rng([seed, 4])
    classes, size = pack.manifest.model.classes, pack.manifest.model.image_size
    every = load_folder(given.cifar / "test", size, classes=classes)
    order = rng.permutation(len(every))
    clean, pool = every.subset(order[:1000]), order[1000:]
    shifts, parts = [*SHIFTS], []
    again = given.devices * (IMAGES + TEST) > 0.9 * len(pool)
    whole = rng.permutation(pool) if again else pool
    for number in range(given.devices):
        shares = rng.dirichlet([ALPHA] * len(classes))
        if again:  # there are too few: devices may see the same thing, but none that is in another's test images
            halves = np.split(whole, [len(whole) // 2])
            images, test = (_draw(every, half, shares, n, rng) for half, n in zip(halves, (IMAGES, TEST), strict=True))
            name = shifts[number % len(shifts)]
            parts.append((apply_shift(name, images, seed), apply_shift(name, test, seed)))
            continue
        wanted = rng.choice(len(classes), IMAGES + TEST, p=shares)
        rows = []
        for label in wanted.tolist():
            found = np.flatnonzero(every.labels[pool] == label)
            place = int(found[0]) if len(found) else 0
            rows.append(int(pool[place]))
            pool = np.delete(pool, place)
        images = apply_shift(shifts[number % len(shifts)], every.subset(np.array(rows)), seed)
        parts.append((images.subset(np.arange(IMAGES)), images.subset(np.arange(IMAGES, IMAGES + TEST))))
    return make_case("cifar", seed, pack, parts, clean)


def _draw(every: ImageSet, rows: np.ndarray, shares: np.ndarray, count: int, rng: np.random.Generator) -> ImageSet:
    """So many of these rows, of classes by their shares; each once."""
    keys = rng.exponential(size=len(rows)) / np.maximum(shares[every.labels[rows]], 1e-6)
    return every.subset(rows[np.argsort(keys)[:count]])


def make_paintings(seed: int, given: argparse.Namespace) -> Case:
    """Each device with two classes."""
    pack, rng = open_pack(given.pack), np.random.default_rng([seed, 5])
    classes, size = pack.manifest.model.classes, pack.manifest.model.image_size
    train, test, clean = (
        load_folder(given.photos / "animals" / part, size, classes=classes)
        for part in ("paintings", "paintings-test", "photos-test")
    )
    orders = {label: rng.permutation(np.flatnonzero(train.labels == label)) for label in range(len(classes))}
    parts = []
    for number in range(len(classes)):
        own = [number, (number + 1) % len(classes)]
        rows = np.concatenate([orders[own[0]][:40], orders[own[1]][40:80]])
        parts.append((train.subset(rows), test.subset(np.flatnonzero(np.isin(test.labels, own)))))
    return make_case("paintings", seed, pack, parts, clean)


def make_case(name: str, seed: int, pack: Pack, parts: list[tuple[ImageSet, ImageSet]], clean: ImageSet) -> Case:
    """With the features of all."""
    engine, devices, taken = OrtEngine(1), [], []
    for images, test in parts:
        began_s = time.process_time()
        rows = features_of(pack, images, engine)
        taken.append(time.process_time() - began_s)
        devices.append(Device(rows, images.labels, features_of(pack, test, engine), test.labels, images, test))
    return Case(name, seed, pack, devices, features_of(pack, clean, engine), clean, mean(taken))


# The methods


def run_closed(case: Case, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Heads on features."""
    rows: list[dict[str, Any]] = []
    pack, devices = case.pack, case.devices

    def add(method: str, heads: list[Head], size: int, cpu_s: float) -> None:
        rows.append(told(case, method, *judged(case, heads), size, cpu_s))

    shipped = pack.linear_head.joined(pack.weights())
    add("shipped", [shipped] * len(devices), 0, 0.0)
    began_s = time.process_time()
    local = [closed_form(pack, device.rows, device.labels) for device in devices]
    add("local", local, 0, case.feature_s + (time.process_time() - began_s) / len(devices))
    whole = statistics(case, given.work, add)
    add("personal", [closed_form(pack, d.rows, d.labels, whole) for d in devices], 0, 0.0)
    every = np.concatenate([device.rows for device in devices]), np.concatenate([device.labels for device in devices])
    add("central-loo", [closed_form(pack, *every)] * len(devices), 0, 0.0)
    for rounds, head, cpu_s in average_heads(case, shipped):
        size = 4 * (shipped[0].size + shipped[1].size) * 2 * rounds
        add(f"fedavg-head-{rounds}", [head] * len(devices), size, case.feature_s + cpu_s)
    return rows


def run_dense(case: Case, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Every weight, in torch."""
    rounds = [int(number) for number in given.rounds.split(",")]
    checkpoint = given.checkpoint if case.name == "cifar" else None
    found = dense(case, checkpoint, rounds, given.central_epochs)
    return [told(case, method, *figures, size, cpu_s) for method, size, cpu_s, figures in found]


def run_delta(case: Case, given: argparse.Namespace) -> list[dict[str, Any]]:
    """What training changes, by our own engine."""
    return [told(case, method, *figures, size, cpu_s) for method, size, cpu_s, figures in delta_rounds(case)]


def told(case: Case, method: str, own: float, every: float, clean: float, size: int, cpu_s: float) -> dict[str, Any]:
    """A row: percent, bytes and processor seconds of a device, over all rounds."""
    return {
        "case": case.name, "seed": case.seed, "method": method, "own": round(100 * own, 2),
        "all": round(100 * every, 2), "clean": round(100 * clean, 2), "bytes": size, "cpu_s": round(cpu_s, 3),
    }  # fmt: skip


def judged(case: Case, heads: list[Head]) -> tuple[float, float, float]:
    """Own test images, those of all devices, clean ones; mean over the devices' heads."""

    def right(head: Head, rows: np.ndarray, labels: np.ndarray) -> float:
        return float(((rows @ head[0].T + head[1]).argmax(1) == labels).mean())

    devices = case.devices
    own = mean(right(head, device.test_rows, device.test_labels) for head, device in zip(heads, devices, strict=True))
    rows, labels = (np.concatenate([device[at] for device in devices]) for at in (2, 3))
    distinct = heads[:1] if all(head is heads[0] for head in heads) else heads
    return (
        own,
        mean(right(h, rows, labels) for h in distinct),
        mean(right(h, case.clean_rows, case.clean.labels) for h in distinct),
    )


def closed_form(pack: Pack, rows: np.ndarray, labels: np.ndarray, old: Head | None = None) -> Head:
    """The head of `finetune`, which begins with the pack's or the fleet's."""
    old = old or pack.linear_head.joined(pack.weights())
    groups, sums = pack.manifest.model.feature_groups(pack.head_features), pack.sums
    fit = fit_head(
        rows.astype(np.float32), labels, len(pack.manifest.model.classes), old=old,
        groups=groups, shallow=groups[0], standard=sums.standard, prior=sums.prior, examples=sums.examples,
    )  # fmt: skip
    return fit.weight, fit.bias


def statistics(case: Case, work: Path, add: Callable[[str, list[Head], int, float], None]) -> Head:
    """One round, and what is done to it; the head of the round."""
    pack, count, rng = case.pack, len(case.devices), np.random.default_rng([case.seed, 6])
    classes = pack.manifest.model.classes

    def update(name: str, device: Device, labels: np.ndarray, private: tuple[float, float] | None = None) -> Update:
        path = work / f"{name}.update"
        write_update(
            path, make_statistics(pack, device.rows, labels, classes, Origin(name), privacy=private, rng=rng), None
        )
        return read_update(path, pack, None)

    def merged(method: str, updates: list[Update], *, robust: bool = True, cpu_s: float = 0.0) -> Head:
        began_s = time.process_time()
        found = merge_updates(pack, updates, OrtEngine(1), robust=robust)
        print(f"{method}: merged in {time.process_time() - began_s:.2f} CPU s, left out {len(found.left_out)}")
        head = pack.linear_head.joined(found.weights)
        add(method, [head] * count, max(update.bytes for update in updates), case.feature_s + cpu_s)
        return head

    began_s = time.process_time()
    good = [update(f"{at}", device, device.labels) for at, device in enumerate(case.devices)]
    made_s = (time.process_time() - began_s) / count
    whole = merged("statistics", good, cpu_s=made_s)
    merged("statistics-plain", good, robust=False, cpu_s=made_s)
    used = [usable_rows(d.labels, np.isfinite(d.rows).all(1), len(classes)) for d in case.devices]  # are sent
    every = case.devices[0]._replace(
        rows=np.concatenate([device.rows[rows] for device, rows in zip(case.devices, used, strict=True)])
    )
    labels = np.concatenate([device.labels[rows] for device, rows in zip(case.devices, used, strict=True)])
    merged("central", [update("all", every, labels)], robust=False)
    merged("statistics-failing", good[: count - max(1, count // 5)])
    for bad in (max(1, round(0.1 * count)), round(0.3 * count)):
        flipped = [
            update(f"f{at}", device, (device.labels + 1) % len(classes)) for at, device in enumerate(case.devices[:bad])
        ]
        for robust in (True, False):
            name = f"statistics-flipped-{round(10 * bad / count)}" + ("" if robust else "-plain")
            merged(name, [*flipped, *good[bad:]], robust=robust)
    try:
        scaled = work / "scaled.update"
        device = case.devices[0]
        write_update(scaled, make_statistics(pack, 100 * device.rows, device.labels, classes, Origin("scaled")), None)
        merged("statistics-scaled", [read_update(scaled, pack, None), *good[1:]])
    except EdgeSelError as error:
        print(f"scaled: {error}")
    for epsilon in (8.0, 2.0):
        private = [update(f"p{at}", d, d.labels, (epsilon, 1e-5)) for at, d in enumerate(case.devices)]
        merged(f"statistics-private-{epsilon:g}", private)
    return whole


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean and deviation over seeds."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        heads = (
            "| method | own images | all devices | clean | MB of a device | CPU s of a device | nominal J of a device |"
        )
        lines += [f"\n### {case}\n", heads, "|---|---|---|---|---|---|---|"]
        for method in dict.fromkeys(row["method"] for row in rows if row["case"] == case):
            part = [row for row in rows if row["case"] == case and row["method"] == method]
            cells = []
            for key in ("own", "all", "clean"):
                values = [row[key] for row in part]
                cells.append(f"{mean(values):.1f} ± {stdev(values) if len(values) > 1 else 0:.1f}")
            size, cpu_s = mean(row["bytes"] for row in part), mean(row["cpu_s"] for row in part)
            lines.append(f"| {method} | {' | '.join(cells)} | {size / 1e6:.2f} | {cpu_s:.2f} | {cpu_s * CORE_W:.1f} |")
    return "\n".join(lines)


PARTS = {"closed": run_closed, "dense": run_dense, "delta": run_delta}

if __name__ == "__main__":
    main()
