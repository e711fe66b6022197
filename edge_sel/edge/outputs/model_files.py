"""The trained model as files: its weights, ``model.onnx`` with these inside, and which images it has learnt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edge_sel.arrays import Arrays, read_tensors, tensor_bytes, tensor_notes
from edge_sel.engines.base import Predict
from edge_sel.errors import EdgeSelError, PackError
from edge_sel.files import read_regular, write_durably
from edge_sel.pack.manifest import WEIGHTS, ModelInfo
from edge_sel.pack.reader import Pack

OUTPUTS = ("weights.safetensors", "model.onnx", "history.csv")
"""What a run leaves for others to use."""
CAN_BE_MADE_AGAIN = frozenset(OUTPUTS) - {"weights.safetensors"}
"""From the weights, and from ``run.json``."""


def write_weights(path: Path, weights: Mapping[str, np.ndarray], classes: Sequence[str]) -> None:
    """All weights as safetensors, the class names in its header."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(value) for name, value in weights.items()}
    write_durably(path, save(tensors, {"classes": json.dumps(list(classes))}))


def read_weights(path: Path) -> Arrays:
    """All weights of a file of ``write_weights``."""
    from safetensors.numpy import load

    weights: Arrays = load(path.read_bytes())
    return weights


def import_onnx() -> None:
    """Load what ``write_model`` will need, so that its end is not the place where that is paid."""
    import onnx  # noqa: F401


def write_model(path: Path, pack: Pack, weights: Mapping[str, np.ndarray], classes: Sequence[str]) -> None:
    """``model.onnx``: the pack's inference graph with these weights inside and the class names as metadata."""
    import onnx
    from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
    from onnx import numpy_helper

    model = onnx.load_model_from_string(pack.eval_graph)
    graph = model.graph
    kept = [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in sorted(weights.items())]
    inline = [tensor for tensor in graph.initializer if tensor.name not in weights]
    used = {name for node in graph.node for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend([*inline, *(tensor for tensor in kept if tensor.name in used)])
    images = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(images)
    info = pack.manifest.model
    facts = {"classes": json.dumps(list(classes)), "mean": json.dumps(info.mean), "std": json.dumps(info.std)}
    onnx.helper.set_model_props(model, {**facts, "input": "float32 [batch, 3, height, width], (pixel/255 - mean)/std"})
    try:
        content = model.SerializeToString()
    except EncodeError as error:  # what protobuf says where there was no room
        raise MemoryError from error
    write_durably(path, content)


def verify_model(path: Path, predict: Predict, model: ModelInfo) -> None:
    """Load the written file once and compare it with the engine's own inference.

    Raises:
        PackError: its outputs are no numbers.
        EdgeSelError: they differ: a bug, or weights that make much of rounding, as those of no trained model do.
        MemoryError: there is no room for it.
    """
    from edge_sel.engines.native import ort, run, translated_errors

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # more would take memory for four images
    file, cpu = path.read_bytes(), ["CPUExecutionProvider"]
    with translated_errors("load"):
        session = ort.InferenceSession(file, options, providers=cpu, enable_fallback=0)
    images = np.random.default_rng(0).standard_normal((4, 3, *model.image_size)).astype(np.float32)
    expected = predict(images)  # what cannot be run is told by the engine
    written = run(session, ["logits"], {"x": images})[0]
    if not np.isfinite(expected).all():
        what = "the model's outputs are no numbers, so nothing can be learnt from this pack"
        raise PackError(what, where=path, fix="export a trained model")
    if not np.allclose(written, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max())):
        what = "the written model and the one in memory differ by more than rounding"
        raise EdgeSelError(what, where=path, fix="export a trained model; if it is one, report this as a bug")


# --- Images that it has learnt. A model that was trained on an image may know it by heart: beside a head that was
# fitted without the image, it would seem better than it is. For a head in closed form the run knows what it would have
# said of each image without it, and keeps that. Other images that were learnt judge nothing in the next run.


LEARNT = "learnt.safetensors"
MOST_BYTES = 1 << 28


class Learnt(NamedTuple):
    """Images that a model was trained on."""

    images: np.ndarray
    """uint64 [M], ascending, of each image a hash of its pixels (``ImageSet.content_digests``)."""
    left_out: np.ndarray
    """float32 [M, C], logits of each under the head that was fitted without it; NaN where nobody knows."""

    @property
    def digest(self) -> str:
        """A short identity."""
        return hashlib.sha256(self.images.tobytes() + self.left_out.tobytes()).hexdigest()[:16]


class Served(NamedTuple):
    """What the model in service has learnt of the images that a run trains on."""

    learnt: np.ndarray
    """bool [N]."""
    left_out: np.ndarray
    """float32 [N, C], see ``Learnt``."""
    whole: bool
    """Whether these are all that it has learnt."""

    @property
    def fair(self) -> np.ndarray:
        """bool [N], images by which the model in service may be judged."""
        fair: np.ndarray = ~self.learnt | np.isfinite(self.left_out).all(1)
        return fair

    def instead_of(self, logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Logits [n, C] of these images by the model in service, as it would say without having learnt them."""
        known = (self.learnt & self.fair)[rows][:, None]
        said: np.ndarray = np.where(known, self.left_out[rows], logits)
        return said


def nothing_learnt() -> Learnt:
    """Of a model that the device has taught nothing."""
    return Learnt(np.zeros(0, np.uint64), np.zeros((0, 0), np.float32))


def served_of(learnt: Learnt | None, images: np.ndarray, classes: int) -> Served:
    """For these images, by their hashes uint64 [N]; None: nobody knows which were learnt, so it may be all of them.

    A class that the model lacks has the mean of its logits, as in ``extend_head``.
    """
    left_out = np.full((len(images), classes), np.nan, np.float32)
    if learnt is None:
        return Served(np.ones(len(images), bool), left_out, whole=False)
    at = np.minimum(np.searchsorted(learnt.images, images), max(len(learnt.images) - 1, 0))
    found = learnt.images[at] == images if len(learnt.images) else np.zeros(len(images), bool)
    if found.any():
        said = learnt.left_out[at[found]]
        more = np.repeat(said.mean(1, keepdims=True), classes - said.shape[1], axis=1)
        left_out[found] = np.concatenate([said, more], axis=1)
    return Served(found, left_out, bool(np.isin(learnt.images, images).all()))


def learnt_now(before: Learnt, images: np.ndarray, rows: np.ndarray, left_out: np.ndarray, classes: int) -> Learnt:
    """Of a new model that was trained on these images, after ``before``; ``left_out`` [n, C] is of ``rows``."""
    every = np.union1d(before.images, images)
    said = np.full((len(every), classes), np.nan, np.float32)
    if len(rows):
        said[np.searchsorted(every, images[rows])] = left_out
    return Learnt(every, said)


def write_learnt(folder: Path, learnt: Learnt) -> None:
    """Beside the weights that it is of."""
    known = np.flatnonzero(np.isfinite(learnt.left_out).all(1)) if learnt.left_out.size else np.zeros(0, np.int64)
    tensors = {"images": learnt.images.view(np.int64), "rows": known, "left_out": learnt.left_out[known]}
    of = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    write_durably(folder / LEARNT, tensor_bytes(tensors, {"weights": of, "digest": learnt.digest}))


def read_learnt(run: Path, classes: int) -> Learnt | None:
    """What the model in a run's folder, or in the file of weights there, has learnt; None where nothing tells.

    A file that is damaged or of other weights tells nothing: then no image that was trained on judges.
    """
    weights = run / WEIGHTS if run.is_dir() else run
    try:
        content = read_regular(weights.with_name(LEARNT), MOST_BYTES)
        of = hashlib.sha256(read_regular(weights, 1 << 40)).hexdigest()
        notes, tensors = tensor_notes(content), read_tensors(content)
        images, rows, left_out = (tensors[name] for name in ("images", "rows", "left_out"))
        kinds = [array.dtype.str for array in (images, rows, left_out)]
        if kinds != ["<i8", "<i8", "<f4"] or images.ndim != 1 or rows.ndim != 1:
            return None
        if left_out.shape != (len(rows), classes if len(rows) else left_out.shape[1]):
            return None
        numbers = images.view(np.uint64)
        if (numbers[1:] <= numbers[:-1]).any() or not np.isfinite(left_out).all():
            return None
        said = np.full((len(images), left_out.shape[1]), np.nan, np.float32)
        said[rows] = left_out
        found = Learnt(numbers, said)
        return found if notes == {"weights": of, "digest": found.digest} else None
    except (OSError, ValueError, KeyError, IndexError, EdgeSelError):
        return None
