"""The whole page: parts become HTML by ``page.html``, which asks nobody for anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path

from edge_sel.errors import UsageError
from edge_sel.files import read_regular, write_durably
from edge_sel.report.against_reference import reference_part
from edge_sel.report.blocks import Part, Section, Text
from edge_sel.report.changes import changes_section
from edge_sel.report.charts import Charts, require_matplotlib
from edge_sel.report.energy import energy_section
from edge_sel.report.hardness import hardness_section
from edge_sel.report.pictures import Thumbnails
from edge_sel.report.read import Record, read_records
from edge_sel.report.side_by_side import side_by_side
from edge_sel.report.verdict import verdict_section
from edge_sel.version import __version__

IN_FULL = 4
"""Runs that are shown one by one; of more only the comparison, so that the page stays small."""
MARK = '<meta name="generator" content="edge-sel'
LARGEST = 1 << 24


def write_report(
    out: Path, runs: Sequence[Path], *, reference: Path | None = None, images: bool = True, now: datetime
) -> int:
    """Write the page; its bytes.

    Args:
        out: the file; an earlier report there is replaced.
        runs: folders of `edge-sel finetune`, or folders that hold such.
        reference: a folder of `edge-sel reference`; may stand alone.
        images: False names the hardest images and shows none.
        now: stands in the page.

    Raises:
        SetupError: matplotlib or Jinja is missing, or the file cannot be written.
        UsageError: no run, no result of the reference, or ``out`` is something else than a report.
    """
    require_matplotlib()
    refuse_other(out)
    records = read_records(runs)
    charts, thumbnails = Charts(), Thumbnails(wanted=images)
    parts = [] if len(records) < 2 else [side_by_side(records, charts)]
    parts += [_part(record, charts, thumbnails) for record in (records if len(records) <= IN_FULL else ())]
    if reference is not None:
        parts.append(reference_part(reference, records, charts))
    content = render(parts, title=_title(records), now=now, hidden=len(records) if len(records) > IN_FULL else 0)
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


def _title(records: Sequence[Record]) -> str:
    if not records:
        return "edge-sel reference"
    return records[0].name if len(records) == 1 else f"{len(records)} runs"


def _part(record: Record, charts: Charts, thumbnails: Thumbnails) -> Part:
    makers: dict[str, Callable[[], Section]] = {
        "Did it work?": lambda: verdict_section(record, charts),
        "Where did the joules go?": lambda: energy_section(record, charts),
        "Who was hard?": lambda: hardness_section(record, charts, thumbnails),
        "What changed?": lambda: changes_section(record, charts),
    }
    sections = []
    for title, make in makers.items():
        try:
            sections.append(make())
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
            told = "This part cannot be read from the files of this run: another version wrote them "
            told += f"({type(error).__name__}: {error})."
            sections.append(Section(title, [Text(told)]))
    return Part(record.name, str(record.past.folder), sections)
