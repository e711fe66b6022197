"""Train the dense warmup model that a device later fine-tunes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from edge_sel.data.dataset import ImageSet, channel_statistics
from edge_sel.data.folder import require_trainable
from edge_sel.data.split import stratified_split
from edge_sel.models.registry import build, parameter_count
from edge_sel.server import warmup
from edge_sel.server.batches import Batches, BatchOptions, TrainingBatch, autocast, device_of
from edge_sel.server.source.base import WarmupInfo
from edge_sel.server.teacher import Teacher, distillation_loss, open_teacher


@dataclass(frozen=True)
class PretrainOptions:
    """The recipe: SGD with Nesterov momentum, one cosine cycle, label smoothing, flips and padded crops.

    With ``robust`` the share ``camera_share`` of every batch is taken by random cameras, see ``batches.py``;
    ``camera_strength`` says how bad these may be, see ``draw_cameras``. ``teacher`` is a pack, a checkpoint or
    ``timm:NAME``, see ``teacher.py``.
    """

    model: str = "resnet-c"
    epochs: int = 24
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
    robust: bool = True
    camera_strength: float = 1.0
    camera_share: float = 0.6
    teacher: str | None = None


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch; accuracies are on the validation share, which training never sees.

    ``camera_accuracy`` is that of the same images through random cameras of strength 1, the same ones in every epoch.
    ``teacher_seconds`` are the part of ``seconds`` that the teacher took.
    """

    epoch: int
    train_loss: float
    validation_accuracy: float
    camera_accuracy: float
    seconds: float
    teacher_seconds: float = 0.0


def pretrain(
    images: ImageSet,
    out: Path,
    options: PretrainOptions,
    *,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
    note: Callable[[str], None] = lambda line: None,
) -> WarmupInfo:
    """Train on ``images`` and write the warmup checkpoint to ``out``.

    Raises:
        DataError: fewer than two classes, or a class without images.
        UsageError: unknown model, or a teacher of other classes.
        BadInputError: the teacher cannot be read.
        SetupError: the disk is full, ``out`` cannot be written, or a package or weights that are needed are missing.
    """
    require_trainable(images)
    device = device_of(options.device)
    train, held = np.arange(len(images)), np.empty(0, np.int64)
    if options.validation_fraction:
        train, held = stratified_split(images.labels, options.validation_fraction, np.random.default_rng(options.seed))
    teacher, provenance = None, dict[str, object]()
    if options.teacher is not None:  # its path may be private: the checkpoint has its name
        teacher = open_teacher(options.teacher, images, train, device, options.precision)
        provenance = {"teacher": teacher.name, "teacher_accuracy": teacher.accuracy(held)}
        seen = f"accuracy {provenance['teacher_accuracy']:.4f} on held-out images, {teacher.spent():.0f} s"
        note(f"teacher {teacher.name}: {seen}")
    torch.manual_seed(options.seed)  # of the initial weights
    generator = torch.Generator().manual_seed(options.seed)  # of the order and the augmentation
    mean, std = (tuple(float(v) for v in values) for values in channel_statistics(images))
    model = build(options.model, len(images.classes), images.size, pretrained=options.pretrained).to(device)
    model = model.to(memory_format=torch.channels_last)
    held_out = tuple(images.ids[row] for row in held)
    views = BatchOptions(
        options.batch_size, options.flip, options.crop_padding, options.camera_share if options.robust else 0.0,
        options.camera_strength,
    )  # fmt: skip
    loader = Batches(images, mean, std, device)
    steps = options.epochs * max(1, len(train) // options.batch_size)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]  # biases and BN: no weight decay
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, options.learning_rate, options.momentum, nesterov=True)
    rising = 0.5 if steps == 3 else 0.25  # of four steps a quarter is one, which torch cannot divide
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=steps + 1, pct_start=rising, cycle_momentum=False
    )
    for epoch in range(1, options.epochs + 1):
        started = time.monotonic()
        loss = train_epoch(model, loader.shuffled(train, views, generator), optimizer, schedule, options, teacher)
        accuracy = accuracy_on(model, loader.ordered(held))
        camera_accuracy = accuracy_on(model, loader.through_cameras(held))
        figures = {"images": len(train), "finished_epochs": epoch, "validation_accuracy": accuracy}
        figures |= {"camera_accuracy": camera_accuracy, "parameters": parameter_count(model)}
        training = {**asdict(options), **provenance, **figures}
        info = WarmupInfo(options.model, images.classes, images.size, mean, std, training, held_out)
        warmup.save(out, model, info)  # after every epoch: a run that dies leaves its last one
        taught_s = teacher.spent() if teacher else 0.0
        on_epoch(EpochReport(epoch, loss, accuracy, camera_accuracy, time.monotonic() - started, taught_s))
    return info


def train_epoch(
    model: nn.Module,
    batches: Iterable[TrainingBatch],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    options: PretrainOptions,
    teacher: Teacher | None = None,
) -> float:
    """One update per batch; returns the mean loss.

    A teacher sees every image clean, with the crop and flip that the model sees.

    Each group of a batch has batch statistics of its own, as a device's images will have (adaptive risk minimisation,
    Zhang et al. 2021); the first group's alone enter the running ones, which are the model's as it ships.
    """
    losses = []
    model.train()
    for batch in batches:
        with autocast(batch.labels.device, options.precision):
            logits = [model(batch.groups[0])]
            with _running_statistics_kept(model):
                logits += [model(group) for group in batch.groups[1:]]
            made, smoothing = torch.cat(logits), options.label_smoothing
            if teacher is None:
                loss = F.cross_entropy(made, batch.labels, label_smoothing=smoothing)
            else:
                loss = distillation_loss(made, batch.labels, teacher(batch.clean), smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


@contextmanager
def _running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Inside, batch normalisation learns nothing about its inputs."""
    norms = {norm: norm.momentum for norm in model.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)}
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in norms.items():
            norm.momentum = momentum


@torch.inference_mode()
def accuracy_on(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Accuracy (0..1) on batches of images and labels; NaN when there are none."""
    model.eval()
    correct = total = 0
    for x, y in batches:
        correct += int((model(x).argmax(1) == y).sum())
        total += len(y)
    return correct / total if total else float("nan")
