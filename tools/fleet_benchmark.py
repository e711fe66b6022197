"""A fleet that learns in one round: sums of features against federated averaging, local and central training.

    python tools/fleet_benchmark.py --work DIR --cifar CIFAR --small PACK --checkpoint ROBUST.safetensors
    python tools/fleet_benchmark.py --work DIR --photos PHOTOS --pack PACK

``cifar``: ten devices (``--devices``), each sees CIFAR-10 through one of the eight shifts of ``data/shifts.py`` and has
200 images whose classes are drawn from Dirichlet(0.3). ``paintings``: seven devices, each with 40 paintings of two of
the seven classes. Judged by each device's own test images (its shift, its classes), by those of all devices, and by
clean images of the server.

``shipped``; ``local``: each device's own head in closed form (mean over devices); ``statistics``: one round of `fleet
update` and `merge`; ``central``: the same sums of all images in one place; ``central-loo``: the head in closed form of
`finetune` on all features; ``fedavg-N``: every weight, one local epoch in each of N rounds (SGD 0.01, batches of 32,
weighted by images, batch statistics averaged), in torch; ``fedavg-head-N``: the head alone, on features;
``central-dense-N``: N epochs of torch on all images. ``statistics-failing``: a fifth of the devices send nothing;
``-flipped-K``: K of ten devices have every label moved by one, with and without the robust merge; ``-scaled``: one
device's sums times a hundred; ``-private-ε``: with noise.
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
from typing import Any, NamedTuple

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import numpy as np

from edge_sel.data.dataset import ImageSet, normalise
from edge_sel.data.folder import load_folder
from edge_sel.data.shifts import SHIFTS, apply_shift
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import EdgeSelError
from edge_sel.fleet.header import Origin
from edge_sel.fleet.merge import merge_updates
from edge_sel.fleet.statistics import features_of, make_statistics
from edge_sel.fleet.update import Update, read_update, write_update
from edge_sel.pack.reader import Pack, open_pack
from edge_sel.sel.ridge import fit_head

IMAGES, TEST, ALPHA = 200, 200, 0.3
ROUNDS, DENSE_EPOCHS = (1, 5, 20), 20
COLUMNS = ("case", "seed", "method", "own", "all", "clean", "bytes", "cpu_s")
Head = tuple[np.ndarray, np.ndarray]


class Device(NamedTuple):
    """Features and labels of a device, and its images where a network is trained on them."""

    rows: np.ndarray
    labels: np.ndarray
    test_rows: np.ndarray
    test_labels: np.ndarray
    images: ImageSet
    test: ImageSet


class Case(NamedTuple):
    """A fleet."""

    name: str
    seed: int
    pack: Pack
    devices: list[Device]
    clean_rows: np.ndarray
    clean: ImageSet
    feature_s: float
    """Processor seconds that a device takes for its features, mean."""


def main() -> None:
    """Run every method on every seed, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("work", "photos", "pack", "cifar", "small", "checkpoint", "csv"):
        parser.add_argument(f"--{name}", type=Path, required=name == "work")
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--seeds", default="0,1,2")
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
    for number in range(given.devices):
        shares = rng.dirichlet([ALPHA] * len(classes))
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
    statistics(case, given.work, add)
    every = np.concatenate([device.rows for device in devices]), np.concatenate([device.labels for device in devices])
    add("central-loo", [closed_form(pack, *every)] * len(devices), 0, 0.0)
    for rounds, head, cpu_s in average_heads(case, shipped):
        size = 4 * (shipped[0].size + shipped[1].size) * 2 * rounds
        add(f"fedavg-head-{rounds}", [head] * len(devices), size, case.feature_s + cpu_s)
    return rows


def run_dense(case: Case, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Every weight, in torch; only where there is a checkpoint."""
    if case.name != "cifar":
        return []
    return [told(case, method, *figures, size, cpu_s) for method, size, cpu_s, figures in dense(case, given.checkpoint)]


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


def closed_form(pack: Pack, rows: np.ndarray, labels: np.ndarray) -> Head:
    """The head of `finetune`."""
    groups, sums = pack.manifest.model.feature_groups(pack.head_features), pack.sums
    fit = fit_head(
        rows.astype(np.float32), labels, len(pack.manifest.model.classes), old=pack.linear_head.joined(pack.weights()),
        groups=groups, shallow=groups[0], standard=sums.standard, prior=sums.prior, examples=sums.examples,
    )  # fmt: skip
    return fit.weight, fit.bias


def statistics(case: Case, work: Path, add: Callable[[str, list[Head], int, float], None]) -> None:
    """One round, and what is done to it."""
    pack, count, rng = case.pack, len(case.devices), np.random.default_rng([case.seed, 6])
    classes = pack.manifest.model.classes

    def update(name: str, device: Device, labels: np.ndarray, private: tuple[float, float] | None = None) -> Update:
        path = work / f"{name}.update"
        write_update(
            path, make_statistics(pack, device.rows, labels, classes, Origin(name), privacy=private, rng=rng), None
        )
        return read_update(path, pack, None)

    def merged(method: str, updates: list[Update], *, robust: bool = True, cpu_s: float = 0.0) -> None:
        found = merge_updates(pack, updates, OrtEngine(1), robust=robust)
        head = pack.linear_head.joined(found.weights)
        add(method, [head] * count, max(update.bytes for update in updates), case.feature_s + cpu_s)

    began_s = time.process_time()
    good = [update(f"{at}", device, device.labels) for at, device in enumerate(case.devices)]
    made_s = (time.process_time() - began_s) / count
    merged("statistics", good, cpu_s=made_s)
    merged("statistics-plain", good, robust=False, cpu_s=made_s)
    every = case.devices[0]._replace(rows=np.concatenate([device.rows for device in case.devices]))
    merged("central", [update("all", every, np.concatenate([device.labels for device in case.devices]))], robust=False)
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


def average_heads(case: Case, start: Head) -> list[tuple[int, Head, float]]:
    """FedAvg of the head on standardised features: one epoch of SGD a round and device."""
    mean_, scale = (part.astype(np.float32) for part in case.pack.sums.standard)
    scale = scale * np.sqrt(len(scale) / 2)
    weight, bias = start[0] / np.where(scale == 0, 1, scale), start[1] + start[0] @ mean_
    rng, found, spent_s = np.random.default_rng(case.seed), [], 0.0
    rows = [(device.rows - mean_) * scale for device in case.devices]
    total = sum(len(device.labels) for device in case.devices)
    for number in range(1, max(ROUNDS) + 1):
        sums = np.zeros_like(weight), np.zeros_like(bias)
        began_s = time.process_time()
        for x, device in zip(rows, case.devices, strict=True):
            w, b = weight.copy(), bias.copy()
            for batch in np.array_split(rng.permutation(len(x)), max(1, len(x) // 32)):
                logits = x[batch] @ w.T + b
                odds = np.exp(logits - logits.max(1, keepdims=True))
                error = odds / odds.sum(1, keepdims=True) - np.eye(len(b))[device.labels[batch]]
                w -= 0.01 / len(batch) * error.T @ x[batch]
                b -= 0.01 / len(batch) * error.sum(0)
            share = len(device.labels) / total
            sums = sums[0] + share * w, sums[1] + share * b
        spent_s += (time.process_time() - began_s) / len(rows)
        weight, bias = sums
        if number in ROUNDS:
            found.append((number, (weight * scale, bias - (weight * scale) @ mean_), spent_s))
    return found


def dense(case: Case, checkpoint: Path) -> list[tuple[str, int, float, tuple[float, float, float]]]:
    """FedAvg of every weight, and training on all images in one place, in torch."""
    import torch
    from torch.nn import functional

    from edge_sel.server.warmup import load

    torch.set_num_threads(1)
    torch.manual_seed(case.seed)
    model, _ = load(checkpoint)
    info = case.pack.manifest.model
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def tensors(images: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = normalise(images.read(np.arange(len(images))), info.mean, info.std)
        return torch.from_numpy(pixels), torch.from_numpy(images.labels)

    data = [tensors(device.images) for device in case.devices]
    tests = [tensors(device.test) for device in case.devices]
    clean = tensors(case.clean)

    def epoch(x: torch.Tensor, y: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        model.train()
        for rows in torch.randperm(len(x)).split(32):
            if len(rows) < 2:
                continue
            optimizer.zero_grad()
            functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()

    def figures() -> tuple[float, float, float]:
        model.eval()
        with torch.no_grad():
            own = [(model(x).argmax(1) == y).float() for x, y in tests]
            known = float((model(clean[0]).argmax(1) == clean[1]).float().mean())
        return mean(float(each.mean()) for each in own), float(torch.cat(own).mean()), known

    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    found, whole, spent_s = [], dict(start), 0.0
    size = sum(value.numel() * 4 for value in start.values())
    for number in range(1, max(ROUNDS) + 1):
        parts, began_s = [], time.process_time()
        for x, y in data:
            model.load_state_dict(whole)
            epoch(x, y, optimizer())
            parts.append({name: value.clone() for name, value in model.state_dict().items()})
        spent_s += (time.process_time() - began_s) / len(data)
        whole = {
            name: (sum(part[name].double() for part in parts) / len(parts)).to(start[name].dtype) for name in start
        }
        if number in ROUNDS:
            model.load_state_dict(whole)
            found.append((f"fedavg-{number}", 2 * size * number, spent_s, figures()))
    model.load_state_dict(start)
    every = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    central, began_s = optimizer(), time.process_time()
    for _ in range(DENSE_EPOCHS):
        epoch(*every, central)
    found.append((f"central-dense-{DENSE_EPOCHS}", 0, time.process_time() - began_s, figures()))
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean and deviation over seeds."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        heads = "| method | own images | all devices | clean | bytes of a device | CPU s of a device |"
        lines += [f"\n### {case}\n", heads, "|---|---|---|---|---|---|"]
        for method in dict.fromkeys(row["method"] for row in rows if row["case"] == case):
            part = [row for row in rows if row["case"] == case and row["method"] == method]
            cells = []
            for key in ("own", "all", "clean"):
                values = [row[key] for row in part]
                cells.append(f"{mean(values):.1f} ± {stdev(values) if len(values) > 1 else 0:.1f}")
            size, cpu_s = mean(row["bytes"] for row in part), mean(row["cpu_s"] for row in part)
            lines.append(f"| {method} | {' | '.join(cells)} | {size / 1e6:.2f} M | {cpu_s:.2f} |")
    return "\n".join(lines)


PARTS = {"closed": run_closed, "dense": run_dense}

if __name__ == "__main__":
    main()
