"""What `tools/fleet_benchmark.py` compares with: federated averaging of heads, of whole networks, and of deltas."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from edge_sel.api.round import train_round
from edge_sel.data.dataset import ImageSet, normalise
from edge_sel.engines.ort import OrtEngine
from edge_sel.fleet.delta import make_delta
from edge_sel.fleet.header import LEAST_OF_CLASS, Origin
from edge_sel.fleet.merge import merge_updates
from edge_sel.fleet.update import check_update
from edge_sel.pack.reader import Pack

ROUNDS = (1, 5, 20)
DELTA_ROUNDS, DELTA_EPOCHS, DELTA_RULES = 5, 3, ("mean", "trimmed")
Row = tuple[str, int, float, tuple[float, float, float]]
"""Method; bytes and processor seconds of a device; accuracy on own images, on those of all devices, on clean ones."""
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


def delta_rounds(case: Case) -> list[Row]:
    """What training of the last stage changes, a quarter of the numbers, by our own engine; by three rules."""
    rows: list[Row] = []
    engine = OrtEngine(1)
    for rule in DELTA_RULES:
        pack, spent_s, size = case.pack, 0.0, 0
        left: dict[int, Any] = {}
        for number in range(1, DELTA_ROUNDS + 1):
            updates = []
            for at, device in enumerate(case.devices):
                began_s = time.process_time()
                wrong = rule == "trimmed" and at == 0
                images = (
                    device.images.relabelled((device.labels + 1) % 10, device.images.classes)
                    if wrong
                    else device.images
                )
                enough = images.class_counts()[images.labels] >= LEAST_OF_CLASS
                images = images.subset(np.flatnonzero(enough))
                done = train_round(pack, images, plan="last", epochs=DELTA_EPOCHS, threads=1, profile="default")
                content, left[at] = make_delta(
                    pack, "last", done.weights or pack.weights(), len(images), Origin(f"{at}"), residual=left.get(at)
                )
                updates.append(check_update(content, None, pack, None, f"{at}"))
                spent_s += (time.process_time() - began_s) / len(case.devices)
            size += max(update.bytes for update in updates) + pack.manifest.model.parameters * 4
            merged = merge_updates(pack, updates, engine, rule=rule)
            pack = pack.with_weights(merged.weights)
            if number in (1, DELTA_ROUNDS):
                name = {"mean": "delta", "trimmed": "delta-trimmed-flipped-1"}[rule]
                rows.append((f"{name}-{number}", size, spent_s, network_judged(case, pack, engine)))
    return rows


def network_judged(case: Case, pack: Pack, engine: OrtEngine) -> tuple[float, float, float]:
    """As ``judged``, of a whole network."""
    predict, model = engine.predictor(pack, pack.weights()), pack.manifest.model

    def right(images: ImageSet) -> np.ndarray:
        parts = np.array_split(np.arange(len(images)), max(1, len(images) // 50))
        pixels = (normalise(images.read(part), model.mean, model.std) for part in parts)
        return np.concatenate([predict(x).argmax(1) for x in pixels]) == images.labels

    found = [right(device.test) for device in case.devices]
    return (
        mean(float(each.mean()) for each in found),
        float(np.concatenate(found).mean()),
        float(right(case.clean).mean()),
    )


def dense(case: Case, checkpoint: Path | None, rounds: Sequence[int], central_epochs: int) -> list[Row]:
    """FedAvg of every weight, and training on all images in one place, in torch; of the checkpoint or the pack."""
    import torch
    from torch.nn import functional

    from edge_sel.engines.torch import TorchEngine
    from edge_sel.server.warmup import load

    torch.set_num_threads(1)
    torch.manual_seed(case.seed)
    pack = case.pack
    model = load(checkpoint)[0] if checkpoint else TorchEngine(1, "cpu").model(pack, pack.weights())
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
            *own, known = (
                torch.cat([model(part).argmax(1) for part in x.split(50)]).eq(y).float() for x, y in [*tests, clean]
            )
        return mean(float(each.mean()) for each in own), float(torch.cat(own).mean()), float(known.mean())

    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    found, whole, spent_s = [], dict(start), 0.0
    size = sum(value.numel() * 4 for value in start.values())
    for number in range(1, max(rounds) + 1):
        parts, began_s = [], time.process_time()
        for x, y in data:
            model.load_state_dict(whole)
            epoch(x, y, optimizer())
            parts.append({name: value.clone() for name, value in model.state_dict().items()})
        spent_s += (time.process_time() - began_s) / len(data)
        whole = {
            name: (sum(part[name].double() for part in parts) / len(parts)).to(start[name].dtype) for name in start
        }
        if number in rounds:
            model.load_state_dict(whole)
            found.append((f"fedavg-{number}", 2 * size * number, spent_s, figures()))
    if not central_epochs:
        return found
    model.load_state_dict(start)
    every = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    central, began_s = optimizer(), time.process_time()
    for _ in range(central_epochs):
        epoch(*every, central)
    found.append((f"central-dense-{central_epochs}", 0, time.process_time() - began_s, figures()))
    return found
