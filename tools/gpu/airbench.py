"""airbench94's published settings in a plain loop of our own: accuracy, joules and seconds of each run.

    python tools/gpu/airbench.py --images ~/cifar10 --runs 10
    python tools/gpu/airbench.py --digits --device cpu --runs 2 --epochs 2         # tries it on any machine

The opponent of our ``fast`` system on the same card. Settings: Jordan 2024, arXiv 2404.00498 and its repository's
airbench94: 9.9 epochs, batches of 1024, half precision, SGD with Nesterov momentum, one triangle of the rate,
alternating flips, shifts of two pixels, label smoothing, a slow average of the weights, and six views of each test
image. The network is ours (``edge_sel/models/networks.py``), which follows the same paper. Joules and seconds are those
of training, from the whitening to the last step; a first run, which warms the card up, is not among the results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from edge_sel import EnergyMonitor
from edge_sel.data.dataset import ImageSet
from edge_sel.models.networks import FastNet
from edge_sel.reference.data import load_sets
from edge_sel.reference.suite import environment
from edge_sel.reference.systems import find_scale

BATCH, EPOCHS, WIDTHS = 1024, 9.9, (64, 256, 256)
RATE, MOMENTUM, DECAY, BIAS_FACTOR = 11.5, 0.85, 0.0153, 64.0
"""Per 1024 images, for a summed loss."""
SMOOTHING, SHIFT, WHITEN_BIAS_EPOCHS = 0.2, 2, 3
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Images:
    """Normalised images of the right precision on the device: float[N, 3, H, W], and their labels."""

    def __init__(self, images: ImageSet, device: torch.device, half: torch.dtype) -> None:
        pixels = torch.from_numpy(images.read(np.arange(len(images)))).to(device).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(of, device=device)[:, None, None] for of in (MEAN, STD))
        self.x = ((pixels - mean) / std).to(half).contiguous(memory_format=torch.channels_last)
        self.y = torch.from_numpy(images.labels).to(device)
        self.batch = min(BATCH, len(images) // 8)

    def epochs(self, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches without end, augmented anew each epoch; a last small batch is left out."""
        chance = torch.Generator(self.x.device).manual_seed(seed)
        count, (height, width) = len(self.x), self.x.shape[2:]
        flipped = torch.rand(count, generator=chance, device=self.x.device) < 0.5
        while True:
            padded = F.pad(torch.where(flipped[:, None, None, None], self.x.flip(3), self.x), (SHIFT,) * 4, "reflect")
            shifts = torch.randint(0, 2 * SHIFT + 1, (2, count), generator=chance, device=self.x.device)
            rows = shifts[0][:, None] + torch.arange(height, device=self.x.device)
            columns = shifts[1][:, None] + torch.arange(width, device=self.x.device)
            order = torch.randperm(count, generator=chance, device=self.x.device)
            for part in order[: count - count % self.batch].split(self.batch):
                where = part[:, None, None]
                yield (
                    padded.permute(0, 2, 3, 1)[where, rows[part][:, :, None], columns[part][:, None, :]].permute(
                        0, 3, 1, 2
                    ),
                    self.y[part],
                )
            flipped = ~flipped


def make_net(half: torch.dtype, device: torch.device, classes: int) -> FastNet:
    """In half precision, but for the statistics of batch normalisation."""
    net = FastNet(WIDTHS, classes).to(device, half).to(memory_format=torch.channels_last)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    return net


def train(images: Images, *, epochs: float, seed: int) -> FastNet:
    """One run."""
    torch.manual_seed(seed)
    device, classes = images.x.device, int(images.y.max()) + 1
    net = make_net(images.x.dtype, device, classes)
    net.set_whitening(images.x[:5000])
    per_epoch = len(images.x) // images.batch
    steps = max(1, round(epochs * per_epoch))
    scale = 1024 * (1 + 1 / (1 - MOMENTUM))
    rate, decay = RATE / scale, DECAY * images.batch / scale
    biases = [p for name, p in net.named_parameters() if "norm" in name and p.requires_grad]
    others = [p for name, p in net.named_parameters() if "norm" not in name and p.requires_grad]
    groups = [
        {"params": biases, "lr": rate * BIAS_FACTOR, "weight_decay": decay / (rate * BIAS_FACTOR)},
        {"params": others, "lr": rate, "weight_decay": decay / rate},
    ]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)
    peak, first = [group["lr"] for group in groups], max(1, round(0.23 * steps))
    slow = [p.detach().clone() for p in net.parameters()]
    net.train()
    for step, (x, y) in zip(range(steps), images.epochs(seed), strict=False):
        factor = 0.2 + 0.8 * step / first if step < first else 1 - 0.93 * (step - first) / max(1, steps - first)
        for group, value in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = value * factor
        assert net.whiten.bias is not None
        net.whiten.bias.requires_grad_(step < WHITEN_BIAS_EPOCHS * per_epoch)
        F.cross_entropy(net(x).float(), y, label_smoothing=SMOOTHING, reduction="sum").backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 5 == 0 or step + 1 == steps:
            keep = 1.0 if step + 1 == steps else 0.95**5 * (step / steps) ** 3
            look_ahead(slow, list(net.parameters()), keep)
    return net


@torch.no_grad()
def look_ahead(slow: list[torch.Tensor], fast: list[nn.Parameter], keep: float) -> None:
    """The slow average follows by ``1 - keep``, and the weights go on from it."""
    for average, weight in zip(slow, fast, strict=True):
        average.lerp_(weight, 1 - keep)
        weight.copy_(average)


@torch.no_grad()
def accuracy(net: FastNet, images: Images) -> float:
    """With six views of each image: itself and its mirror image, and both of them shifted two ways by a pixel."""
    net.eval()
    right = 0
    for x, y in zip(images.x.split(2000), images.y.split(2000), strict=True):
        logits = torch.zeros((), device=x.device)
        height, width = x.shape[2:]
        padded = F.pad(x, (1,) * 4, "reflect")
        for top, left, weight in ((1, 1, 0.5), (0, 0, 0.25), (2, 2, 0.25)):
            view = padded[:, :, top : top + height, left : left + width]
            logits = logits + weight * (net(view).float() + net(view.flip(3)).float()) / 2
        right += int((logits.argmax(1) == y).sum())
    return right / len(images.y)


def timed(images: Images, test: Images, *, epochs: float, seed: int) -> dict[str, float | str | None]:
    """Accuracy, joules and seconds of one run."""
    cuda = images.x.device.type == "cuda"
    with EnergyMonitor("nvml" if cuda else "auto") as monitor:
        began_s = time.perf_counter()
        net = train(images, epochs=epochs, seed=seed)
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began_s
    figure = monitor.figure
    found: dict[str, float | str | None] = {"seed": seed, "accuracy": accuracy(net, test), "seconds": seconds}
    return found | {"energy_j": figure.total_j, "energy_source": figure.source}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", help="folder with train/ and test/ of 32 x 32 pixels")
    what.add_argument("--digits", action="store_true", help="the built-in digits, to try it")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    half = torch.float16 if device.type == "cuda" else torch.float32
    torch.backends.cudnn.benchmark = True
    sets = load_sets("digits" if options.digits else options.images, find_scale("full"), 32)
    images, test = Images(sets.train, device, half), Images(sets.test, device, half)
    runs = [timed(images, test, epochs=options.epochs, seed=seed) for seed in range(-1, options.runs)][1:]
    summary = {"runs": runs, "epochs": options.epochs, "environment": environment(device)}
    for key in ("accuracy", "seconds", "energy_j"):
        values = [run[key] for run in runs if isinstance(run[key], float)]
        summary[key] = {"mean": statistics.fmean(values), "std": statistics.pstdev(values)} if values else None
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
