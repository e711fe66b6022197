"""Open whatever is to be exported: a checkpoint, a published model, a user's factory or module, an ONNX file."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sel.errors import SetupError, UsageError
from edge_sel.graphs.head_form import without_relu_behind
from edge_sel.graphs.plans import head_names
from edge_sel.server.source.base import Asked, Source, WarmupInfo
from edge_sel.server.source.heads import resize_head
from edge_sel.server.source.onnx_model import from_onnx, read_onnx
from edge_sel.server.source.onnx_trial import require_readable

if TYPE_CHECKING:
    from torch import nn

_FACTORY = re.compile(r"(.+\.py):(\w+)")


def open_source(given: str | nn.Module, asked: Asked) -> Source:
    """The source that is given, or that a text names.

    Raises:
        UsageError: an option is missing, or has no meaning for this source.
        BadInputError: what it names cannot be read.
        GraphError: it cannot be trained.
        SetupError: a package is missing, or published weights cannot be had.
    """
    if not isinstance(given, str):
        _require_torch()
        from edge_sel.server.source.torch_model import from_given

        name = type(given).__name__
        return from_given(given, _described(name, name, asked), asked)
    factory = _FACTORY.fullmatch(given)
    published = given.startswith(("torchvision:", "timm:", "imagenet:"))
    if not published and Path(given).suffix == ".onnx":
        return _from_onnx(Path(given), asked)
    if not published and not factory:
        _refuse_options(Path(given), asked)
    _require_torch()
    from edge_sel.models.registry import expected_input
    from edge_sel.server.source.torch_model import from_checkpoint, from_factory, from_name

    if published:
        usual = expected_input(given)
        info = WarmupInfo(given, asked.names or (), asked.image_size or usual.image_size, asked.mean or usual.mean,
                          asked.std or usual.std, {"source": given})  # fmt: skip
        return from_name(info, asked)
    if factory:
        path = Path(factory[1])
        return from_factory(path, factory[2], _described(f"{path.name}:{factory[2]}", given, asked), asked)
    return from_checkpoint(Path(given))


def _require_torch() -> None:
    missing = [name for name in ("torch", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        fix = "pip install 'edge-sel[server]'; of an ONNX file, a pack is made without torch"
        raise SetupError(f"this source needs {' and '.join(missing)}", fix=fix)


def _refuse_options(path: Path, asked: Asked) -> None:
    odd = {"--classes": asked.classes, "--image-size": asked.image_size, "--mean": asked.mean, "--std": asked.std,
           "--weights": asked.weights, "--new-head": asked.new_head or None}  # fmt: skip
    for name, value in odd.items():
        if value is not None:
            raise UsageError(f"{name} does not apply to a warmup checkpoint, which contains it", where=path)


def _from_onnx(path: Path, asked: Asked) -> Source:
    if asked.weights is not None:
        raise UsageError("--weights does not apply to an ONNX file, which contains its weights", where=path)
    mean, std = _normalisation(asked, path)
    count = len(asked.classes) if asked.classes else None
    require_readable(path, asked.image_size, count)
    forward, size = read_onnx(path, asked.image_size, count)
    names, new_head = asked.class_names(len(forward.initializers[head_names(forward)[0]]), path)
    if new_head:
        forward = resize_head(without_relu_behind(forward), len(names))
    return from_onnx(path, WarmupInfo(path.name, names, size, mean, std, {"source": path.name}), forward, new_head)


def _described(name: str, where: str, asked: Asked) -> WarmupInfo:
    """A network of the user's own, of which nothing is known but what the user said."""
    mean, std = _normalisation(asked, where)
    if asked.image_size is None:
        raise UsageError("the image size is not known", where=where, fix="give --image-size, such as 224")
    return WarmupInfo(name, asked.names or (), asked.image_size, mean, std, {"source": name})


def _normalisation(asked: Asked, where: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation; a dry run does without."""
    if (asked.mean is None or asked.std is None) and not asked.dry:
        raise UsageError("the normalisation of the images is unknown", where=where,
                         fix="give --mean and --std, such as 0.485,0.456,0.406 and 0.229,0.224,0.225")  # fmt: skip
    return asked.mean or (0.5,) * 3, asked.std or (0.5,) * 3
