"""The trained model as files: its weights, and ``model.onnx`` with the weights inside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Predict
from edge_sel.errors import EdgeSelError
from edge_sel.files import write_durably
from edge_sel.pack.manifest import ModelInfo
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
        EdgeSelError: they differ; this would be a bug.
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
    if not np.allclose(written, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max())):
        raise EdgeSelError("the written model differs from the one in memory", where=path, fix="report this as a bug")
