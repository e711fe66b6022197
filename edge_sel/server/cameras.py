"""Random cameras: what pictures look like to sensors and in places that the pretraining images have not seen.

Everything happens in linear light, on the trainer's device, for whole batches. A camera is a row of numbers, so that
the same one can take many pictures; the picture passes, in this order, a veil of scattered light, the lens (blur), the
exposure and the white balance, the sensor's colour response, its resolution and its noise.

Sources: camera model after the EMVA 1288 standard (shot and read noise) and the sRGB standard (IEC 61966-2-1);
randomisation after Tobin et al. 2017 (domain randomisation).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

_DARKEST, _BRIGHTEST = -3.3, 1.3
"""Exposure in stops: the darkest picture still has details, the brightest a few."""
_COARSEST = 0.4
"""Smallest share of its resolution that a picture keeps."""
_WIDEST_BLUR = 0.045
"""Largest standard deviation of a blur, as a share of the picture's side."""

_VARIETY = 0.3
"""How far the cameras of one place differ, as a share of how far any two differ."""


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


class Place(NamedTuple):
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


def draw_place(strength: float, generator: torch.Generator) -> Place:
    """Any place; ``strength`` and ``generator`` as of ``draw_cameras``."""
    return Place(draw_cameras(1, strength, generator), _VARIETY, strength)


def take_pictures(pixels: torch.Tensor, cameras: Cameras, generator: torch.Generator) -> torch.Tensor:
    """What each camera makes of its picture.

    Args:
        pixels: stored values [N, 3, H, W], sRGB 0..1.
        cameras: N of them, on the same device.
        generator: seeds the noise; of the CPU.

    Returns:
        stored values [N, 3, H, W], sRGB 0..1.
    """
    light = to_light(pixels)
    share, colour = cameras.veil[:, :1, None, None], cameras.veil[:, 1:, None, None]
    light = (1 - share) * light + share * colour
    light = _blurred(light, cameras.blur) * cameras.gain[:, :, None, None]
    light = torch.einsum("nij,njhw->nihw", cameras.colour, light)
    light = _coarsened(light.clamp(0, 1), cameras.resolution)
    noise = torch.empty_like(light).normal_(generator=_on(light.device, generator))
    variance = cameras.noise.square()[:, :, None, None]
    return to_stored(light + noise * (variance[:, :1] * light + variance[:, 1:]).sqrt())


def to_light(stored: torch.Tensor) -> torch.Tensor:
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
