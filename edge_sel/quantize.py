"""The arithmetic of the quantized variant of a frozen backbone: unsigned activations, signed weights per channel.

The server and the device both use it: the integers are always made of the weights and statistics at hand.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_sel.arrays import Arrays, Range
from edge_sel.errors import PackError
from edge_sel.pack.manifest import IMAGE_GRID, Int8Conv, Int8Info

MOST_ERROR = 0.05
"""Features that differ by more, relative to their size, are not taken for the same.

Fine-tuning was as accurate with features that differ by 1.4 to 3.8 %; with a range of the image that does not fit they
differ by 5 to 13 %. Below 5 % the cosine is above 0.99875."""

STEPS = 127
LARGEST_BIAS = 2.0**30
"""In steps: a sum of products must still find room beside it in 32 bits."""


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Root of the summed squares of the differences, relative to that of what is expected; NaN for NaN."""
    difference = np.linalg.norm((found.astype(np.float64) - expected).ravel())
    return float(difference / max(float(np.linalg.norm(expected.astype(np.float64).ravel())), 1e-30))


def grid_of(limits: Range) -> tuple[float, int]:
    """Scale and zero point of 0 … 255 over the range, with the number zero exactly on a step."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    scale = (high - low) / 255
    scale = scale if scale > 1e-30 else 1.0
    return scale, min(max(round(-low / scale), 0), 255)


def quantize_backbone(info: Int8Info, weights: Mapping[str, np.ndarray], image_range: Range) -> Arrays:
    """What the graph is supplied with, by name: integers of every convolution, other weights, the image's grid.

    ``image_range`` is that of the normalised images. It is not the server's: dark images would have few steps of that,
    and re-estimated statistics enlarge what they show (features differ by 9 to 13 %, by 1.5 to 2.3 % with their own).

    Raises:
        PackError: the manifest asks for weights that are not there, or of another shape.
    """
    image_scale, zero = grid_of(image_range)
    supplied: Arrays = dict(zip(IMAGE_GRID, (np.array(image_scale, np.float32), np.array(zero, np.uint8)), strict=True))
    for conv in info.convolutions:
        input_scale = image_scale if conv.input_scale is None else conv.input_scale
        try:
            supplied |= zip(conv.supplied, fold_batch_norm(conv, weights, input_scale), strict=True)
        except (KeyError, ValueError, IndexError) as error:
            raise PackError(
                f"the quantized variant of the frozen backbone asks for weights that are not there ({error})",
                where=conv.name, fix="export the pack again",
            ) from error  # fmt: skip
    return supplied | {name: weights[name] for name in info.constants if name in weights}


def fold_batch_norm(
    conv: Int8Conv, weights: Mapping[str, np.ndarray], input_scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A convolution with its normalisation: int8 weights [O, I, H, W], scales per output channel [O], int32 biases [O].

    A channel's largest weight becomes ±127, unless its bias would have no room in 32 bits then.
    """
    kernel = weights[conv.weight].astype(np.float64)
    bias = weights[conv.bias].astype(np.float64) if conv.bias else np.zeros(len(kernel))
    if conv.norm:
        gamma, beta, mean, variance = (weights[name].astype(np.float64) for name in conv.norm)
        gain = gamma / np.sqrt(variance + conv.epsilon)
        kernel, bias = kernel * gain.reshape(-1, 1, 1, 1), beta + (bias - mean) * gain
    largest = np.abs(kernel).reshape(len(kernel), -1).max(1)
    least = np.abs(bias) / (LARGEST_BIAS * input_scale)
    scale = np.maximum(largest / STEPS, least).astype(np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 1.0
    whole = np.rint(kernel / scale.reshape(-1, 1, 1, 1).astype(np.float64)).clip(-STEPS, STEPS).astype(np.int8)
    steps = np.rint(bias / (scale.astype(np.float64) * input_scale))
    return whole, scale, steps.clip(-LARGEST_BIAS, LARGEST_BIAS).astype(np.int32)
