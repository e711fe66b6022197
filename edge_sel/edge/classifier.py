"""A trained model ready to classify: ``model.onnx`` of a run, the run's folder, or a pack."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from edge_sel.data.dataset import normalise
from edge_sel.data.images import UInt8Array
from edge_sel.edge.outputs.earlier import JOURNAL
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import BadInputError, EdgeSelError
from edge_sel.pack.reader import open_pack
from edge_sel.pack.signatures import TrustedKeys

MODEL = "model.onnx"
MOST_BYTES = 2 << 30


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
    told = pack.manifest.model
    return Classifier(told.classes, told.image_size, told.mean, told.std, engine.predictor(pack, pack.weights()))


def _of_model(file: Path, engine: OrtEngine) -> Classifier:
    try:
        if file.stat().st_size > MOST_BYTES:
            raise BadInputError("the model is larger than 2 GB", where=file)
        content = file.read_bytes()
    except OSError as error:
        raise BadInputError(f"cannot read the model ({error.strerror})", where=file) from error
    try:
        session = engine.session(content, {})
    except EdgeSelError as error:
        raise BadInputError("onnxruntime cannot load the model", where=file, fix="copy it again") from error
    notes = session.get_modelmeta().custom_metadata_map
    inputs, outputs = session.get_inputs(), session.get_outputs()
    try:
        classes = tuple(str(name) for name in json.loads(notes["classes"]))
        mean, std = (tuple(float(value) for value in json.loads(notes[key])) for key in ("mean", "std"))
        (_, colours, height, width), (_, _) = inputs[0].shape, outputs[0].shape
        fits = (len(inputs), len(outputs), colours, len(mean), len(std)) == (1, 1, 3, 3, 3) and min(std) > 0
        size = int(height), int(width)
    except (KeyError, ValueError, TypeError) as error:
        fits, size, classes, mean, std = False, (0, 0), (), (), ()
        why: Exception | None = error
    else:
        why = None
    if not fits:
        raise BadInputError(
            "the model names neither its classes nor its normalisation", where=file,
            fix="take model.onnx of a run, or a pack",
        ) from why  # fmt: skip
    name = inputs[0].name

    def logits(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = session.run(None, {name: images})[0]
        return found

    return Classifier(classes, size, mean, std, logits)
