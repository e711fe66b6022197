"""Write ONNX files as Keras and tf2onnx leave them, with random weights, to try `edge-sel export` on.

    python -m venv keras && keras/bin/pip install keras tensorflow-cpu tf2onnx
    keras/bin/python tools/foreign_files.py --out DIR
    EDGE_SEL_FOREIGN=DIR python -m pytest -m slow tests/server/test_foreign_files.py

Each network twice: by ``model.export(format="onnx")`` of Keras 3, and by way of a SavedModel and ``tf2onnx``.
Normalisations have statistics of some noise, so that folding them leaves something in the file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"
CLASSES, SIZE, SMALL = 5, 96, 48


def networks(keras: Any) -> dict[str, Any]:
    """Functions that make one, by name."""
    layers, applications = keras.layers, keras.applications
    published = {"input_shape": (SIZE, SIZE, 3), "weights": None, "classes": CLASSES}

    def activation_first() -> Any:
        """Normalised behind ReLU, where nothing can be folded; a probability for each class."""
        return keras.Sequential([
            keras.Input((SMALL, SMALL, 3)),
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"), layers.BatchNormalization(),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"), layers.BatchNormalization(),
            layers.MaxPooling2D(), layers.Flatten(), layers.Dense(32, activation="relu"), layers.Dropout(0.3),
            layers.Dense(CLASSES, activation="softmax"),
        ])  # fmt: skip

    def averages() -> Any:
        """Scales its input, and averages windows that leave their padding out."""
        return keras.Sequential([
            keras.Input((SMALL, SMALL, 3)), layers.Rescaling(1 / 127.5, offset=-1),
            layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False), layers.BatchNormalization(),
            layers.ReLU(6.0), layers.DepthwiseConv2D(3, padding="same", use_bias=False), layers.BatchNormalization(),
            layers.ReLU(6.0), layers.Conv2D(24, 1), layers.AveragePooling2D(3, strides=2, padding="same"),
            layers.GlobalAveragePooling2D(), layers.Dense(CLASSES),
        ])  # fmt: skip

    return {
        "activation_first": activation_first, "averages": averages,
        "mobilenet_v2": lambda: applications.MobileNetV2(**published),
        "efficientnet_b0": lambda: applications.EfficientNetB0(**published),
    }  # fmt: skip


def settle(model: Any, rng: Any) -> None:
    """Give every normalisation other weights and statistics than those it began with."""
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            scale, shift, mean, variance = layer.get_weights()
            layer.set_weights([
                scale * rng.uniform(0.5, 1.5, scale.shape), rng.normal(0, 0.2, shift.shape),
                rng.normal(0, 0.5, mean.shape), variance * rng.uniform(0.5, 2, variance.shape),
            ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    import keras
    import numpy as np

    for name, make in networks(keras).items():
        keras.utils.set_random_seed(0)
        model = make()
        settle(model, np.random.default_rng(0))
        model(np.zeros((1, *model.input_shape[1:]), np.float32))
        model.export(str(out / f"{name}-keras.onnx"), format="onnx", verbose=False)
        with tempfile.TemporaryDirectory() as folder:
            model.export(folder, verbose=False)
            command = ["-m", "tf2onnx.convert", "--saved-model", folder, "--opset", "13", "--output"]
            subprocess.run([sys.executable, *command, str(out / f"{name}-tf2onnx.onnx")], check=True)


if __name__ == "__main__":
    main()
