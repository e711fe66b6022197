"""``edge-sel predict``."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_sel.cli.common import GivenPath, echo_json, max_pixels_option, require_signature_option, required_keys
from edge_sel.config.profiles import MAX_THREADS
from edge_sel.errors import DataError, UsageError, escaped

if TYPE_CHECKING:
    from edge_sel.data.dataset import Skipped
    from edge_sel.data.images import UInt8Array
    from edge_sel.edge.classifier import Classifier

BATCH = 32
STDIN = "-"
MOST_STDIN_BYTES = 256 << 20


@click.command()
@click.argument("model", type=GivenPath())
@click.argument("images", nargs=-1, required=True, type=GivenPath(allow_dash=True))
@click.option(
    "--csv",
    "as_csv",
    is_flag=True,
    help="CSV: a row per image with its path, its class and the probability of each class.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--threads", default=0, show_default=True, type=click.IntRange(0, MAX_THREADS), help="0 for all.")
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
    found: Found = _classified(classifier, images, max_pixels, skipped)
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
        click.echo(f"edge-sel: skipped {each.path}: {each.reason}", err=True)


Found = Iterator[tuple[str, list[float]]]


def _classified(classifier: Classifier, given: tuple[Path, ...], max_pixels: int, skipped: list[Skipped]) -> Found:
    """Name and probabilities of each image that can be read, a batch at a time."""
    import numpy as np

    waiting: list[tuple[str, UInt8Array]] = []

    def flush() -> Found:
        if waiting:
            rows = classifier.probabilities(np.stack([pixels for _, pixels in waiting]))
            yield from ((name, row.tolist()) for (name, _), row in zip(waiting, rows, strict=True))
            waiting.clear()

    for name, pixels in _pixels(classifier, given, max_pixels, skipped):
        waiting.append((name, pixels))
        if len(waiting) == BATCH:
            yield from flush()
    yield from flush()


def _pixels(
    classifier: Classifier, given: tuple[Path, ...], max_pixels: int, skipped: list[Skipped]
) -> Iterator[tuple[str, UInt8Array]]:
    from edge_sel.data.dataset import Skipped
    from edge_sel.data.images import UnreadableImage, decode_image, read_image
    from edge_sel.data.listing import list_loose_images, printable

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


def _show_lines(classifier: Classifier, found: Found) -> None:
    for name, row in found:
        best, probability = _best(classifier, row)
        click.echo(f"{escaped(name)}: {escaped(best)} {100 * probability:.1f} %")


def _show_csv(classifier: Classifier, found: Found) -> None:
    click.echo(_row(["path", "class", "probability", *(f"p_{name}" for name in classifier.classes)]))
    for name, row in found:
        best, probability = _best(classifier, row)
        click.echo(_row([name, best, f"{probability:.6f}", *(f"{value:.6f}" for value in row)]))


def _row(cells: list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def _show_json(model: Path, classifier: Classifier, found: Found, skipped: list[Skipped]) -> None:
    images: list[dict[str, Any]] = []
    for name, row in found:
        best, probability = _best(classifier, row)
        figures = dict(zip(classifier.classes, row, strict=True))
        images.append({"path": name, "class": best, "probability": probability, "probabilities": figures})
    told = [{"path": each.path, "reason": each.reason} for each in skipped]
    classes = list(classifier.classes)
    echo_json({"schema": 1, "model": str(model), "classes": classes, "images": images, "skipped_images": told})
