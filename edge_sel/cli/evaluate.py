"""``edge-sel evaluate``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_sel.cli.common import (
    GivenPath,
    echo_json,
    json_option,
    max_pixels_option,
    require_signature_option,
    required_keys,
)
from edge_sel.config.profiles import MAX_THREADS
from edge_sel.errors import BadInputError, UsageError, escaped
from edge_sel.units import counted

if TYPE_CHECKING:
    import numpy as np

    from edge_sel.edge.classifier import Classifier
    from edge_sel.pack.keys import TrustedKeys
    from edge_sel.pack.signatures import Signers


@click.command()
@click.argument("model", type=GivenPath())
@click.option("--data", required=True, type=GivenPath(), help="Labelled images: DIR/<class>/*.jpg.")
@click.option("--weights", type=GivenPath(), help="weights.safetensors of a run, instead of the pack's.")
@click.option("--engine", default="ort", show_default=True, type=click.Choice(["ort", "ort-training", "torch"]))
@click.option("--threads", default=0, show_default=True, type=click.IntRange(0, MAX_THREADS), help="0 for all.")
@max_pixels_option
@require_signature_option
@json_option
def command(
    model: Path, data: Path, weights: Path | None, engine: str, threads: int, max_pixels: int,
    require_signature: tuple[str, ...] | None, as_json: bool,
) -> None:  # fmt: skip
    """Accuracy and embarrassment (per-class loss at temperature 1.5) of MODEL on a folder of images.

    MODEL is a pack, the folder of a run, or its model.onnx.
    """
    from edge_sel.data.folder import load_folder
    from edge_sel.edge.classifier import is_model, open_classifier
    from edge_sel.edge.evaluate import evaluate
    from edge_sel.runs.tables import finite

    keys = required_keys(require_signature)
    if is_model(model):
        if weights is not None or engine != "ort":
            odd = "--weights" if weights is not None else f"--engine {engine}"
            raise UsageError(f"{odd} needs a pack", where=model, fix="name the pack that the run began with")
        found, signers = open_classifier(model, threads, keys), None
    else:
        found, signers = _of_pack(model, weights, engine, threads, keys)
    classes = found.classes
    images = load_folder(data, found.image_size, classes=classes, max_pixels=max_pixels)
    result = evaluate(found.logits, images, found)
    if as_json:
        skipped = [{"path": s.path, "reason": s.reason} for s in images.skipped]
        figures = finite(result.to_json(classes))
        signed = {"pack": signers.to_json() if signers else None}
        echo_json({"schema": 1, "pack": str(model), "signers": signed, **figures, "skipped_images": skipped})
        return
    click.echo(
        f"accuracy {100 * result.accuracy:.2f} % on {result.images} images, loss {result.loss:.4f}, "
        f"calibration error {100 * result.calibration_error:.1f} %"
    )
    for name, figures in result.to_json(classes)["classes"].items():
        click.echo(
            f"  {escaped(name):20} {100 * figures['accuracy']:6.1f} %   E {figures['embarrassment']:.3f}"
            f"   C {figures['confidence']:.3f}"
        )
    if images.skipped:
        count = counted(len(images.skipped), "file")
        click.echo(f"skipped {count}, the first: {images.skipped[0].path}", err=True)


def _of_pack(
    path: Path, weights: Path | None, engine: str, threads: int, keys: TrustedKeys | None
) -> tuple[Classifier, Signers | None]:
    """The pack's model, or that of a run's weights, and who signed the pack."""
    from edge_sel.edge.classifier import Classifier
    from edge_sel.engines.by_name import choose_engine
    from edge_sel.pack.reader import open_pack

    opened = open_pack(path, keys)
    told, classes, values = opened.manifest.model, opened.manifest.model.classes, opened.weights()
    if weights is not None:
        classes, values = _read_weights(weights, values, classes)
    predict = choose_engine(engine, threads).predictor(opened, values)
    return Classifier(classes, told.image_size, told.mean, told.std, predict), opened.signers


def _read_weights(
    path: Path, expected: Mapping[str, np.ndarray], classes: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names and weights of a run, which may have added classes of its own to the head."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = json.loads((file.metadata() or {}).get("classes", json.dumps(classes)))
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise BadInputError("weights cannot be read", where=f"{path}: {error}") from error
    # Without the first axis, that of the head's classes.
    shapes, known = ({n: v.shape[1:] for n, v in part.items()} for part in (values, expected))
    if shapes != known:
        raise BadInputError("these weights belong to another model than the pack's", where=path)
    return tuple(names), values
