"""Train a pack's model for one place: on the server's own images, as that place's cameras would see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from edge_sel.arrays import Arrays
from edge_sel.data.dataset import ImageSet
from edge_sel.engines.torch import TorchEngine
from edge_sel.pack.reader import Pack
from edge_sel.server.batches import Augmentation, Batches, TrainingBatch, augment
from edge_sel.server.cameras import Place, take_pictures
from edge_sel.server.device import device_of
from edge_sel.server.pretrain import PretrainOptions, train_epoch

BATCH = 128
LEARNING_RATE = 0.03


def train_expert(
    pack: Pack,
    images: ImageSet,
    place: Place,
    *,
    epochs: int,
    seed: int,
    device: str = "auto",
    note: Callable[[str], None] = lambda line: None,
) -> Arrays:
    """All weights of the pack, trained for so many epochs on ``images`` as the place's cameras see them.

    The step size is annealed to zero along a cosine. Running statistics are the place's at the end.
    """
    options, on = PretrainOptions(device=device), device_of(device)
    torch.manual_seed(seed)  # of dropout
    model = TorchEngine(device="cpu").model(pack, pack.weights()).to(on, memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    info = pack.manifest.model
    batches = Batches(images, info.mean, info.std, on)
    views = Augmentation(min(BATCH, len(images)), info.flip)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(images) // views.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def seen() -> Iterator[TrainingBatch]:
        order = np.arange(len(images))[torch.randperm(len(images), generator=generator).numpy()]
        for start in range(0, len(order) - views.batch_size + 1, views.batch_size):
            pixels, labels = batches.read(order[start : start + views.batch_size])
            cameras = place.cameras(len(pixels), generator).to(pixels.device)
            pixels = augment(pixels, views, generator)
            seen_there = 255 * take_pictures(pixels / 255, cameras, generator)
            yield TrainingBatch([batches.normalise(seen_there)], labels, pixels)

    for epoch in range(1, epochs + 1):
        loss = train_epoch(model, seen(), optimizer, schedule, options)
        note(f"epoch {epoch}/{epochs}  loss {loss:.4f}")
    known = set(pack.weights())
    return {name: value.cpu().numpy() for name, value in model.state_dict().items() if name in known}
