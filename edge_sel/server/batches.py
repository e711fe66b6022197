"""Batches for pretraining: on which device, in which precision, augmented, some of the images through cameras."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from edge_sel.data.dataset import ImageSet
from edge_sel.errors import UsageError
from edge_sel.server.cameras import CameraPlace, Cameras, draw_cameras, draw_place, take_pictures

_EVALUATED_AT_ONCE = 500
_CAMERA_SEED = 2_000_003
"""Of the cameras that a model is judged by; no seed of a training run that anybody would choose."""
_LEAST_IN_PLACE = 8
"""Images; batch statistics of fewer are mostly noise."""


class BatchOptions(NamedTuple):
    """What becomes of the images of a batch.

    Attributes:
        batch_size: images in a batch.
        flip: whether to mirror half of them.
        crop_padding: pixels by which to shift each at most.
        camera_share: share of them that random cameras take.
        camera_strength: how bad these may be.
        place: whose cameras take all of them instead.
    """

    batch_size: int = 128
    flip: bool = True
    crop_padding: int = 4
    camera_share: float = 0.0
    camera_strength: float = 1.0
    place: CameraPlace | None = None


class TrainingBatch(NamedTuple):
    """One batch of N images; the rows of ``groups``, one after another, are those of ``labels`` and ``clean``.

    Attributes:
        groups: normalised images [n, 3, H, W] each, some of them through cameras; N in all.
        labels: int64 [N].
        clean: stored pixels [N, 3, H, W], 0..255, with the same crop and flip, but through no camera.
    """

    groups: list[torch.Tensor]
    labels: torch.Tensor
    clean: torch.Tensor


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

    def shuffled(self, indices: np.ndarray, views: BatchOptions, generator: torch.Generator) -> Iterator[TrainingBatch]:
        """One augmented epoch in random order, in groups; a last partial batch is left out (batch statistics)."""
        order = indices[torch.randperm(len(indices), generator=generator).numpy()]
        size = min(views.batch_size, len(order))
        for start in range(0, len(order) - size + 1, size):
            x, y = self.read(order[start : start + size])
            x = augment(x, views, generator)
            yield TrainingBatch([self.normalise(group) for group in in_groups(x, views, generator)], y, x)

    def ordered(self, indices: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every image once, in order, without augmentation."""
        for x, y in self.in_order(indices):
            yield self.normalise(x), y

    def through_cameras(self, indices: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every image once, in order, each by a random camera, which is the same at every call."""
        generator = torch.Generator().manual_seed(_CAMERA_SEED)
        for x, y in self.in_order(indices):
            yield self.normalise(_taken_by(draw_cameras(len(x), 1.0, generator), x, generator)), y

    def in_order(
        self, indices: np.ndarray, at_once: int = _EVALUATED_AT_ONCE
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every image once, in order, as stored: pixels [n, 3, H, W] float32, 0..255, and labels [n] int64."""
        for start in range(0, len(indices), at_once):
            yield self.read(indices[start : start + at_once])


def in_groups(pixels: torch.Tensor, views: BatchOptions, generator: torch.Generator) -> list[torch.Tensor]:
    """A batch [N, 3, H, W], 0..255, in groups, in order: first clean and random pictures, then two places.

    A third of the pictures that cameras take are in the first group, each by any camera; a third are in either place,
    where the cameras are much alike. So the model learns to stand pictures of all kinds, and to make the most of the
    statistics of one kind. Without cameras, with too few images for a place, or all in one, there is one group.
    """
    if views.place is not None:
        return [_taken_by(views.place.cameras(len(pixels), generator), pixels, generator)]
    place = round(views.camera_share * len(pixels) / 3)
    if place < _LEAST_IN_PLACE:
        count = round(views.camera_share * len(pixels))
        return [_mixed(pixels, count, views.camera_strength, generator)]
    first, *places = pixels.split([len(pixels) - 2 * place, place, place])
    return [
        _mixed(first, min(place, len(first)), views.camera_strength, generator),
        *(
            _taken_by(draw_place(views.camera_strength, generator).cameras(place, generator), part, generator)
            for part in places
        ),
    ]


def _mixed(pixels: torch.Tensor, count: int, strength: float, generator: torch.Generator) -> torch.Tensor:
    """The first ``count`` as random cameras see them; the others as they are."""
    if not count:
        return pixels
    cameras = draw_cameras(count, strength, generator)
    return torch.cat([_taken_by(cameras, pixels[:count], generator), pixels[count:]])


def _taken_by(cameras: Cameras, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return 255 * take_pictures(pixels / 255, cameras.to(pixels.device), generator)


def augment(x: torch.Tensor, views: BatchOptions, generator: torch.Generator) -> torch.Tensor:
    """Flip half of the images and shift each by up to ``crop_padding`` pixels, reflecting at the border."""
    n, _, height, width = x.shape
    if views.flip:
        flip = torch.rand(n, generator=generator).to(x.device) < 0.5
        x = torch.where(flip[:, None, None, None], x.flip(3), x)
    pad = views.crop_padding
    if pad:
        padded = F.pad(x, (pad, pad, pad, pad), mode="reflect")
        dy, dx = torch.randint(0, 2 * pad + 1, (2, n), generator=generator).to(x.device)
        rows = (dy[:, None] + torch.arange(height, device=x.device))[:, :, None]
        columns = (dx[:, None] + torch.arange(width, device=x.device))[:, None, :]
        image = torch.arange(n, device=x.device)[:, None, None]
        x = padded.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)
    return x


def device_of(name: str) -> torch.device:
    """The named device; ``auto`` is a graphics card if there is one.

    Raises:
        UsageError: torch does not know it, or it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        what = f"--device cannot be used, {str(error).splitlines()[0]}"
        raise UsageError(what, where=name, fix="auto, cpu or cuda") from error
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Use bfloat16 where the chip multiplies it natively; elsewhere it is slower than float32."""
    if precision == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_bf16()
        precision = "bf16" if native else "fp32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 natively."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())
