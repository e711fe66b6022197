"""``edge-sel predict`` and ``edge-sel evaluate``: what a model makes of images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_sel.cli.common import (
    GivenPath,
    echo_json,
    json_option,
    max_pixels_option,
    require_signature_option,
    required_keys,
    say,
)
from edge_sel.config.profiles import MAX_THREADS
from edge_sel.errors import DataError, UsageError
from edge_sel.files import csv_line
from edge_sel.units import counted

if TYPE_CHECKING:
    from edge_sel.data.dataset import Skipped
    from edge_sel.data.images import UInt8Array
    from edge_sel.edge.classifier import Classifier

BATCH = 32
STDIN = "-"
MOST_STDIN_BYTES = 256 << 20
_threads_option = click.option(
    "--threads", default=0, show_default=True, type=click.IntRange(0, MAX_THREADS), help="0 for all."
)


@click.command()
@click.argument("model", type=GivenPath())
@click.argument("images", nargs=-1, required=True, type=GivenPath(allow_dash=True))
@click.option(
    "--csv",
    "as_csv",
    is_flag=True,
    help="CSV: a row per image with its path, its class and the probability of each class.",
)
@json_option
@_threads_option
@max_pixels_option
@require_signature_option
def command(
    model: Path, images: tuple[Path, ...], as_csv: bool, as_json: bool, threads: int, max_pixels: int,
    require_signature: tuple[str, ...] | None,
) -> None:  # fmt: skip
    """Classify images: the class of each, with its probability.

    MODEL is the folder of a run, its model.onnx, or a pack. IMAGES are files, folders (everything below them), or - for
    one image on stdin, such as a camera's frame. Images are prepared as they are in training.
    """
    from edge_sel.edge.classifier import open_classifier

    if as_csv and as_json:
        raise UsageError("--csv and --json", fix="give one of them")
    classifier = open_classifier(model, threads, required_keys(require_signature))
    skipped: list[Skipped] = []
    found = _classified(classifier, images, max_pixels, skipped)
    first = next(found, None)
    if first is None:
        where = f"{skipped[0].path}: {skipped[0].reason}" if skipped else "the folders are empty"
        raise DataError("not one image could be read", where=where, fix="name images, or folders that hold some")
    found = chain([first], found)
    if as_json:
        _show_json(model, classifier, found, skipped)
        return
    (_show_csv if as_csv else _show_lines)(classifier, found)
    for each in skipped:
        say(f"edge-sel: skipped {each.path}: {each.reason}", err=True)


Classified = Iterator[tuple[str, list[float]]]


def _classified(classifier: Classifier, given: tuple[Path, ...], max_pixels: int, skipped: list[Skipped]) -> Classified:
    """Name and probabilities of each image that can be read, a batch at a time."""
    import numpy as np

    pixels = _pixels(classifier, given, max_pixels, skipped)
    while batch := list(islice(pixels, BATCH)):
        rows = classifier.probabilities(np.stack([image for _, image in batch]))
        yield from ((name, row.tolist()) for (name, _), row in zip(batch, rows, strict=True))


def _pixels(
    classifier: Classifier, given: tuple[Path, ...], max_pixels: int, skipped: list[Skipped]
) -> Iterator[tuple[str, UInt8Array]]:
    from edge_sel.data.dataset import Skipped
    from edge_sel.data.folder import list_loose_images, printable
    from edge_sel.data.images import UnreadableImage, decode_image, read_image

    size = classifier.image_size
    for path in given:
        if path.is_dir():
            files, others = list_loose_images(path)
            skipped += [Skipped(str(path / each.path), each.reason) for each in others]
        else:
            files = [(printable(str(path)), path)]
        for name, file in files:
            name = str(path / name) if path.is_dir() else name
            try:
                if str(file) == STDIN:
                    content = sys.stdin.buffer.read(MOST_STDIN_BYTES)
                    yield STDIN, decode_image(content, size, max_pixels=max_pixels)
                else:
                    yield name, read_image(file, size, max_pixels=max_pixels)
            except UnreadableImage as error:
                skipped.append(Skipped(name, error.reason))


def _best(classifier: Classifier, row: list[float]) -> tuple[str, float]:
    place = max(range(len(row)), key=row.__getitem__)
    return classifier.classes[place], row[place]


def _show_lines(classifier: Classifier, found: Classified) -> None:
    for name, row in found:
        best, probability = _best(classifier, row)
        say(f"{name}: {best} {100 * probability:.1f} %")


def _show_csv(classifier: Classifier, found: Classified) -> None:
    click.echo(csv_line(["path", "class", "probability", *(f"p_{name}" for name in classifier.classes)]))
    for name, row in found:
        best, probability = _best(classifier, row)
        click.echo(csv_line([name, best, f"{probability:.6f}", *(f"{value:.6f}" for value in row)]))


def _show_json(model: Path, classifier: Classifier, found: Classified, skipped: list[Skipped]) -> None:
    images: list[dict[str, Any]] = []
    for name, row in found:
        best, probability = _best(classifier, row)
        figures = dict(zip(classifier.classes, row, strict=True))
        images.append({"path": name, "class": best, "probability": probability, "probabilities": figures})
    left_out = [asdict(each) for each in skipped]
    echo_json(
        {"schema": 1, "model": str(model), "classes": classifier.classes, "images": images, "skipped_images": left_out}
    )


@click.command()
@click.argument("model", type=GivenPath())
@click.option("--data", required=True, type=GivenPath(), help="Labelled images: DIR/<class>/*.jpg.")
@click.option("--weights", type=GivenPath(), help="weights.safetensors of a run, instead of the pack's.")
@click.option("--engine", default="ort", show_default=True, type=click.Choice(["ort", "ort-training", "torch"]))
@_threads_option
@max_pixels_option
@require_signature_option
@json_option
def evaluate_command(
    model: Path, data: Path, weights: Path | None, engine: str, threads: int, max_pixels: int,
    require_signature: tuple[str, ...] | None, as_json: bool,
) -> None:  # fmt: skip
    """Accuracy and embarrassment (per-class loss at temperature 1.5) of MODEL on a folder of images.

    MODEL is a pack, the folder of a run, or its model.onnx.
    """
    from edge_sel.data.folder import load_folder
    from edge_sel.edge.classifier import Classifier, is_model, open_classifier
    from edge_sel.edge.judge import evaluate
    from edge_sel.engines.by_name import choose_engine
    from edge_sel.pack.reader import open_pack
    from edge_sel.pack.weights import pack_of_run

    keys = required_keys(require_signature)
    if is_model(model):
        if weights is not None or engine != "ort":
            odd = "--weights" if weights is not None else f"--engine {engine}"
            raise UsageError(f"{odd} needs a pack", where=model, fix="name the pack that the run began with")
        found, signers = open_classifier(model, threads, keys), None
    else:
        pack = open_pack(model, keys)
        if weights is not None:
            pack = pack_of_run(pack, weights)
        spec, signers = pack.manifest.model, pack.signers
        predict = choose_engine(engine, threads).predictor(pack, pack.weights())
        found = Classifier(spec.classes, spec.image_size, spec.mean, spec.std, predict)
    images = load_folder(data, found.image_size, classes=found.classes, max_pixels=max_pixels)
    result = evaluate(found.logits, images, found)
    figures = result.to_json(found.classes)
    if as_json:
        signed = {"pack": signers.to_json() if signers else None}
        skipped = [asdict(each) for each in images.skipped]
        echo_json({"schema": 1, "pack": str(model), "signers": signed, **figures, "skipped_images": skipped})
        return
    say(
        f"accuracy {100 * result.accuracy:.2f} % on {result.images} images, loss {result.loss:.4f}, "
        f"calibration error {100 * result.calibration_error:.1f} %"
    )
    for name, judged in figures["classes"].items():
        say(
            f"  {name:20} {100 * judged['accuracy']:6.1f} %   E {judged['embarrassment']:.3f}"
            f"   C {judged['confidence']:.3f}"
        )
    if images.skipped:
        count = counted(len(images.skipped), "file")
        say(f"skipped {count}, the first: {images.skipped[0].path}", err=True)
