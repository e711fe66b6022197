"""An expert for one place: find the cameras that its signature was taken by, and train a pack's model for them.

The training images are the server's own, as that place's cameras would see them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from edge_sel.arrays import Arrays
from edge_sel.data.dataset import ImageSet
from edge_sel.data.signature import Signature, measure
from edge_sel.engines.torch import TorchEngine
from edge_sel.pack.reader import Pack
from edge_sel.server.batches import Batches, BatchOptions, device_of
from edge_sel.server.cameras import CameraPlace, Cameras, draw_cameras, look
from edge_sel.server.pretrain import PretrainOptions, train_epoch

BATCH = 128
LEARNING_RATE = 0.03
_LOOKED_AT = 128
"""Server images that a candidate is judged by."""
_POPULATION, _ELITE, _ROUNDS = 64, 10, 10
_FIRST = 300
"""Random places that the search begins with; their spread is the unit of each number of the signature."""


def fit_place(
    signature: Signature, images: ImageSet, seed: int, note: Callable[[str], None] = lambda line: None
) -> CameraPlace:
    """The place whose pictures of the server's ``images`` have a signature most like the one given.

    Source: de Boer et al. 2005 (the cross-entropy method): random places, then again and again normal variations of
    the best ones.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    clean = images.read(np.sort(rng.permutation(len(images))[:_LOOKED_AT]))
    vectors = np.stack(
        [_flatten(CameraPlace(draw_cameras(1, 1.0, generator), rng.uniform(0, 1))) for _ in range(_FIRST)]
    )
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


def _flatten(place: CameraPlace) -> np.ndarray:
    """As a vector in which a normal variation makes sense: gains by their logarithms."""
    common = place.common._replace(gain=place.common.gain.log2())
    return np.concatenate([*(field.numpy().ravel() for field in common), [place.variety]]).astype(np.float64)


def _place(vector: np.ndarray) -> CameraPlace:
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
    return CameraPlace(common, float(variety.clamp(0, 1)))


def train_expert(
    pack: Pack,
    images: ImageSet,
    place: CameraPlace,
    *,
    epochs: int,
    seed: int,
    device: str = "auto",
    note: Callable[[str], None] = lambda line: None,
) -> Arrays:
    """All weights of the pack, trained for so many epochs on ``images`` as the place's cameras see them.

    The step size is annealed to zero along a cosine. Running statistics are the place's at the end.
    """
    options, on = PretrainOptions(device=device), device_of(device)
    torch.manual_seed(seed)  # of dropout
    model = TorchEngine(device="cpu").model(pack, pack.weights()).to(on, memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    info = pack.manifest.model
    batches = Batches(images, info.mean, info.std, on)
    views = BatchOptions(min(BATCH, len(images)), info.flip, place=place)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(images) // views.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(1, epochs + 1):
        seen = batches.shuffled(np.arange(len(images)), views, generator)
        loss = train_epoch(model, seen, optimizer, schedule, options)
        note(f"epoch {epoch}/{epochs}  loss {loss:.4f}")
    known = set(pack.weights())
    return {name: value.cpu().numpy() for name, value in model.state_dict().items() if name in known}
