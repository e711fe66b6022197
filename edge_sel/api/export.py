"""``export``: a classifier, as a file, by a name or as a torch module, becomes a pack."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sel.config.schema import KeySpec, schema_of
from edge_sel.config.settings import MAX_SEED, Settings
from edge_sel.errors import DataError, GraphError, PackError, UsageError

if TYPE_CHECKING:  # these take long to import, and the help of the command does without them
    from edge_sel.api.round import AnyPath
    from edge_sel.data.dataset import ImageSet
    from edge_sel.pack.reader import Pack
    from edge_sel.server.source.base import Source

REHEARSALS, LARGE = 8, 96
"""By default; none for images of more pixels aside. There one takes minutes, and simulated cameras trouble such
networks little: they measured a gain of 0 for every stage of the body."""

_LIMITS = {
    "optimizer": KeySpec(str, "", choices=("adam", "sgd")),
    "gamma_percentile": KeySpec(float, "", low=0, high=100),
    "limit_per_class": KeySpec(int, "", low=1),
    "rehearsals": KeySpec(int, "", low=0, optional=True),
    "seed": KeySpec(int, "", low=0, high=MAX_SEED),
    "max_pixels": schema_of(Settings)["max_pixels"],
}


def export(
    source: Any,
    images: ImageSet | AnyPath,
    *,
    out: AnyPath,
    weights: AnyPath | None = None,
    classes: Sequence[str] | AnyPath | None = None,
    new_head: bool = False,
    image_size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    plans: Sequence[str] = (),
    optimizer: str = "sgd",
    gamma_percentile: float = 40.0,
    limit_per_class: int = 500,
    rehearsals: int | None = None,
    with_ort_training: bool = False,
    seed: int = 0,
    max_pixels: int = Settings.max_pixels,
    note: Callable[[str], None] = lambda line: None,
) -> Pack:
    """Turn a classifier into a pack that a device can fine-tune without torch.

    Args:
        source: a torch module, a checkpoint of ``edge-sel pretrain``, a forward .onnx file (which needs no torch),
            ``imagenet:efficientnet-lite0``, ``torchvision:NAME``, ``timm:NAME``, or ``path/to/model.py:make_model``.
            A module is not changed.
        images: clean images of the model's classes, for calibration: a folder ``DIR/<class>/*.jpg``, or images in
            memory, uint8 [N, H, W, 3] of the model's size (``ImageSet.from_arrays``).
        out: pack to write: a folder, or one file if it ends in ``.edgepack``.
        weights: for a model made by name: .safetensors, or .pth with a state dict.
        classes: the model's class names, in the order of its logits, or a file with one per line; None for those of
            the images.
        new_head: fit a new head for the classes of the images, whatever classes the model has.
        image_size: pixels, or (height, width); None for what the model was published for. A module takes that of
            images in memory.
        mean: of each colour, 0..1, by which training images were normalised.
        std: standard deviation of each colour, likewise.
        plans: such as ``("head", "last2-c50")``; empty for all that the model can have.
        optimizer: ``sgd`` or ``adam``.
        gamma_percentile: of the gradients' sizes on clean images, below which a gradient is not guilty.
        limit_per_class: calibrate on so many images of each class.
        rehearsals: simulated field conditions in which to measure the gain of each training stage; the device decides
            by it. None for 8, or for none where images are large.
        with_ort_training: add the official artifacts of onnxruntime-training.
        seed: of every random choice.
        max_pixels: largest image to decode.
        note: told in one line what is being done, and what is left out.

    Returns:
        The pack, opened.

    Raises:
        EdgeSelError: in one line what cannot be done, where, and what to do about it: UsageError for options,
            DataError for images, BadInputError for what the source names, GraphError for a model that cannot be
            trained, SetupError for what the machine lacks. Nothing is written then.
    """
    how: dict[str, Any] = {"optimizer": optimizer, "gamma_percentile": gamma_percentile, "seed": seed}
    _require_within_limits(
        {**how, "limit_per_class": limit_per_class, "rehearsals": rehearsals, "max_pixels": max_pixels}
    )
    if isinstance(plans, str):
        raise UsageError("plans must be a list of names", where=repr(plans))
    from edge_sel.api.rehearsal import load_unseen, rehearse_pack
    from edge_sel.engines.ort_training_api import require_training
    from edge_sel.pack.writer import refuse_foreign
    from edge_sel.server.export import draft_pack, finish_pack

    if with_ort_training:
        require_training()
    target = Path(out)
    refuse_foreign(target)
    options: dict[str, Any] = {
        "classes": classes,
        "new_head": new_head,
        "image_size": image_size,
        "mean": mean,
        "std": std,
    }
    opened = open_given(source, images, weights=weights, **options)
    info = opened.info
    read = _read(images, opened, limit_per_class, max_pixels)
    if rehearsals is None:
        rehearsals = REHEARSALS if max(info.image_size) <= LARGE else 0
    try:
        draft = draft_pack(opened, read, plans=plans, now=datetime.now(timezone.utc), note=note, **how)
        unseen = load_unseen(images, info, max_pixels) if rehearsals else None
        gains = rehearse_pack(draft.pack, read, unseen, rehearsals, seed, note)
        return finish_pack(draft, target, gains, ort_training=with_ort_training, note=note)
    except PackError as error:  # of what was to be written: there is no pack to be copied or exported again
        raise GraphError(error.what, where=error.where, fix="nothing was written; --plans head may do") from error


def open_given(
    source: Any,
    images: ImageSet | AnyPath | None,
    *,
    weights: AnyPath | None,
    classes: Sequence[str] | AnyPath | None,
    new_head: bool,
    image_size: int | tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dry: bool = False,
) -> Source:
    """The classifier that ``export`` is given, see there; ``dry`` computes nothing with its weights."""
    from edge_sel.data.dataset import ImageSet
    from edge_sel.data.folder import list_images
    from edge_sel.server.source.base import Asked, read_classes
    from edge_sel.server.source.open import open_source

    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and (len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size)):
        raise UsageError("image_size must be pixels, or (height, width)", where=repr(image_size))
    for name, three, above in (("mean", mean, -math.inf), ("std", std, 0)):
        if three is not None and (len(three) != 3 or not all(above < number < math.inf for number in three)):
            such = "three numbers above 0" if name == "std" else "three numbers"
            raise UsageError(f"{name} must be {such}, one for each colour", where=repr(three))
    named = isinstance(source, (str, PathLike))
    names = None
    if classes is not None:
        names = read_classes(Path(classes) if isinstance(classes, (str, PathLike)) else classes)
    if isinstance(images, ImageSet):
        folders: tuple[str, ...] | None = images.classes
        size = size if named else size or images.size
    else:
        folders = None if images is None else tuple(sorted(list_images(Path(images))[0]))
    middle, spread = (None if three is None else tuple(three) for three in (mean, std))
    asked = Asked(names, folders, size, middle, spread, None if weights is None else Path(weights), new_head, dry)
    return open_source(fspath(source) if named else source, asked)


def _require_within_limits(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        spec = _LIMITS[name]
        try:
            if value is not None or not spec.optional:
                spec.read(value, text=False)
        except (ValueError, OverflowError) as error:
            raise UsageError(f"{name} must be {spec.allowed()}", where=repr(value)) from error


def _read(given: ImageSet | AnyPath, source: Source, limit: int, max_pixels: int) -> ImageSet:
    """The images to calibrate on, their labels in the order of the model's classes."""
    import numpy as np

    from edge_sel.api.inputs import aligned
    from edge_sel.data.dataset import ImageSet
    from edge_sel.data.folder import load_folder

    size, classes = source.info.image_size, source.info.classes
    if not isinstance(given, ImageSet):
        return load_folder(given, size, classes=classes, limit_per_class=limit, max_pixels=max_pixels)
    images = aligned(given, size, classes, "strict")
    if not len(images):
        raise DataError("no images to calibrate on", fix="give some of every class")
    members = [np.flatnonzero(images.labels == label) for label in range(len(classes))]
    few = [rows[np.arange(limit) * len(rows) // limit] if len(rows) > limit else rows for rows in members]
    return images.subset(np.sort(np.concatenate(few)))
