"""Other kinds of pictures of the same things: drawings, prints, paintings, as a server can make them of photographs.

Cameras trouble a network that has seen many photographs little, another style does. What training gains there is what
the table of gains must tell. Styles after the corruptions and textures by which networks are told to rely on texture
(Geirhos et al. 2019); colours of another picture after Reinhard et al. 2001.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter, ImageOps

_LEAST_SPREAD = 8.0
"""Smallest standard deviation of a channel, of 255, by which colours are divided."""
_WIDEST = 1.5
"""Most that colours are spread apart."""


def recoloured(picture: Image.Image, other: Image.Image) -> Image.Image:
    """With the mean and the spread of each channel of another picture."""
    own, theirs = (np.asarray(each, np.float32) for each in (picture, other))
    spread = np.maximum(own.std((0, 1)), _LEAST_SPREAD)
    factor = np.minimum(theirs.std((0, 1)) / spread, _WIDEST)
    changed = (own - own.mean((0, 1))) * factor + theirs.mean((0, 1))
    return Image.fromarray(changed.round().clip(0, 255).astype(np.uint8))


def painted(picture: Image.Image, other: Image.Image) -> Image.Image:
    """Strokes of one colour each, in the colours of another picture."""
    return recoloured(picture.filter(ImageFilter.ModeFilter(_stroke(picture))), other)


def printed(picture: Image.Image, other: Image.Image) -> Image.Image:
    """Few flat colours."""
    return ImageOps.posterize(ImageOps.autocontrast(picture.filter(ImageFilter.MedianFilter(_stroke(picture)))), 2)


def drawn(picture: Image.Image, other: Image.Image) -> Image.Image:
    """Dark lines on white paper."""
    lines = picture.convert("L").filter(ImageFilter.SMOOTH).filter(ImageFilter.CONTOUR)
    inner = ImageOps.crop(ImageOps.autocontrast(lines, cutoff=(1, 0)), 1)  # the filter leaves the frame as it is
    return inner.resize(picture.size, Image.Resampling.BILINEAR).convert("RGB")


def grey(picture: Image.Image, other: Image.Image) -> Image.Image:
    """Without colour."""
    return picture.convert("L").convert("RGB")


def inverted(picture: Image.Image, other: Image.Image) -> Image.Image:
    """A negative."""
    return ImageOps.invert(picture)


Style = Callable[[Image.Image, Image.Image], Image.Image]
STYLES: tuple[Style, ...] = (painted, drawn, printed, recoloured, inverted, grey)
"""Each takes a picture and another one of the same place, whose colours it may use."""


def restyle(style: Style, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Images uint8 [N, H, W, 3] in one style."""
    pictures = [Image.fromarray(image) for image in images]
    others = rng.permutation(len(pictures))
    made = [np.asarray(style(picture, pictures[other])) for picture, other in zip(pictures, others, strict=True)]
    return np.stack(made) if made else images


def _stroke(picture: Image.Image) -> int:
    """Pixels, an odd number: a thirtieth of the side."""
    return 2 * (min(picture.size) // 60) + 3
