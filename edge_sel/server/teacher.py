"""Knowledge distillation: while a model is trained, a teacher tells how probable every class is on each image.

Sources: Hinton et al. 2015 (the loss); Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and
consistent" (the teacher sees the student's own crop and flip of the image, so its logits are computed at every step);
Xie et al. 2020, "Self-training with noisy student" (noise is for the student only). So the teacher never looks through
a random camera: it is most often right on the clean picture, and the student learns to say the same of the bad one.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from edge_sel.data.dataset import ImageSet
from edge_sel.engines.torch import TorchEngine
from edge_sel.errors import PackError, UsageError
from edge_sel.models.registry import TIMM, timm_backbone
from edge_sel.pack.manifest import ModelInfo
from edge_sel.pack.reader import open_pack
from edge_sel.sel.ridge import fit_head
from edge_sel.server import warmup
from edge_sel.server.batches import Batches, autocast
from edge_sel.server.source.base import WarmupInfo

TEMPERATURE = 4.0
LABEL_WEIGHT = 0.1
"""Both as Tian et al. 2020 (Contrastive Representation Distillation) have them for Hinton's loss on CIFAR-100."""
_MOST_FITTED = 20_000
"""Images that a new head is fitted to; more take gigabytes and change it little."""
_AT_ONCE = 128
"""Images; a teacher's may be large."""


class Teacher:
    """A trained classifier in inference, with its own input size, mean and standard deviation.

    Attributes:
        name: of its model, and of its file if it has one.
    """

    def __init__(
        self, name: str, model: nn.Module, size: tuple[int, int], loader: Batches, precision: str = "auto"
    ) -> None:
        """``loader`` normalises pixels for the model, whose images are ``size`` (height, width) in pixels."""
        self.name, self._seconds = name, 0.0
        self._model = model.to(loader.device, memory_format=torch.channels_last).eval()
        self._size, self._loader, self._precision = size, loader, precision

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits float32 [N, C] of stored pixels [N, 3, H, W], 0..255; they are resized to the teacher's size."""
        started = self._now()
        if pixels.shape[2:] != self._size:
            pixels = F.interpolate(pixels, self._size, mode="bilinear", antialias=True)
        with autocast(pixels.device, self._precision):
            logits = self._model(self._loader.normalise(pixels)).float()
        self._seconds += self._now() - started
        return logits

    def _now(self) -> float:
        """Seconds; on a graphics card only after all that was asked of it is done, else the time is another's."""
        if self._loader.device.type == "cuda":
            torch.cuda.synchronize(self._loader.device)
        return time.monotonic()

    def of_rows(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits float32 [N, C] and labels int64 [N] of these images, at least one, as they are stored."""
        logits = torch.cat([self(pixels) for pixels, _ in self._loader.in_order(rows, _AT_ONCE)])
        return logits, torch.from_numpy(self._loader.images.labels[rows]).to(logits.device)

    def spent(self) -> float:
        """Seconds that it has computed since this was asked last."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def accuracy(self, rows: np.ndarray) -> float:
        """Accuracy (0..1) on these images; NaN when there are none."""
        if not len(rows):
            return float("nan")
        logits, labels = self.of_rows(rows)
        return float((logits.argmax(1) == labels).float().mean())


def open_teacher(
    given: str, images: ImageSet, training: np.ndarray, device: torch.device, precision: str = "auto"
) -> Teacher:
    """The teacher for ``images``.

    Args:
        given: a pack, a checkpoint of ``edge-sel pretrain`` (``.safetensors``), both with the classes of the images;
            or ``timm:NAME``, which gets a new head.
        images: that the student is trained on and judged by.
        training: int64 [N], indices of those that it is trained on; a new head is fitted to these alone.
        device: to compute on.
        precision: auto, fp32 or bf16.

    Raises:
        BadInputError: the file cannot be read.
        UsageError: the classes are others or in another order, or timm has no such model.
        SetupError: timm or its pretrained weights are missing.
    """
    if given.startswith(TIMM):
        return _with_new_head(given, images, training, device, precision)
    path = Path(given)
    info: WarmupInfo | ModelInfo
    if path.suffix == ".safetensors":
        model, info = warmup.load(path)
        name = info.model
    else:
        pack = open_pack(path)
        info, name = pack.manifest.model, pack.manifest.model.name
        try:
            model = TorchEngine(device="cpu").model(pack, pack.weights())
        except (
            RuntimeError,
            AttributeError,
            AssertionError,
        ) as error:  # of torch: other shapes, layers; of ours: names
            raise PackError("weights do not fit the model", where=f"{path} ({name})") from error
    if info.classes != images.classes:
        what = f"the teacher has other classes than the images, or in another order ({_few(info.classes)})"
        raise UsageError(what, where=path, fix=f"train it on the same folders: {_few(images.classes)}")
    loader = Batches(images, info.mean, info.std, device)
    return Teacher(f"{name} ({path.name})", model, info.image_size, loader, precision)


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" … {len(names)} in all" if len(names) > 3 else "")


def _with_new_head(given: str, images: ImageSet, training: np.ndarray, device: torch.device, precision: str) -> Teacher:
    """A pretrained backbone of timm with a linear head, fitted in closed form to its features of training images."""
    backbone = timm_backbone(given.removeprefix(TIMM))
    loader = Batches(images, backbone.mean, backbone.std, device)
    look = Teacher(given, backbone.model, backbone.image_size, loader, precision)
    features, labels = look.of_rows(np.random.default_rng(0).permutation(training)[:_MOST_FITTED])
    head = nn.Linear(features.shape[1], len(images.classes))
    fit = fit_head(features, labels, len(images.classes))
    with torch.no_grad():
        head.weight.copy_(fit.weight)
        head.bias.copy_(fit.bias)
    return Teacher(given, nn.Sequential(backbone.model, head), backbone.image_size, loader, precision)


def distillation_loss(
    logits: torch.Tensor, labels: torch.Tensor, taught: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """What the student's logits lack of the teacher's, and of the labels.

    Formula: ``w CE(labels, logits) + (1 - w) T² KL(softmax(taught / T) || softmax(logits / T))``, the mean over the
    batch in nats, with w of 0.1 and T of 4; T² keeps the gradients of both parts in proportion (Hinton et al. 2015).

    Args:
        logits: [N, C] of the student.
        labels: int64 [N].
        taught: [N, C], logits of the teacher.
        label_smoothing: of the first part.
    """
    cooler, wanted = (F.log_softmax(values.float() / TEMPERATURE, 1) for values in (logits, taught))
    soft = TEMPERATURE**2 * F.kl_div(cooler, wanted, reduction="batchmean", log_target=True)
    return LABEL_WEIGHT * F.cross_entropy(logits, labels, label_smoothing=label_smoothing) + (1 - LABEL_WEIGHT) * soft
