"""Train the dense warmup model that a device later fine-tunes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from edge_sel.data.dataset import ImageSet
from edge_sel.data.folder import require_trainable
from edge_sel.data.split import stratified_split
from edge_sel.data.transforms import channel_statistics
from edge_sel.models.registry import build, parameter_count
from edge_sel.server import warmup
from edge_sel.server.cameras import Cameras, draw_cameras, take_pictures
from edge_sel.server.warmup import WarmupInfo

_EVALUATED_AT_ONCE = 500
_CAMERA_SEED = 2_000_003
"""Of the cameras that a model is judged by; no seed of a training run that anybody would choose."""


@dataclass(frozen=True)
class PretrainOptions:
    """The recipe: SGD with Nesterov momentum, one cosine cycle, label smoothing, flips and padded crops.

    With ``robust`` a share of the images of every batch is taken by random cameras; ``camera_strength`` says how bad
    these may be, see ``draw_cameras``.
    """

    model: str = "resnet-c"
    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    flip: bool = True
    crop_padding: int = 4
    validation_fraction: float = 0.05
    seed: int = 0
    pretrained: bool = False
    device: str = "auto"
    precision: str = "auto"
    robust: bool = False
    camera_strength: float = 1.0
    camera_share: float = 0.6


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch; accuracies are on the validation share, which training never sees.

    ``camera_accuracy`` is that of the same images through random cameras of strength 1, the same ones in every epoch.
    """

    epoch: int
    train_loss: float
    validation_accuracy: float
    camera_accuracy: float
    seconds: float


def pretrain(
    images: ImageSet,
    out: Path,
    options: PretrainOptions,
    *,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
) -> WarmupInfo:
    """Train on ``images`` and write the warmup checkpoint to ``out``.

    Raises:
        DataError: fewer than two classes, or a class without images.
        UsageError: unknown model.
        SetupError: the disk is full or ``out`` cannot be written.
    """
    require_trainable(images)
    torch.manual_seed(options.seed)  # of the initial weights
    generator = torch.Generator().manual_seed(options.seed)  # of the order and the augmentation
    device = _device(options.device)
    mean, std = (tuple(float(v) for v in values) for values in channel_statistics(images))
    model = build(options.model, len(images.classes), images.size, pretrained=options.pretrained).to(device)
    model = model.to(memory_format=torch.channels_last)
    train, held = stratified_split(images.labels, options.validation_fraction, np.random.default_rng(options.seed))
    loader = Batches(images, mean, std, device)
    steps = options.epochs * max(1, len(train) // options.batch_size)
    optimizer = _optimizer(model, options)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=steps + 1, pct_start=0.25, cycle_momentum=False
    )
    for epoch in range(1, options.epochs + 1):
        started = time.monotonic()
        loss = _train_epoch(model, loader.shuffled(train, options, generator), optimizer, schedule, options)
        accuracy = _accuracy(model, loader.ordered(held))
        camera_accuracy = _accuracy(model, loader.through_cameras(held))
        training = {
            **asdict(options),
            "images": len(train),
            "finished_epochs": epoch,
            "validation_accuracy": accuracy,
            "camera_accuracy": camera_accuracy,
            "parameters": parameter_count(model),
        }
        info = WarmupInfo(options.model, images.classes, images.size, mean, std, training)
        warmup.save(out, model, info)  # after every epoch: a run that dies leaves its last one
        on_epoch(EpochReport(epoch, loss, accuracy, camera_accuracy, time.monotonic() - started))
    return info


def _train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    options: PretrainOptions,
) -> float:
    """One update per batch; returns the mean loss."""
    losses = []
    for x, y in batches:
        with _autocast(x.device, options.precision):
            loss = F.cross_entropy(model.train()(x), y, label_smoothing=options.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


class Batches:
    """Normalised batches on a device; augmentation runs there too."""

    def __init__(self, images: ImageSet, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        self.images = images
        self.device = device
        self.scale = torch.tensor([1 / (255 * s) for s in std], device=device)[:, None, None]
        self.offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)[:, None, None]

    def read(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Stored pixels [N, 3, H, W] float32, 0..255, and labels [N] int64 of the given indices."""
        x = torch.from_numpy(self.images.read(indices)).to(self.device).permute(0, 3, 1, 2)
        y = torch.from_numpy(self.images.labels[indices]).to(self.device)
        return x.float(), y

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the model is fed."""
        return (pixels * self.scale + self.offset).to(memory_format=torch.channels_last)

    def shuffled(
        self, indices: np.ndarray, options: PretrainOptions, generator: torch.Generator
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One augmented epoch in random order; a last partial batch is left out (batch statistics)."""
        order = indices[torch.randperm(len(indices), generator=generator).numpy()]
        size = min(options.batch_size, len(order))
        for start in range(0, len(order) - size + 1, size):
            x, y = self.read(order[start : start + size])
            x = augment(x, options, generator)
            if options.robust:
                x = _retake(x, options.camera_share, options.camera_strength, generator)
            yield self.normalise(x), y

    def ordered(self, indices: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every image once, in order, without augmentation."""
        for x, y in self._in_order(indices):
            yield self.normalise(x), y

    def through_cameras(self, indices: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every image once, in order, each by a random camera, which is the same at every call."""
        generator = torch.Generator().manual_seed(_CAMERA_SEED)
        for x, y in self._in_order(indices):
            yield self.normalise(_retake(x, 1.0, 1.0, generator)), y

    def _in_order(self, indices: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(indices), _EVALUATED_AT_ONCE):
            yield self.read(indices[start : start + _EVALUATED_AT_ONCE])


def _retake(pixels: torch.Tensor, share: float, strength: float, generator: torch.Generator) -> torch.Tensor:
    """The first ``share`` of the images [N, 3, H, W], 0..255, as random cameras see them; the others as they are."""
    count = round(share * len(pixels))
    cameras = draw_cameras(count, strength, generator)
    cameras = Cameras(*(field.to(pixels.device) for field in cameras))
    return torch.cat([255 * take_pictures(pixels[:count] / 255, cameras, generator), pixels[count:]])


def augment(x: torch.Tensor, options: PretrainOptions, generator: torch.Generator) -> torch.Tensor:
    """Flip half of the images and shift each by up to ``crop_padding`` pixels, reflecting at the border."""
    n, _, height, width = x.shape
    if options.flip:
        flip = torch.rand(n, generator=generator).to(x.device) < 0.5
        x = torch.where(flip[:, None, None, None], x.flip(3), x)
    pad = options.crop_padding
    if pad:
        padded = F.pad(x, (pad, pad, pad, pad), mode="reflect")
        dy, dx = torch.randint(0, 2 * pad + 1, (2, n), generator=generator).to(x.device)
        rows = (dy[:, None] + torch.arange(height, device=x.device))[:, :, None]
        columns = (dx[:, None] + torch.arange(width, device=x.device))[:, None, :]
        image = torch.arange(n, device=x.device)[:, None, None]
        x = padded.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)
    return x


@torch.inference_mode()
def _accuracy(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Accuracy (0..1) on batches of images and labels; NaN when there are none."""
    model.eval()
    correct = total = 0
    for x, y in batches:
        correct += int((model(x).argmax(1) == y).sum())
        total += len(y)
    return correct / total if total else float("nan")


def _optimizer(model: nn.Module, options: PretrainOptions) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]  # biases and BN: no weight decay
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, options.learning_rate, options.momentum, nesterov=True)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    """Use bfloat16 where the chip multiplies it natively; elsewhere it is slower than float32."""
    if precision == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()
        precision = "bf16" if native else "fp32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _cpu_has_bf16() -> bool:
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())
