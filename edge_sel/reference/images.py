"""Images that live on the device and are augmented there: one gather and one multiplication per batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from edge_sel.data.dataset import ImageSet, channel_statistics
from edge_sel.reference.systems import Augmentation

RESIDENT_SHARE = 0.6
"""Of the device's free memory that the images may take; beyond it they are read batch by batch."""
_CHUNK = 4096


class Draw(NamedTuple):
    """What chance decided for one epoch, for every image: flip bool[N], down and right int64[N] in pixels."""

    flip: torch.Tensor
    down: torch.Tensor
    right: torch.Tensor


class DeviceImages:
    """Labelled images of one size, normalised by ``mean`` and ``std``.

    Attributes:
        labels: int64[N] on the device.
        resident: whether the pixels are on the device too, as they fit into ``share`` of its free memory. If not, each
            batch waits for the disk or the host.
    """

    def __init__(
        self, source: ImageSet, mean: np.ndarray, std: np.ndarray, device: torch.device, share: float = RESIDENT_SHARE
    ) -> None:
        self.source, self.device = source, device
        self.classes, self.size = source.classes, source.size
        self.labels = torch.from_numpy(source.labels).to(device)
        self._scale = torch.tensor(1 / (255 * std), device=device, dtype=torch.float32)[:, None, None]
        self._offset = torch.tensor(-mean / std, device=device, dtype=torch.float32)[:, None, None]
        self.resident = len(source) * source.size[0] * source.size[1] * 3 <= share * _free_bytes(device)
        self._pixels = torch.from_numpy(np.empty((0, *source.size, 3), np.uint8))
        if self.resident:
            self._pixels = torch.empty((len(source), *source.size, 3), dtype=torch.uint8, device=device)
            for start in range(0, len(source), _CHUNK):
                rows = np.arange(start, min(start + _CHUNK, len(source)))
                self._pixels[start : start + len(rows)] = torch.from_numpy(source.read(rows)).to(device)

    def __len__(self) -> int:
        return len(self.source)

    def draw(self, augmentation: Augmentation, epoch: int, seed: int) -> Draw:
        """The chances of an epoch; drawn on the host, so that every device gets the same."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        n, shift = len(self), augmentation.shift
        down, right = torch.randint(-shift, shift + 1, (2, n), generator=generator)
        flip = torch.rand(n, generator=generator) < 0.5
        if augmentation.flip == "none":
            flip = torch.zeros(n, dtype=torch.bool)
        elif augmentation.flip == "alternate":
            first = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.5
            flip = first ^ bool(epoch % 2)
        return Draw(flip.to(self.device), down.to(self.device), right.to(self.device))

    def batch(self, index: torch.Tensor, draw: Draw | None = None, border: str = "zero") -> torch.Tensor:
        """The images at ``index`` (int64[B] on the device), augmented if there is a draw.

        Returns:
            float32[B, 3, H, W], channels last in memory.
        """
        if self.resident:
            pixels, places = self._pixels, index
        else:
            pixels = torch.from_numpy(self.source.read(index.cpu().numpy())).to(self.device)
            places = torch.arange(len(index), device=self.device)
        if draw is None:
            x = pixels[places]
            return x.permute(0, 3, 1, 2).float() * self._scale + self._offset
        height, width = self.size
        rows = torch.arange(height, device=self.device) + draw.down[index][:, None]
        columns = torch.arange(width, device=self.device).expand(len(index), width)
        columns = torch.where(draw.flip[index][:, None], width - 1 - columns, columns) + draw.right[index][:, None]
        x = pixels[places[:, None, None], _inside(rows, height)[:, :, None], _inside(columns, width)[:, None, :]]
        x = x.permute(0, 3, 1, 2).float() * self._scale + self._offset
        if border == "zero":
            inside = [(place >= 0) & (place < size) for place, size in ((rows, height), (columns, width))]
            seen = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
            x = torch.where(seen, x, self._offset)  # black before normalisation, as the usual padding
        return x


def make_images(
    train: ImageSet, test: ImageSet, device: torch.device, statistics_images: int = 10_000
) -> tuple[DeviceImages, DeviceImages]:
    """Both sets on the device, normalised by the statistics of (up to this many) training images."""
    chosen = np.linspace(0, len(train) - 1, min(len(train), statistics_images)).astype(np.int64)
    mean, std = channel_statistics(train.subset(chosen))
    return DeviceImages(train, mean, std, device), DeviceImages(test, mean, std, device)


def _inside(place: torch.Tensor, size: int) -> torch.Tensor:
    """Places beyond the border, reflected; a place is off by less than the size."""
    place = place.abs()
    return torch.where(place >= size, 2 * (size - 1) - place, place)


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    import psutil

    return float(psutil.virtual_memory().available)
