"""*Who was hard?* Each class before and after, confusions, the hardest images, and what the gate held back."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from edge_sel.data.builtin import RELIT, load_relit
from edge_sel.data.images import UInt8Array, read_image
from edge_sel.report import words
from edge_sel.report.blocks import Block, Chart, Picture, Pictures, Table, Text
from edge_sel.report.charts import (
    GRID,
    INK,
    MUTED,
    PAPER,
    SERIES,
    Charts,
    percent_axis,
    quiet_grid,
    short,
    stacked_bars,
)
from edge_sel.report.read import Record
from edge_sel.units import counted

MOST_CLASSES = 20
"""In a chart; the table has up to ``MOST_ROWS``."""
MOST_ROWS = 200
PIXELS = 72
MOST_PICTURES = 120
"""In one page: each takes about 2 kB."""


def hardness_blocks(thumbnails: Thumbnails, record: Record, charts: Charts) -> list[Block]:
    """By class, by image, by the gate."""
    return _classes(record, charts) + _confusion(record, charts) + _gate(record, charts) + _images(record, thumbnails)


def _classes(record: Record, charts: Charts) -> list[Block]:
    on = (record.result.get("accuracy") or {}).get("on", "validation")
    before = ((record.result.get("before") or {}).get(on) or {}).get("classes") or {}
    after = ((record.result.get("after") or {}).get(on) or {}).get("classes") or {}
    names = [name for name in record.classes if name in before and name in after]
    if not names:
        return []
    hardest = sorted(names, key=lambda name: -(after[name]["embarrassment"] or 0.0))
    shown = [name for name in names if name in {*hardest[:MOST_CLASSES]}]

    def values(key: str) -> tuple[list[float], list[float]]:
        return [before[name][key] for name in shown], [after[name][key] for name in shown]

    def paint(loss: Any, accuracy: Any) -> None:
        _before_and_after(loss, shown, *values("embarrassment"))
        _before_and_after(accuracy, shown, *values("accuracy"))
        loss.set_xlabel("embarrassment (per-class loss, nats)")
        accuracy.set_xlabel("accuracy")
        accuracy.set_yticklabels([])
        percent_axis(accuracy.xaxis)
        loss.legend(fontsize=7, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))

    svg = charts.draw(paint, size=(10.4, 1.4 + 0.24 * len(shown)), panels=2)
    rows = [
        [name, *(words.number(figures[name]["embarrassment"]) for figures in (before, after)),
         *(words.number(figures[name]["confidence"]) for figures in (before, after)),
         *(words.percent(figures[name]["accuracy"]) for figures in (before, after))]
        for name in hardest[:MOST_ROWS]
    ]  # fmt: skip
    columns = ["class", "loss before", "after", "confidence before", "after", "accuracy before", "after"]
    title = f"Each class before and after, on {on} images"
    if len(names) > len(shown):
        title += f": the {len(shown)} hardest of {len(names)}"
    summary = (
        f"The hardest class is {hardest[0]}, with a loss of {words.number(after[hardest[0]]['embarrassment'])} nats."
    )
    note = "Embarrassment is the mean cross-entropy of a class at temperature 1.5, in nats; "
    note += "confidence is 1 − embarrassment, at least 0."
    return [Chart(title, svg, summary, Table(title, columns, rows), wide=True), Text(note)]


def _before_and_after(axes: Any, names: Sequence[str], before: Sequence[float], after: Sequence[float]) -> None:
    """A line from before to after for each name, from the top down."""
    for row, (start, end) in enumerate(zip(before, after, strict=True)):
        axes.plot([start, end], [row, row], color=GRID, linewidth=3, solid_capstyle="round", zorder=1)
    rows = range(len(names))
    axes.scatter(before, rows, s=28, color=MUTED, label="before", zorder=2)
    axes.scatter(after, rows, s=34, color=SERIES[0], label="after", zorder=3)
    axes.set_yticks(rows, [short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    quiet_grid(axes, "x")


def _confusion(record: Record, charts: Charts) -> list[Block]:
    cells, classes = record.result.get("confusion") or {}, record.classes
    if not cells.get("after"):
        return []
    wrong = sorted((cell for cell in cells["after"] if cell[0] != cell[1]), key=lambda cell: -cell[2])
    rows = [[classes[label], classes[seen], str(images)] for label, seen, images in wrong[:MOST_ROWS]]
    table = Table("Validation images that the new model gets wrong", ["label", "predicted", "images"], rows)
    if len(classes) > MOST_CLASSES:
        return [table] if rows else []

    def paint(*panels: Any) -> None:
        for axes, when in zip(panels, ("before", "after"), strict=True):
            _matrix(axes, cells[when], classes)
            axes.set_title(when, fontsize=9, color=INK, loc="left")
        panels[1].set_yticklabels([])

    side = min(4.6, 1.6 + 0.3 * len(classes))
    svg = charts.draw(paint, size=(2 * side + 0.8, side), panels=2)
    wrong_images = sum(cell[2] for cell in wrong)
    summary = f"The new model gets {counted(wrong_images, 'validation image')} wrong."
    return [Chart("Which classes are taken for which, on validation images", svg, summary, table, wide=True)]


def _matrix(axes: Any, cells: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    from matplotlib.patches import Rectangle

    most = max((cell[2] for cell in cells), default=1)
    for label, seen, images in cells:
        strength = 0.15 + 0.85 * images / most
        colour = SERIES[0] if label == seen else SERIES[1]
        axes.add_patch(Rectangle((seen - 0.48, label - 0.48), 0.96, 0.96, color=colour, alpha=strength, linewidth=0))
        ink = PAPER if strength > 0.6 else INK
        axes.annotate(str(images), (seen, label), ha="center", va="center", fontsize=7, color=ink)
    names = [short(name, 12) for name in classes]
    axes.set_xticks(range(len(classes)), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(len(classes)), names)
    axes.set_xlim(-0.5, len(classes) - 0.5)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlabel("predicted")
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _gate(record: Record, charts: Charts) -> list[Block]:
    epochs = [epoch for epoch in record.epochs if epoch.get("candidates")]
    if not epochs:
        return []
    passed = [epoch["trained"] for epoch in epochs]
    held = [max(0, epoch["candidates"] - epoch["trained"]) for epoch in epochs]

    parts = [("trained on", SERIES[0], passed), ("held back", GRID, held)]
    svg = charts.draw(lambda axes: stacked_bars(axes, [epoch["epoch"] for epoch in epochs], parts, "images"))
    rows = [
        [str(epoch["epoch"]), epoch["plan"], str(a), str(b), words.percent(a / (a + b) if a + b else None),
         words.number(epoch.get("train_loss"))]
        for epoch, a, b in zip(epochs, passed, held, strict=True)
    ]  # fmt: skip
    columns = ["epoch", "plan", "trained on", "held back", "share", "loss in training"]
    summary = f"The gate held back {sum(held)} of {sum(held) + sum(passed)} images."
    return [Chart("What the gate let through", svg, summary, Table("The gate by epoch", columns, rows))]


def _images(record: Record, thumbnails: Thumbnails) -> list[Block]:
    blocks: list[Block] = []
    hardest = record.result.get("hardest") or {}
    source = record.result.get("source")
    for kind, title in (
        ("validation", "Validation images with the largest loss under the model that was kept"),
        ("training", "Training images with the largest loss at their last visit"),
    ):
        images = hardest.get(kind) or []
        pictures = [Picture(thumbnails.uri(source, image["path"]), _caption(image)) for image in images]
        if pictures:
            blocks.append(Pictures(title, pictures))
    return blocks


def _caption(image: dict[str, Any]) -> str:
    caption = f"{image['path']}: {image['label']}"
    if image.get("predicted") and image["predicted"] != image["label"]:
        caption += f", predicted {image['predicted']}"
    return f"{caption}, loss {image['loss']:.2f}" if image.get("loss") is not None else caption


class Thumbnails:
    """Reads images in the folder that the user has named: that which a run names may be anybody's.

    Args:
        folder: None shows none but those of the built-in digits, and opens no file.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._left = folder, MOST_PICTURES

    def uri(self, source: str | None, path: str) -> str:
        """A ``data:`` address of the image; empty where it is gone, or cannot be read."""
        try:
            if not self._left:
                pixels = None
            elif source == RELIT:
                pixels = self._builtin.get(path)
            else:
                pixels = None if self._folder is None else _read(self._folder, path)
        except Exception:  # whatever a damaged file makes of the decoder: the caption names it
            return ""
        if pixels is None:
            return ""
        self._left -= 1
        return _encode(pixels)

    @cached_property
    def _builtin(self) -> dict[str, UInt8Array]:
        images = load_relit("field")
        return dict(zip(images.ids, images.read(range(len(images))), strict=True))


def _read(folder: Path, path: str) -> UInt8Array | None:
    whole = (folder / path).resolve()
    return read_image(whole, (PIXELS, PIXELS)) if whole.is_relative_to(folder.resolve()) else None


def _encode(pixels: UInt8Array) -> str:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
