"""Field conditions that a server makes up: each is one place, seen by its own cameras, or one style of picture.

Cameras change light, on the trainer's device, for whole batches. A camera is a row of numbers, so that the same one can
take many pictures; the picture passes, in this order, a veil of scattered light, the lens (blur), the exposure and the
white balance, the sensor's colour response, its resolution and its noise. They trouble a network that has seen many
photographs little, another style does: drawings, prints, paintings of the same things. What training gains there is
what the table of gains must tell.

Sources: camera model after the EMVA 1288 standard (shot and read noise) and the sRGB standard (IEC 61966-2-1);
randomisation after Tobin et al. 2017 (domain randomisation). Styles after the corruptions and textures by which
networks are told to rely on texture (Geirhos et al. 2019); colours of another picture after Reinhard et al. 2001.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image, ImageFilter, ImageOps

from edge_sel.data.dataset import ImageSet
from edge_sel.data.split import stratified_split

_DARKEST, _BRIGHTEST = -3.3, 1.3
"""Exposure in stops: the darkest picture still has details, the brightest a few."""
_COARSEST = 0.4
"""Smallest share of its resolution that a picture keeps."""
_WIDEST_BLUR = 0.045
"""Largest standard deviation of a blur, as a share of the picture's side."""

_VARIETY = 0.3
"""How far the cameras of one place differ, as a share of how far any two differ."""
_AT_ONCE = 500
_LEAST_SPREAD = 8.0
"""Smallest standard deviation of a channel, of 255, by which colours are divided."""
_WIDEST = 1.5
"""Most that colours are spread apart."""


class Cameras(NamedTuple):
    """N cameras; every field is float32 with N rows."""

    veil: torch.Tensor
    """[N, 4]: share of the light that is scattered, 0..1, then the colour of the veil in linear light."""
    blur: torch.Tensor
    """[N, 3]: standard deviations along and across, as shares of the side, and the direction in radians."""
    gain: torch.Tensor
    """[N, 3]: exposure times white balance of red, green and blue."""
    colour: torch.Tensor
    """[N, 3, 3]: response of the sensor's colours to those of the light."""
    resolution: torch.Tensor
    """[N]: share of its rows and columns that a picture keeps, 1 for all."""
    noise: torch.Tensor
    """[N, 2]: standard deviation of the shot noise at white and of the read noise, in linear light."""

    def to(self, device: torch.device) -> Cameras:
        """The same on another device."""
        return Cameras(*(field.to(device) for field in self))


def draw_cameras(count: int, strength: float, generator: torch.Generator) -> Cameras:
    """Cameras of all kinds; of each imperfection a camera has none, a little or much.

    Args:
        count: N.
        strength: 0 gives perfect cameras, 1 what people meet in the field; ranges grow in proportion.
        generator: of the CPU, so that the same seed gives the same cameras on every device.
    """

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator)

    def present(share: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) < share).float()

    veiled, blurred, exposed, tinted, mixed, coarse, noisy = (
        strength * present(share) for share in (0.25, 0.45, 0.6, 0.6, 0.25, 0.2, 0.5)
    )
    stops = exposed * uniform(_DARKEST, _BRIGHTEST)
    balance = 0.55 * tinted[:, None] * normal(3)
    brightness = uniform(0.3, 0.95)[:, None] * (1 + 0.1 * normal(3))
    widths = blurred[:, None] * uniform(0.1, 1.0, 2) * _WIDEST_BLUR
    identity = torch.eye(3).expand(count, 3, 3)
    return Cameras(
        veil=torch.cat([(veiled * uniform(0.1, 0.65))[:, None].clamp(max=0.9), brightness.clamp(0, 1)], 1),
        blur=torch.cat([widths, uniform(0.0, math.pi, 1)], 1),
        gain=torch.exp2(stops[:, None] + balance),
        colour=identity + 0.35 * mixed[:, None, None] * normal(3, 3),
        resolution=1 - (coarse * uniform(0.0, 1 - _COARSEST)).clamp(max=1 - _COARSEST),
        noise=noisy[:, None] * torch.stack([uniform(0.0, 0.12), uniform(0.0, 0.02)], 1),
    )


class CameraPlace(NamedTuple):
    """Cameras that are much alike."""

    common: Cameras
    """What they have in common, one row."""
    variety: float
    """How far they differ, as a share of how far any two cameras do."""
    strength: float = 1.0
    """Of what they do not have in common, see ``draw_cameras``."""

    def cameras(self, count: int, generator: torch.Generator) -> Cameras:
        """So many of them."""
        own = draw_cameras(count, self.strength, generator)
        return Cameras(*(a + self.variety * (b - a) for a, b in zip(self.common, own, strict=True)))


def draw_place(strength: float, generator: torch.Generator) -> CameraPlace:
    """Any place; ``strength`` and ``generator`` as of ``draw_cameras``."""
    return CameraPlace(draw_cameras(1, strength, generator), _VARIETY, strength)


def take_pictures(pixels: torch.Tensor, cameras: Cameras, generator: torch.Generator) -> torch.Tensor:
    """What each camera makes of its picture.

    Args:
        pixels: stored values [N, 3, H, W], sRGB 0..1.
        cameras: N of them, on the same device.
        generator: seeds the noise; of the CPU.

    Returns:
        stored values [N, 3, H, W], sRGB 0..1.
    """
    light = to_linear(pixels)
    share, colour = cameras.veil[:, :1, None, None], cameras.veil[:, 1:, None, None]
    light = (1 - share) * light + share * colour
    light = _blurred(light, cameras.blur) * cameras.gain[:, :, None, None]
    light = torch.einsum("nij,njhw->nihw", cameras.colour, light)
    light = _coarsened(light.clamp(0, 1), cameras.resolution)
    noise = torch.empty_like(light).normal_(generator=_on(light.device, generator))
    variance = cameras.noise.square()[:, :, None, None]
    return to_stored(light + noise * (variance[:, :1] * light + variance[:, 1:]).sqrt())


def to_linear(stored: torch.Tensor) -> torch.Tensor:
    """sRGB 0..1 to linear light, 1 is white."""
    return torch.where(stored <= 0.04045, stored / 12.92, ((stored.clamp(min=0) + 0.055) / 1.055) ** 2.4)


def to_stored(light: torch.Tensor) -> torch.Tensor:
    """Linear light to sRGB 0..1; what is brighter than white is white."""
    light = light.clamp(0, 1)
    # The root of 0 has no gradient, and a camera may be fitted by gradients.
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clamp(min=1e-6) ** (1 / 2.4) - 0.055)


def _blurred(light: torch.Tensor, blur: torch.Tensor) -> torch.Tensor:
    """Gaussian blurs of any direction, as products of spectra; the border is mirrored, so that nothing wraps around."""
    height, width = light.shape[2:]
    side = min(height, width)
    edge = min(side - 1, math.ceil(2 * _WIDEST_BLUR * side))
    padded = F.pad(light, (edge, edge, edge, edge), mode="reflect")
    down = torch.fft.fftfreq(padded.shape[2], device=light.device)[:, None]
    across = torch.fft.rfftfreq(padded.shape[3], device=light.device)[None, :]
    angle = blur[:, 2, None, None]
    along = torch.cos(angle) * across + torch.sin(angle) * down
    aside = torch.cos(angle) * down - torch.sin(angle) * across
    widths = side * blur[:, :2, None, None]
    response = torch.exp(-2 * math.pi**2 * ((widths[:, 0] * along) ** 2 + (widths[:, 1] * aside) ** 2))
    spectrum = torch.fft.rfft2(padded) * response[:, None]
    return torch.fft.irfft2(spectrum, s=padded.shape[2:])[:, :, edge : edge + height, edge : edge + width]


def _coarsened(light: torch.Tensor, resolution: torch.Tensor) -> torch.Tensor:
    """Mean over blocks, spread over the blocks again: fewer pixels on the same frame."""
    rows, columns = (_blocks(length, resolution) for length in light.shape[2:])
    return rows[:, None] @ light @ columns[:, None].transpose(2, 3)


def _blocks(length: int, resolution: torch.Tensor) -> torch.Tensor:
    """[N, length, length]: the share that each old pixel has in the block that each new pixel lies in."""
    count = (length * resolution).round().clamp(min=1)[:, None, None]
    place = torch.arange(length, device=resolution.device, dtype=torch.float32)
    size = length / count
    start = torch.floor((place[None, :, None] + 0.5) / size) * size
    covered = torch.minimum(place[None, None] + 1, start + size) - torch.maximum(place[None, None], start)
    return covered.clamp(min=0) / size


def _on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator of the device that follows from the one given; the same one where that is the CPU's."""
    if device.type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


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


def look(place: CameraPlace, images: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Images uint8 [N, H, W, 3] as the place's cameras see them."""
    cameras = place.cameras(len(images), generator)
    taken = [images[:0]]  # there may be none
    for start in range(0, len(images), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        pixels = torch.from_numpy(images[rows]).permute(0, 3, 1, 2).float() / 255
        seen = take_pictures(pixels, Cameras(*(field[rows] for field in cameras)), generator)
        taken.append((255 * seen).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(taken)


def simulate_place(images: ImageSet, place: CameraPlace, generator: torch.Generator) -> ImageSet:
    """All of the images as they look there."""
    return _changed(images, partial(look, place, generator=generator))


def simulate_fields(
    training: ImageSet, validation: ImageSet, places: int, seed: int
) -> Iterator[tuple[ImageSet, ImageSet]]:
    """Both sets as they are, then as they look in so many places.

    Every second place has cameras of strength 0.5 to 1.5, the others a style. In one of two pairs of places there is a
    quarter of the images to train on.
    """
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    yield training, validation
    for number in range(places):
        few = stratified_split(training.labels, 0.25, rng)[1]  # of every class: a single image trains nothing
        seen = training.subset(few) if number // 2 % 2 else training
        if number % 2:
            style = STYLES[number // 2 % len(STYLES)]
            pair = [_changed(images, partial(restyle, style, rng=rng)) for images in (seen, validation)]
        else:
            place = draw_place(0.5 + number / max(places - 1, 1), generator)
            pair = [simulate_place(images, place, generator) for images in (seen, validation)]
        yield pair[0], pair[1]


def _changed(images: ImageSet, change: Callable[[np.ndarray], np.ndarray]) -> ImageSet:
    pixels = change(images.read(np.arange(len(images))))
    return ImageSet.from_arrays(pixels, images.labels, images.classes, images.ids)
