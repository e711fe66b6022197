"""Open whatever ``edge-sel export`` is given: a checkpoint, a published model, a user's factory, an ONNX file."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from edge_sel.errors import SetupError, UsageError
from edge_sel.server.source.base import Source, WarmupInfo

_FACTORY = re.compile(r"(.+\.py):(\w+)")
_LOGITS_OF_PUBLISHED = 1000


@dataclass(frozen=True)
class Asked:
    """What the user said about a source.

    Attributes:
        classes: names of its classes, in the order of its logits.
        folders: the class folders of the images, sorted; None where there are none.
        image_size: (height, width) in pixels.
        mean: to normalise by, in 0..1.
        std: likewise.
        weights: a file of weights for a model that is made by name or by a factory.
        new_head: fit a head for these classes instead of the model's own.
        dry: nothing is to be computed with the weights, so none are loaded.
    """

    classes: tuple[str, ...] | None = None
    folders: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    weights: Path | None = None
    new_head: bool = False
    dry: bool = False

    @property
    def names(self) -> tuple[str, ...] | None:
        """Class names that are wanted, if any are known."""
        return self.classes or self.folders

    def class_names(self, logits: int, where: object) -> tuple[tuple[str, ...], bool]:
        """The names of the classes, and whether they need a new head.

        Raises:
            UsageError: the model has another number of logits.
        """
        if logits == 1 and not self.new_head:
            raise UsageError("the model has one logit, and a classifier has one for each class", where=where,
                             fix="fit a head for the classes of --data with --new-head")  # fmt: skip
        if self.names is None:
            return tuple(f"class {number}" for number in range(logits)), False
        if len(self.names) != logits and not self.new_head:
            whose = "--classes names" if self.classes else "the folder has"
            raise UsageError(
                f"the model has {logits} logits, {whose} {len(self.names)} classes", where=where,
                fix="name the model's own classes with --classes FILE, or fit a head for these with --new-head",
            )  # fmt: skip
        return self.names, self.new_head


def open_source(text: str, asked: Asked) -> Source:
    """The source that ``text`` names.

    Raises:
        UsageError: an option is missing, or has no meaning for this source.
        BadInputError: what it names cannot be read.
        GraphError: it cannot be trained.
        SetupError: a package is missing, or published weights cannot be had.
    """
    if text.startswith(("torchvision:", "timm:", "imagenet:")):
        return _published(text, asked)
    factory = _FACTORY.fullmatch(text)
    if factory:
        return _from_factory(Path(factory[1]), factory[2], asked)
    if Path(text).suffix == ".onnx":
        return _from_onnx(Path(text), asked)
    return _from_checkpoint(Path(text), asked)


def _require_torch() -> None:
    missing = [name for name in ("torch", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        fix = "pip install 'edge-sel[server]'; of an ONNX file, a pack is made without torch"
        raise SetupError(f"this source needs {' and '.join(missing)}", fix=fix)


def _from_checkpoint(path: Path, asked: Asked) -> Source:
    odd = {"--classes": asked.classes, "--image-size": asked.image_size, "--mean": asked.mean, "--std": asked.std,
           "--weights": asked.weights, "--new-head": asked.new_head or None}  # fmt: skip
    given = [name for name, value in odd.items() if value is not None]
    if given:
        raise UsageError(f"{given[0]} does not apply to a warmup checkpoint, which contains it", where=path)
    _require_torch()
    from edge_sel.server.source.torch_model import from_checkpoint

    return from_checkpoint(path)


def _published(text: str, asked: Asked) -> Source:
    _require_torch()
    from edge_sel.models.registry import expected_input
    from edge_sel.server.source.torch_model import from_name

    expected = expected_input(text)
    info = WarmupInfo(text, asked.names or (), asked.image_size or expected.image_size, asked.mean or expected.mean,
                      asked.std or expected.std, {"source": text})  # fmt: skip
    return from_name(info, asked)


def _from_factory(path: Path, function: str, asked: Asked) -> Source:
    _require_torch()
    from edge_sel.server.source.factory import from_factory

    size, mean, std = _geometry(asked, f"{path}:{function}")
    if asked.image_size is None:
        raise UsageError(
            "the image size is not known", where=f"{path}:{function}", fix="give --image-size, such as 224"
        )
    info = WarmupInfo(
        f"{path.name}:{function}", asked.names or (), size, mean, std, {"source": f"{path.name}:{function}"}
    )
    return from_factory(path, function, info, asked)


def _from_onnx(path: Path, asked: Asked) -> Source:
    if asked.weights is not None:
        raise UsageError("--weights does not apply to an ONNX file, which contains its weights", where=path)
    from edge_sel.graphs.head_form import without_relu_behind
    from edge_sel.graphs.plans import head_names
    from edge_sel.server.source.onnx_model import from_onnx, read_onnx
    from edge_sel.server.source.resize_head import resize_head

    _, mean, std = _geometry(asked, path)
    forward, size = read_onnx(path, asked.image_size, len(asked.classes) if asked.classes else None)
    logits = len(forward.initializers[head_names(forward)[0]])
    names, new_head = asked.class_names(logits, path)
    info = WarmupInfo(path.name, names, size, mean, std, {"source": path.name})
    if new_head:
        forward = resize_head(without_relu_behind(forward), len(names))
    return from_onnx(path, info, forward, new_head=new_head)


def _geometry(asked: Asked, where: object) -> tuple[tuple[int, int], tuple[float, ...], tuple[float, ...]]:
    """Image size, mean and std; a dry run does without the latter two."""
    if (asked.mean is None or asked.std is None) and not asked.dry:
        raise UsageError("the normalisation of the images is unknown", where=where,
                         fix="give --mean and --std, such as 0.485,0.456,0.406 and 0.229,0.224,0.225")  # fmt: skip
    return asked.image_size or (0, 0), asked.mean or (0.5,) * 3, asked.std or (0.5,) * 3
