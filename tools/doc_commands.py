"""The code blocks of README.md and docs/, and which commands of them the tests execute.

python tools/doc_commands.py [PAGE.md …]

Blocks marked ``sh`` and ``python`` are executed by tests/docs/test_code_blocks.py, each page in a folder of its own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
EXECUTED = ("sh", "python")
_COMMAND = re.compile(r"^(?:[$#] )?(?:[A-Z][A-Z_]*=\S* +)*(edge-sel(?: .*)?)$", re.DOTALL)


class Block(NamedTuple):
    """A fenced block of code: its language, text, and the line of the page at which it begins."""

    language: str
    text: str
    line: int


def pages() -> list[Path]:
    """All pages that a user reads, README.md first."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "deploy" / "README.md"]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    return [
        Block(token.info.strip(), token.content, token.map[0] + 1 if token.map else 0)
        for token in tokens
        if token.type == "fence"
    ]


def commands(block: Block) -> Iterator[str]:
    """Each call of edge-sel at the beginning of a line, without the prompt; continued lines are joined."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if found := _COMMAND.match(line.strip()):
            yield found[1]


def executed(page: Path) -> list[Block]:
    """The blocks that the tests run, in their order."""
    return [block for block in blocks(page) if block.language in EXECUTED]


def main(given: list[str]) -> None:
    """Print the executed commands, page by page, and how many are only shown."""
    shown = 0
    for page in [Path(name).resolve() for name in given] or pages():
        shown += sum(len(list(commands(block))) for block in blocks(page) if block.language not in EXECUTED)
        for block in executed(page):
            for line in block.text.rstrip().splitlines():
                print(f"{page.relative_to(ROOT)}:{block.line}: {line}")
    print(f"{shown} more calls of edge-sel are shown, not executed; their options are checked")


if __name__ == "__main__":
    main(sys.argv[1:])
