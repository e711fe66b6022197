"""Find the cameras that make a server's own images look like a device's: the cross-entropy method on a signature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from edge_sel.data.dataset import ImageSet
from edge_sel.data.signature import Signature, measure
from edge_sel.server.cameras import Cameras, Place, draw_cameras
from edge_sel.server.simulate import look

_LOOKED_AT = 128
"""Server images that a candidate is judged by."""
_POPULATION, _ELITE, _ROUNDS = 64, 10, 10
_FIRST = 300
"""Random places that the search begins with; their spread is the unit of each number of the signature."""


def fit_place(
    signature: Signature, images: ImageSet, seed: int, note: Callable[[str], None] = lambda line: None
) -> Place:
    """The place whose pictures of the server's ``images`` have a signature most like the one given.

    Source: de Boer et al. 2005 (the cross-entropy method): random places, then again and again normal variations of
    the best ones.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    clean = images.read(np.sort(rng.permutation(len(images))[:_LOOKED_AT]))
    vectors = np.stack([_flatten(Place(draw_cameras(1, 1.0, generator), rng.uniform(0, 1))) for _ in range(_FIRST)])
    found = np.stack([_seen(vector, clean, seed) for vector in vectors])
    unit = found.std(0) + 1e-6
    apart = _distance(found, signature, unit)
    plain = _distance(measure(clean), signature, unit)
    note(f"fitting cameras: distance {plain:.3f} without any, {apart.min():.3f} of the best at random")
    for _ in range(_ROUNDS):
        best = np.argsort(apart, kind="stable")[:_ELITE]
        centre, spread = vectors[best].mean(0), vectors[best].std(0)
        new = np.stack([rng.normal(centre, spread) for _ in range(_POPULATION)])
        vectors = np.concatenate([vectors[best], new])
        apart = np.concatenate(
            [apart[best], _distance(np.stack([_seen(v, clean, seed) for v in new]), signature, unit)]
        )
    note(f"fitting cameras: distance {apart.min():.3f} at the end")
    return _place(vectors[int(apart.argmin())])


def _seen(vector: np.ndarray, clean: np.ndarray, seed: int) -> np.ndarray:
    """The numbers of what a place makes of the images, by the same chance for every place."""
    return measure(look(_place(vector), clean, torch.Generator().manual_seed(seed)))


def _distance(values: np.ndarray, signature: Signature, unit: np.ndarray) -> np.ndarray:
    """Root mean square difference, in spreads of random places."""
    result: np.ndarray = np.sqrt((np.clip((values - signature.values) / unit, -5, 5) ** 2).mean(-1))
    return result


def _flatten(place: Place) -> np.ndarray:
    """As a vector in which a normal variation makes sense: gains by their logarithms."""
    common = place.common._replace(gain=place.common.gain.log2())
    return np.concatenate([*(field.numpy().ravel() for field in common), [place.variety]]).astype(np.float64)


def _place(vector: np.ndarray) -> Place:
    """Back, within what cameras can be."""
    values = torch.from_numpy(vector).float()
    veil, blur, gain, colour, resolution, noise, variety = values.split([4, 3, 3, 9, 1, 2, 1])
    common = Cameras(
        veil=torch.cat([veil[:1].clamp(0, 0.9), veil[1:].clamp(0, 1)])[None],
        blur=torch.cat([blur[:2].clamp(0, 0.1), blur[2:]])[None],
        gain=torch.exp2(gain.clamp(-6, 3))[None],
        colour=colour.reshape(1, 3, 3),
        resolution=resolution.clamp(0.3, 1),
        noise=noise.clamp(0, 0.4)[None],
    )
    return Place(common, float(variety.clamp(0, 1)))
