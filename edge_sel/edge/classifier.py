"""A trained model ready to classify: ``model.onnx`` of a run, the run's folder, or a pack."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import numpy as np

from edge_sel.data.dataset import normalise
from edge_sel.data.images import UInt8Array
from edge_sel.edge.outputs.earlier import JOURNAL
from edge_sel.engines.ort import OrtEngine
from edge_sel.engines.trial import try_model
from edge_sel.errors import BadInputError, SetupError
from edge_sel.files import cache_folder, read_regular, write_durably
from edge_sel.pack.foreign_model import MOST_FILE_BYTES, survey_model
from edge_sel.pack.graph_check import OPERATORS
from edge_sel.pack.graph_form import WireError
from edge_sel.pack.manifest_json import MOST_CLASSES
from edge_sel.pack.reader import open_pack
from edge_sel.pack.signatures import TrustedKeys
from edge_sel.schema import Longest, SchemaError, Within, checked, parse_json

MODEL = "model.onnx"


@dataclass(frozen=True)
class Classifier:
    """What a model knows of its images, and the model.

    Attributes:
        classes: names, in the order of the logits.
        image_size: (height, width) in pixels.
        mean: of each colour, 0..1; ``std`` likewise.
        logits: normalised images float32 [N, 3, H, W] to float32 [N, classes].
    """

    classes: tuple[str, ...]
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    logits: Callable[[np.ndarray], np.ndarray]

    def probabilities(self, images: UInt8Array) -> np.ndarray:
        """Softmax of the logits: uint8 [N, H, W, 3] to float64 [N, classes]. Images are prepared as in training."""
        logits = self.logits(normalise(images, self.mean, self.std)).astype(np.float64)
        if not np.isfinite(logits).all():
            raise BadInputError("the model's outputs are no numbers", fix="take the model of another run, or a pack")
        raised = np.exp(logits - logits.max(1, keepdims=True))
        probabilities: np.ndarray = raised / raised.sum(1, keepdims=True)
        return probabilities


def is_model(path: Path) -> bool:
    """Whether this names what a run has written, and no pack."""
    names = (MODEL, "run.json", JOURNAL)
    return path.name.endswith(".onnx") or (path.is_dir() and any((path / name).exists() for name in names))


def open_classifier(path: str | PathLike[str], threads: int = 0, trusted: TrustedKeys | None = None) -> Classifier:
    """Open what a run or an export has written.

    Args:
        path: ``model.onnx``, the folder of a run that has one, or a pack.
        threads: 0 for all.
        trusted: public keys of which one must have signed the pack; a run's own model has no signature.

    Raises:
        BadInputError: there is no model, or it does not tell its classes and how images are normalised.
        PackError: the pack is damaged, or not signed by any of the keys.
    """
    path, engine = Path(path), OrtEngine(threads)
    file = path / MODEL if path.is_dir() else path
    if file.name.endswith(".onnx") and trusted is not None:
        raise BadInputError(
            "a model.onnx has no signature", where=file, fix="name the pack, or drop --require-signature"
        )
    if file.name.endswith(".onnx") and file.is_file():
        return _of_model(file, engine)
    if path.is_dir() and any((path / name).exists() for name in ("run.json", JOURNAL)):
        raise BadInputError("the run has no model.onnx", where=path, fix="let it end: finetune --resume")
    pack = open_pack(path, trusted)
    spec = pack.manifest.model
    return Classifier(spec.classes, spec.image_size, spec.mean, spec.std, engine.predictor(pack, pack.weights()))


def _of_model(file: Path, engine: OrtEngine) -> Classifier:
    """What anybody may have written: looked at, and tried elsewhere, before onnxruntime loads it here."""
    try:
        content = read_regular(file, MOST_FILE_BYTES)
        found = survey_model(content)
    except OSError as error:
        raise BadInputError(f"cannot read the model ({error.strerror})", where=file) from error
    except WireError as error:
        raise BadInputError(f"not a model of edge-sel: {error}", where=file, fix="copy it again") from error
    if odd := sorted(found.operators - OPERATORS) or found.holds_graph:
        what = f"not a model of edge-sel: operator {odd if isinstance(odd, str) else odd[0]}"
        raise BadInputError(what, where=file, fix="take model.onnx of a run, or a pack")
    try:
        facts = checked(_Facts, {key: parse_json(found.metadata[key]) for key in ("classes", "mean", "std")})
        _try_once(file, content, found.weight_bytes)
        session = engine.session(content, {})
        inputs, outputs = session.get_inputs(), session.get_outputs()
        size = checked(_Sizes, inputs[0].shape[1:])[1:]
        if not len(inputs) == len(outputs) == 1 or outputs[0].shape[1:] != [len(facts["classes"])]:
            raise SchemaError(f"has another number of outputs than of classes, {len(facts['classes'])}")
    except (KeyError, SchemaError) as error:
        what = f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise BadInputError(
            f"the model names neither its classes nor its normalisation: {what}", where=file,
            fix="take model.onnx of a run, or a pack",
        ) from error  # fmt: skip
    name = inputs[0].name

    def logits(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = session.run(None, {name: images})[0]
        return found

    return Classifier(tuple(facts["classes"]), size, facts["mean"], facts["std"], logits)


def _try_once(file: Path, content: bytes, weight_bytes: int) -> None:
    """A trial costs as much as classifying some images; what was good once, by its hash, is not tried again."""
    folder = cache_folder(os.environ, "tried")
    mark = None if folder is None else folder / sha256(content).hexdigest()
    if mark is not None:
        with suppress(OSError):  # a cache that may not be read
            if mark.exists():
                return
    try_model(file, weight_bytes)
    if mark is not None:
        with suppress(SetupError):  # a device whose cache cannot be written tries it again
            write_durably(mark, b"")


_Level = Annotated[float, Within(-1e3, 1e3)]
_Spread = Annotated[float, Within(1e-6, 1e3)]
_Pixels = Annotated[int, Within(1, 4096)]
_Sizes = tuple[Literal[3], _Pixels, _Pixels]


class _Facts(TypedDict):
    """Of the model, in its own metadata."""

    classes: Annotated[list[str], Longest(MOST_CLASSES)]
    mean: tuple[_Level, _Level, _Level]
    std: tuple[_Spread, _Spread, _Spread]
