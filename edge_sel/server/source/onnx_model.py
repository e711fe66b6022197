"""A classifier that is a forward ONNX file alone: read, brought into form, and checked without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, Engine
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import EdgeSelError, GraphError
from edge_sel.files import sha256_of
from edge_sel.graphs.head_form import with_vector_features
from edge_sel.graphs.ir import OPSET, Forward
from edge_sel.graphs.read import read_forward
from edge_sel.pack.reader import Pack
from edge_sel.server.derivative import check_gradients
from edge_sel.server.parity import check_parity, reference_program
from edge_sel.server.source.base import (
    Agreement,
    Source,
    WarmupInfo,
    first_line,
    forward_weights,
    replace_all,
    require_operators,
)
from edge_sel.server.source.heads import deepened, outputs_of, with_linear_head
from edge_sel.server.source.layer_names import name_weights
from edge_sel.server.source.onnx_file import (
    choose_logits,
    dimensions,
    fold_constants,
    free_batch,
    image_input,
    load_onnx,
    name_image,
    set_image_size,
    to_opset,
)
from edge_sel.server.source.onnx_weights import constants_of, session_of
from edge_sel.server.source.unfold import is_folded

SAME = 1e-4
"""Largest difference of logits, relative to the largest logit, between the file and what was made of it."""
CHECKED_IMAGES, CHECKED_BATCHES = 2, 3
"""Images of a batch and batches; the reference implementation is slow."""


def read_onnx(path: Path, image_size: tuple[int, int] | None, classes: int | None) -> tuple[Forward, tuple[int, int]]:
    """The file's classifier as a forward graph, and its image size.

    Args:
        path: of the file.
        image_size: height and width, where the file leaves them open.
        classes: how many logits are expected, to choose among several outputs.

    Raises:
        BadInputError: not an ONNX file.
        GraphError: it is no classifier that can be trained; the message says what to change.
    """
    original, weights = load_onnx(path)
    image = image_input(original, path)
    batch = dimensions(image)[0] or (None if _takes_any_batch(original, weights, image, image_size) else 1)
    model = onnx.ModelProto()
    model.CopyFrom(original)
    size = set_image_size(model, image_size, path)
    name = choose_logits(model, batch, classes, path)  # by the file's own names, which a conversion changes
    model = to_opset(model, path)
    folded = dict(weights)
    fold_constants(model, folded)
    name_image(model, path)
    free_batch(model, folded, batch)
    forward = name_weights(with_linear_head(read_forward(model, weights=folded)))
    require_operators(forward, path)
    _require_same(_File(original, weights, path), name, forward, size)
    return forward, size


def from_onnx(path: Path, info: WarmupInfo, forward: Forward, new_head: bool) -> Source:
    """The source of a file that was read; ``info`` says what its logits are."""
    forward = with_vector_features(forward)
    info = replace(info, training={**info.training, "sha256": sha256_of(path)})
    folded = is_folded(forward)
    source = Source(info, forward, forward_weights(forward), check_without_torch, new_head, folded)
    return source if folded else deepened(source)  # a folded one when it is unfolded


def check_without_torch(
    pack: Pack, forward: Forward, batches: Sequence[Batch], engine: Engine, note: Callable[[str], None]
) -> dict[str, Agreement]:
    """Every plan's gradients against numerical derivatives in float64, and its float32 step against a float64 one."""
    few = [Batch(*(values[:CHECKED_IMAGES] for values in batch)) for batch in batches[:CHECKED_BATCHES]]
    rng = np.random.default_rng(0)
    # Of labels drawn by lot the loss is large: a model that is sure of the right ones has hardly a gradient.
    drawn = few[0]._replace(labels=rng.integers(0, len(pack.manifest.model.classes), len(few[0].labels)))
    if engine.name == OrtEngine.name:  # it is about the pack's own graphs
        note("comparing gradients with numerical derivatives")
        check_gradients(pack, forward, drawn, rng)
    reference, twin = (reference_program(dtype) for dtype in (np.float32, np.float64))
    plans = list(pack.manifest.plans)

    def begin(name: str) -> None:
        note(f"comparing a step of {name} ({plans.index(name) + 1} of {len(plans)})")

    return check_parity(pack, forward, few, engine, reference=reference, twin=twin, begin=begin)


class _File(NamedTuple):
    """As it was read."""

    model: onnx.ModelProto
    weights: Arrays
    path: Path


def _require_same(file: _File, name: str, forward: Forward, size: tuple[int, int]) -> None:
    """What was made of the file must compute what the file computes."""
    path = file.path
    pixels = np.random.default_rng(0).standard_normal((3, 3, *size)).astype(np.float32)
    expected = _logits_of_file(file, name, pixels)
    try:
        found = outputs_of(forward, [forward.logits], pixels)[forward.logits]
    except EdgeSelError:
        raise
    except Exception as error:  # of onnxruntime, which has no common exception type
        raise GraphError("the graph does not run with another batch size", where=f"{path}: {first_line(error)}",
                         fix="export it with a dynamic batch axis") from error  # fmt: skip
    difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))
    if np.isnan(difference):
        bad = [name for name, value in constants_of(file.model, file.weights).items()
               if value.dtype.kind == "f" and np.isnan(value).any()]  # fmt: skip
        if bad:
            raise GraphError("a weight is not a number", where=f"{path}: {bad[0]}", fix="train the model again")
    if not difference <= SAME:
        raise GraphError(f"the rewritten graph computes different logits (by {difference:.1e})", where=path,
                         fix=f"export it with a dynamic batch axis and opset {OPSET}")  # fmt: skip


def _takes_any_batch(
    original: onnx.ModelProto, weights: Arrays, image: onnx.ValueInfoProto, image_size: tuple[int, int] | None
) -> bool:
    """Whether a file that leaves its batch open does so everywhere; what was traced may name the size of an example."""
    _, *sizes = dimensions(image)
    first = 1 if sizes[0] == 3 else 0
    if image_size is not None:
        sizes[first : first + 2] = image_size
    if None in sizes:  # told later, with what to do about it
        return True
    try:
        session = session_of(original, weights)
        session.run(None, {image.name: np.zeros([3, *(size or 0 for size in sizes)], np.float32)})
    except Exception:  # of onnxruntime, which has no common exception type
        return False
    return True


def _logits_of_file(file: _File, name: str, pixels: np.ndarray) -> np.ndarray:
    """The tensor ``name`` of the file as it is, for each image."""
    original, weights, path = file
    shown = onnx.ModelProto()
    shown.CopyFrom(original)
    replace_all(shown.graph.output, [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])
    image = image_input(original, path)
    batch, channels = dimensions(image)[0] or 1, dimensions(image)[1]
    pixels = pixels if channels == 3 else pixels.transpose(0, 2, 3, 1)
    try:
        session = session_of(shown, weights)
        rows = [session.run([name], {image.name: np.repeat(row[None], batch, 0)})[0][:1] for row in pixels]
    except Exception as error:  # of onnxruntime, or ours around it
        reason = (getattr(error, "where", None) or str(error) or repr(error)).splitlines()[0]
        raise GraphError("onnxruntime cannot run the file", where=f"{path}: {reason[:200]}") from error
    return np.concatenate(rows).reshape(len(pixels), -1)
