"""Artifacts of onnxruntime-training for a head with another number of classes: the device may meet new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

BUFFER = "_grad.accumulation.buffer"


def resized(
    files: Mapping[str, bytes], weights: Mapping[str, np.ndarray], order: Sequence[str], trainable: Sequence[str],
    head: Sequence[str],
) -> dict[str, bytes]:  # fmt: skip
    """The same models and nominal checkpoint, for the shapes that the head's weights have.

    Args:
        files: by what they are, see ``ArtifactFiles``.
        weights: of the network, with the new classes.
        order: parameters of the models.
        trainable: those that are trained.
        head: those of the head; their first axis is the classes.
    """
    import onnx  # takes long
    from onnx import numpy_helper
    from onnxruntime.capi._pybind_state import save_checkpoint

    classes = len(weights[head[-1]])
    changed = dict(files)
    for kind in ("training", "eval"):
        model = onnx.load_from_string(files[kind])
        for value in model.graph.input:
            if value.name.removesuffix(BUFFER) in head:
                value.type.tensor_type.shape.dim[0].dim_value = classes
        for value in model.graph.output:
            if value.name == "logits":
                value.type.tensor_type.shape.dim[1].dim_value = classes
        changed[kind] = model.SerializeToString()
    tensors = {name: numpy_helper.from_array(np.ascontiguousarray(weights[name]), name) for name in order}
    trained = [tensors[name].SerializeToString() for name in order if name in trainable]
    frozen = [tensors[name].SerializeToString() for name in order if name not in trainable]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        save_checkpoint(trained, frozen, str(path), True)
        changed["checkpoint"] = path.read_bytes()
    return changed
