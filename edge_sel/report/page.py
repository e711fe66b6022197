"""The whole page: parts become HTML by ``page.html``, which asks nobody for anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from importlib import resources
from pathlib import Path

from edge_sel.errors import UsageError
from edge_sel.files import read_regular, write_durably
from edge_sel.report.blocks import Block, Part, Section, Text
from edge_sel.report.charts import Charts, require_matplotlib
from edge_sel.report.comparisons import reference_part, side_by_side
from edge_sel.report.energy import energy_blocks
from edge_sel.report.hardness import Thumbnails, hardness_blocks
from edge_sel.report.outcome import changes_blocks, verdict_blocks
from edge_sel.report.read import Record, read_records
from edge_sel.version import __version__

IN_FULL = 4
"""Runs that are shown one by one; of more only the comparison, so that the page stays small."""
MARK = '<meta name="generator" content="edge-sel'
LARGEST = 1 << 24


def write_report(
    out: Path, runs: Sequence[Path], *, reference: Path | None = None, images: Path | None = None, now: datetime
) -> int:
    """Write the page; its bytes.

    Args:
        out: the file; an earlier report there is replaced.
        runs: folders of `edge-sel finetune`, or folders that hold such.
        reference: a folder of `edge-sel reference`; may stand alone.
        images: folder of the images that the runs were given; the hardest are shown where it is named. No other file
            is read, whatever a run says that it was given.
        now: stands in the page.

    Raises:
        SetupError: matplotlib or Jinja is missing, or the file cannot be written.
        UsageError: no run, no result of the reference, or ``out`` is something else than a report.
    """
    require_matplotlib()
    refuse_other(out)
    records = read_records(runs)
    charts, thumbnails = Charts(), Thumbnails(images)
    parts = [] if len(records) < 2 else [side_by_side(records, charts)]
    hidden = len(records) if len(records) > IN_FULL else 0
    if not hidden:
        parts += [_part(record, charts, thumbnails) for record in records]
    if reference is not None:
        parts.append(reference_part(reference, records, charts))
    names = [record.name for record in records] or ["edge-sel reference"]
    content = render(parts, title=names[0] if len(names) == 1 else f"{len(names)} runs", now=now, hidden=hidden)
    write_durably(out, content)
    return len(content)


def refuse_other(out: Path) -> None:
    """What is no report of ours is not replaced.

    Raises:
        UsageError: there is such a file, or a folder.
    """
    if not out.exists() and not out.is_symlink():
        return
    try:
        if MARK in read_regular(out, LARGEST)[:4096].decode("utf-8", "replace"):
            return
    except OSError:
        pass
    raise UsageError("the file there is not a report", where=out, fix="name another --out")


def render(parts: Sequence[Part], *, title: str, now: datetime, hidden: int = 0) -> bytes:
    """The HTML of parts; ``hidden``: so many runs are not shown one by one."""
    import jinja2

    folder = resources.files("edge_sel.report")
    style, text = ((folder / name).read_text(encoding="utf-8") for name in ("style.css", "page.html"))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(text).render(
        parts=parts, title=title, style=style, hidden=hidden, version=__version__, made=f"{now:%Y-%m-%d %H:%M}",
    )  # fmt: skip
    return page.encode("utf-8", "replace")


def _part(record: Record, charts: Charts, thumbnails: Thumbnails) -> Part:
    makers: dict[str, Callable[[Record, Charts], list[Block]]] = {
        "Did it work?": verdict_blocks,
        "Where did the joules go?": energy_blocks,
        "Who was hard?": partial(hardness_blocks, thumbnails),
        "What changed?": changes_blocks,
    }
    sections = []
    for title, make in makers.items():
        try:
            blocks = make(record, charts) or [Text("The files of this run do not contain this yet.")]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
            text = "This part cannot be read from the files of this run: another version wrote them "
            blocks = [Text(f"{text}({type(error).__name__}: {error}).")]
        sections.append(Section(title, blocks))
    return Part(record.name, str(record.past.folder), sections)
