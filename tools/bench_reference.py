"""How many images a second: the reference trainer against a plain loop on the same device.

    python tools/bench_reference.py                     # ResNet-18, 32 x 32, batch 64, as the baseline
    python tools/bench_reference.py --model resnet-c-small --images 640 --device cpu

The plain loop is what the sources' code is like: a ``DataLoader`` with workers, augmentation on the host, float32,
Adam, ``loss.item()`` after every batch. Random images; the first epoch of each warms up and is not timed. The aim is
8 times as many on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from edge_sel.data.dataset import ImageSet
from edge_sel.models.registry import build
from edge_sel.reference.images import make_images
from edge_sel.reference.model import fastest
from edge_sel.reference.policy import Policy
from edge_sel.reference.suite import environment
from edge_sel.reference.systems import SYSTEMS
from edge_sel.reference.trainer import SystemTrainer


class Plain(torch.utils.data.Dataset):
    """Crop, flip and normalise one image at a time, in float32."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(self.images[index]).permute(2, 0, 1).float() / 255
        top, left = torch.randint(0, 9, (2,)).tolist()
        image = F.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image - 0.5) / 0.25, int(self.labels[index])


def plain_epochs(data: Plain, model_name: str, batch: int, workers: int, device: torch.device, epochs: int):
    """Seconds of each epoch."""
    loader = torch.utils.data.DataLoader(data, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    model = build(model_name, 10, (32, 32)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        started, total = time.perf_counter(), 0.0
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        yield time.perf_counter() - started


def our_epochs(images: ImageSet, model_name: str, batch: int, device: torch.device, epochs: int):
    """Seconds of each epoch."""
    setup = replace(SYSTEMS["baseline"].setup, model=model_name, batch_size=batch)
    train, test = make_images(images, images.subset(np.arange(10)), device)
    run = SystemTrainer(build(model_name, 10, (32, 32)), setup, Policy(), train, test, seed=0)
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        run.train_epoch(epoch)  # looks at the device at its end
        yield time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18-cifar")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3, help="timed ones, after one that warms up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (options.images, 32, 32, 3), dtype=np.uint8)
    images = ImageSet.from_arrays(pixels, np.arange(options.images) % 10, [str(n) for n in range(10)])
    count = options.epochs + 1
    plain = list(
        plain_epochs(Plain(pixels, images.labels), options.model, options.batch, options.workers, device, count)
    )
    ours = list(our_epochs(images, options.model, options.batch, device, count))
    plain_s, ours_s = statistics.median(plain[1:]), statistics.median(ours[1:])
    print(
        json.dumps(
            {
                "model": options.model,
                "batch": options.batch,
                "plain_images_per_s": round(options.images / plain_s, 1),
                "our_images_per_s": round(options.images / ours_s, 1),
                "ratio": round(plain_s / ours_s, 2),
                "first_epoch_s": round(ours[0], 2),
                "environment": environment(device) | fastest(device).to_json(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
