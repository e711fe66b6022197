"""What a page is made of: sections of cards, paragraphs, tables, charts and pictures. ``page.html`` shows each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

Cells = Sequence[str]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Card:
    """A figure that is read first.

    Attributes:
        label: what it is.
        value: with its unit.
        note: where it is from, and how sure it is.
        tone: ``good``, ``warn`` or empty.
    """

    label: str
    value: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Cards:
    """Figures side by side."""

    kind: ClassVar[str] = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Table:
    """Rows of cells; ``marked`` are the rows that are to be seen first."""

    kind: ClassVar[str] = "table"
    title: str
    columns: Cells
    rows: Sequence[Cells]
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Chart:
    """An SVG and the table behind it.

    Attributes:
        title: what it shows.
        svg: drawn by ``charts.py``.
        summary: in one sentence, for whoever does not see it.
        table: its numbers.
        wide: it needs the whole width.
    """

    kind: ClassVar[str] = "chart"
    title: str
    svg: str
    summary: str
    table: Table
    wide: bool = False


@dataclass(frozen=True)
class Picture:
    """A small image; ``uri`` is empty where it cannot be shown."""

    uri: str
    caption: str


@dataclass(frozen=True)
class Pictures:
    """Small images with captions."""

    kind: ClassVar[str] = "pictures"
    title: str
    pictures: Sequence[Picture]


Block = Text | Cards | Table | Chart | Pictures


@dataclass(frozen=True)
class Section:
    """A question and what answers it."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


@dataclass(frozen=True)
class Part:
    """A run, a comparison of runs, or the reference: an article with its sections."""

    title: str
    subtitle: str
    sections: Sequence[Section]
