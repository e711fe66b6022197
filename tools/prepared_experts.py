"""What experts that a server prepares without knowing the place would give: the share of an oracle's gain they catch.

    python tools/prepared_experts.py --cifar ~/cifar10 --work ~/field --experts 8,24

An expert is a copy of the model whose batch-norm scales and shifts and head were trained for one place; the oracle's
place is the very shift that the device meets. A device takes the expert whose signature is nearest to its own
(``data/signature.py``), or a mixture, re-estimates its statistics and fits its head in closed form. Controls: no
expert, a random one, the mean of all. Judged on the validation images of the tuning shifts. This is why packs hold no
experts of this kind; docs/explanation/experts.md has the figures.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from cifar10_field import PER_CLASS, make_pack
from field import cells
from torch import nn

from edge_sel.data.dataset import ImageSet
from edge_sel.data.folder import load_folder
from edge_sel.data.shifts import apply_shift
from edge_sel.data.signature import measure
from edge_sel.sel.ridge import fit_head
from edge_sel.server.batches import Batches, BatchOptions
from edge_sel.server.cameras import draw_place, simulate_place
from edge_sel.server.pretrain import PretrainOptions, train_epoch
from edge_sel.server.warmup import load

SHIFTS = ("low_light", "fog", "colour_cast", "blur_noise")
SERVER_PER_CLASS, EPOCHS, RATE = 400, 2, 2e-2
STATISTICS = 256

Delta = Mapping[str, torch.Tensor]


class Bench:
    """The robust model, the server's images, and how they are fed."""

    def __init__(self, cifar: Path, work: Path) -> None:
        checkpoint, _ = make_pack(cifar / "train", work, cells.ROBUST_EPOCHS, robust=True)
        self.model, self.info = load(checkpoint)
        everything = load_folder(cifar / "train", self.info.image_size, limit_per_class=PER_CLASS)
        chosen = [np.flatnonzero(everything.labels == c)[:SERVER_PER_CLASS] for c in range(len(everything.classes))]
        self.images = everything.subset(np.concatenate(chosen))
        self.cheap = [
            f"{name}.{part}"
            for name, module in self.model.named_modules()
            if isinstance(module, (nn.BatchNorm2d, nn.Linear))
            for part in ("weight", "bias")
        ]

    def batches(self, images: ImageSet) -> Batches:
        """Of some images."""
        return Batches(images, self.info.mean, self.info.std, torch.device("cpu"))

    def expert(self, images: ImageSet, seed: int) -> Delta:
        """What training the cheap parts for these images changes."""
        model = copy.deepcopy(self.model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.cheap)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, RATE, momentum=0.9, nesterov=True)
        views, generator = BatchOptions(batch_size=64), torch.Generator().manual_seed(seed)
        steps = EPOCHS * (len(images) // views.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(EPOCHS):
            epoch = self.batches(images).shuffled(np.arange(len(images)), views, generator)
            train_epoch(model, epoch, optimizer, schedule, PretrainOptions(label_smoothing=0.0))
        before, after = self.model.state_dict(), model.state_dict()
        return {name: after[name] - before[name] for name in self.cheap}

    @torch.no_grad()
    def judge(self, delta: Delta | None, field: ImageSet, judged: ImageSet) -> np.ndarray:
        """Accuracy in % after new statistics, and after the head in closed form too."""
        model = copy.deepcopy(self.model)
        for name, change in (delta or {}).items():
            model.state_dict()[name] += change
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        some = np.random.default_rng(0).permutation(len(field))[:STATISTICS]
        model.train()
        for rows in np.split(some, range(32, len(some), 32)):
            model(self.batches(field).normalise(self.batches(field).read(rows)[0]))
        model.eval()
        seen, features = self._features(model, judged), self._features(model, field)
        weight, bias = (getattr(model.head, part).numpy() for part in ("weight", "bias"))
        fit = fit_head(features, field.labels, len(weight), old=(weight, bias))
        heads = ((weight, bias), (fit.weight, fit.bias))
        return np.array([100 * ((seen @ w.T + b).argmax(1) == judged.labels).mean() for w, b in heads])

    def _features(self, model: nn.Module, images: ImageSet) -> np.ndarray:
        found = [
            model.stages(model.stem(x)).mean((2, 3)).numpy()  # type: ignore[operator]
            for x, _ in self.batches(images).ordered(np.arange(len(images)))
        ]
        return np.concatenate(found)


def mixture(deltas: list[Delta], weights: np.ndarray) -> Delta:
    """The weighted sum of experts."""
    return {name: sum(float(w) * delta[name] for w, delta in zip(weights, deltas, strict=True)) for name in deltas[0]}


def convex(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Weights [K] on the simplex whose mixture of ``known`` [K, S] is nearest to ``wanted`` [S]: projected gradient."""
    weights = np.full(len(known), 1 / len(known))
    step = 1 / np.linalg.norm(known, 2) ** 2
    for _ in range(3000):
        moved = weights - step * known @ (known.T @ weights - wanted)
        ordered = np.sort(moved)[::-1]
        excess = (np.cumsum(ordered) - 1) / np.arange(1, len(ordered) + 1)
        weights = np.maximum(moved - excess[np.flatnonzero(ordered > excess)[-1]], 0)
    return weights


def choices(deltas: list[Delta], signatures: np.ndarray, own: np.ndarray) -> dict[str, Delta]:
    """What a device could begin with, by name."""
    centre, spread = signatures.mean(0), signatures.std(0) + 1e-6
    known, wanted = (signatures - centre) / spread, (own - centre) / spread
    nearest = int(np.linalg.norm(known - wanted, axis=1).argmin())
    return {
        "nearest": deltas[nearest],
        "mixture": mixture(deltas, convex(known, wanted)),
        "random": deltas[(nearest + 1) % len(deltas)],
        "mean": mixture(deltas, np.full(len(deltas), 1 / len(deltas))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, required=True, help="image-folder tree with train/ and test/")
    parser.add_argument("--work", type=Path, required=True, help="of field_benchmark.py: checkpoint and images")
    parser.add_argument("--experts", default="8,24", help="how many are prepared [default: 8,24]")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cifar, work = arguments.cifar.expanduser(), arguments.work.expanduser()
    bench, pools = Bench(cifar, work), cells.cifar_pools(cifar)
    counts = [int(number) for number in arguments.experts.split(",")]
    deltas, signatures = [], []
    for number in range(max(counts)):
        generator = torch.Generator().manual_seed(number)
        place = draw_place(0.5 + number % 8 / 7, generator)
        seen = simulate_place(bench.images, place, generator)
        deltas.append(bench.expert(seen, number))
        signatures.append(measure(seen.read(np.arange(512))))
        print(f"expert {number + 1} of {max(counts)}", flush=True)
    table: dict[str, list[np.ndarray]] = {}
    for shift in SHIFTS:
        cell = cells.prepare(shift, 0, pools, cells.Sizes(), work)
        field, judged = load_folder(cell.field, bench.info.image_size, classes=bench.info.classes), cell.images("val")
        own = measure(field.read(np.arange(0, len(field), max(1, len(field) // 512))))
        table.setdefault("none", []).append(bench.judge(None, field, judged))
        oracle = bench.expert(apply_shift(shift, bench.images, seed=99), 0)
        table.setdefault("oracle", []).append(bench.judge(oracle, field, judged))
        for count in counts:
            for name, delta in choices(deltas[:count], np.stack(signatures[:count]), own).items():
                table.setdefault(f"{name} of {count}", []).append(bench.judge(delta, field, judged))
    means = {name: np.mean(rows, axis=0) for name, rows in table.items()}
    print("| expert | statistics | share of the oracle's gain | and head | share |\n|---|---|---|---|---|")
    for name, found in means.items():
        share = (found - means["none"]) / (means["oracle"] - means["none"])
        print(f"| {name} | {found[0]:.2f} | {share[0]:.0%} | {found[1]:.2f} | {share[1]:.0%} |")


if __name__ == "__main__":
    main()
