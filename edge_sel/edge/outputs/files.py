"""What a session leaves behind: weights, ``model.onnx``, ``history.csv``, ``run.json``, ``events.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_sel.engines.base import Predict
from edge_sel.errors import EdgeSelError, SetupError
from edge_sel.files import write_durably
from edge_sel.pack.manifest import ModelInfo
from edge_sel.pack.reader import Pack
from edge_sel.runs.tables import finite, write_table

PUBLISHED = ("epoch", "stage", "train_acc", "train_loss", "test_full", "test_100", "flops_T", "time_s", "sparsity")
"""Columns of the SEL benchmark's CSV files; ``flops_T`` is nominal and cumulative, as theirs is."""

FILES = ("run.json", "history.csv", "events.jsonl", "model.onnx", "weights.safetensors")

OURS = (
    "plan", "guard_acc", "guard_loss", "energy_j", "net_j", "energy_source", "meter", "power_w", "temp_c",
    "active_rate", "gradient_kept", "executed_flops_T",
)  # fmt: skip


class EventLog:
    """Appends one JSON object per event; a listener is told too."""

    def __init__(self, path: Path, clock: Callable[[], float], listener: Callable[[dict[str, Any]], None]) -> None:
        self._path = path
        self._clock = clock
        self._start_s = clock()
        self._listener = listener
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_bytes() if path.exists() else b""
        if not before.endswith(b"\n"):  # a power cut can leave half a line, which must not swallow the next one
            write_durably(path, before[: before.rfind(b"\n") + 1])

    def __call__(self, event: str, **details: Any) -> None:
        """Record ``event`` with its details and the seconds since the start of this part of the run."""
        entry = {"t_s": round(self._clock() - self._start_s, 3), "event": event, **details}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite(entry)) + "\n")
        except OSError as error:
            raise SetupError(f"cannot write ({error.strerror})", where=self._path, fix="free some space") from error
        self._listener(entry)


def history_rows(history: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """One flat row per epoch: the published columns, ours, then E_, C_ and acc_ of each class."""
    rows = []
    nominal = 0.0
    for entry in history:
        nominal += entry["nominal_flops_t"]
        row: dict[str, Any] = {key: entry.get(key) for key in (*PUBLISHED, *OURS)}
        row |= {"flops_T": nominal, "executed_flops_T": entry["executed_flops_t"]}
        for name in classes:
            figures = entry["classes"].get(name, {})
            row |= {f"E_{name}": figures.get("E"), f"C_{name}": figures.get("C"), f"acc_{name}": figures.get("acc")}
        rows.append(row)
    return rows


def write_history(path: Path, history: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> None:
    """``history.csv``; unknown values are empty cells, never zeros."""
    write_table(path, history_rows(history, classes))


def write_weights(path: Path, weights: Mapping[str, np.ndarray], classes: Sequence[str]) -> None:
    """All weights as safetensors, the class names in its header."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(value) for name, value in weights.items()}
    write_durably(path, save(tensors, {"classes": json.dumps(list(classes))}))


def import_onnx() -> None:
    """Load what ``write_model`` will need, so that its end is not the place where that is paid."""
    import onnx  # noqa: F401


def write_model(path: Path, pack: Pack, weights: Mapping[str, np.ndarray], classes: Sequence[str]) -> None:
    """``model.onnx``: the pack's inference graph with these weights inside and the class names as metadata."""
    import onnx
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
    write_durably(path, model.SerializeToString())


def verify_model(path: Path, predict: Predict, model: ModelInfo) -> None:
    """Load the written file once and compare it with the engine's own inference.

    Raises:
        EdgeSelError: they differ; this would be a bug.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((4, 3, *model.image_size)).astype(np.float32)
    written, expected = session.run(None, {"x": images})[0], predict(images)
    if not np.allclose(written, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max())):
        raise EdgeSelError("the written model differs from the one in memory", where=path, fix="report this as a bug")
