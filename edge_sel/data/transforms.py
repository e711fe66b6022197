"""Image batches normalised, and measured."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_sel.data.dataset import ImageSet
from edge_sel.data.images import Float32Array, UInt8Array

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Rec. 601


def normalise(images: UInt8Array, mean: npt.ArrayLike, std: npt.ArrayLike) -> Float32Array:
    """``(images / 255 - mean) / std``, channels first.

    Args:
        images: uint8 [N, H, W, 3].
        mean: [3], in 0..1.
        std: [3], in 0..1, above zero.

    Returns:
        float32 [N, 3, H, W], C-contiguous.

    Raises:
        ValueError: a ``std`` is not above zero.
    """
    centre = np.broadcast_to(np.asarray(mean, dtype=np.float64), 3)
    spread = np.broadcast_to(np.asarray(std, dtype=np.float64), 3)
    if not (spread > 0).all():
        raise ValueError(f"std must be above zero, not {spread.tolist()}")
    scale = (1 / (255 * spread)).astype(np.float32)
    offset = (centre / spread).astype(np.float32)
    count, height, width, _ = images.shape
    result: Float32Array = np.empty((count, 3, height, width), dtype=np.float32)
    for channel in range(3):
        plane = result[:, channel]
        np.multiply(images[..., channel], scale[channel], out=plane)
        plane -= offset[channel]
    return result


def intensity_std(images: UInt8Array) -> Float32Array:
    """Standard deviation of the grey value (0..1) over each image: float32 [N] for uint8 [N, H, W, 3]."""
    grey = images.reshape(len(images), images.shape[1] * images.shape[2], 3) @ (_LUMA / np.float32(255))
    return np.asarray(grey.std(axis=1), dtype=np.float32)


def channel_statistics(image_set: ImageSet, *, batch_size: int = 256) -> tuple[Float32Array, Float32Array]:
    """Mean and standard deviation of each channel over all pixels, read batch by batch.

    Returns:
        (mean, std): float32 [3] each, in 0..1; the std is at least one grey level, so safe to divide by.

    Raises:
        ValueError: the set is empty.
        DataError: an image can no longer be read.
    """
    if not len(image_set):
        raise ValueError("no images to take statistics of")
    total = np.zeros(3, dtype=np.int64)
    squares = np.zeros(3, dtype=np.int64)
    for start in range(0, len(image_set), batch_size):
        batch = image_set.read(np.arange(start, min(start + batch_size, len(image_set))))
        pixels = batch.reshape(-1, 3)
        total += pixels.sum(axis=0, dtype=np.int64)
        squares += np.square(pixels, dtype=np.uint32).sum(axis=0, dtype=np.int64)
    count = len(image_set) * image_set.size[0] * image_set.size[1]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1.0))
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)
