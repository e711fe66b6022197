"""Every error a user can meet. Each is one line: what is wrong, where, and what to do about it.

EdgeSelError              exit 1
├── BudgetSpentError      exit 75  a run cannot go on within its budget, but with a larger one
├── UsageError            exit 2   a wrong option, setting or combination of them
├── SetupError            exit 3   this machine lacks something: a package, a permission, disk space
└── BadInputError         exit 4
    ├── PackError                  the pack is damaged, incomplete or too new
    ├── DataError                  the images or labels cannot be used
    └── GraphError                 the model's graph cannot be turned into a training graph
"""

from __future__ import annotations

import unicodedata

EXIT_STOPPED_RESUMABLE = 75
EXIT_INTERRUPTED = 130


_LONGEST = 600
"""Characters of one word: more than a path that a person would give."""


def escaped(text: str) -> str:
    """The text, with escapes in place of control characters, of those that turn the line round, and of half pairs.

    Names come from files that anybody may have made; printed as they are, they could drive the terminal.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(repr(sign)[1:-1] if _drives(sign) else sign for sign in text)


def _drives(sign: str) -> bool:
    return sign in _TURNING or unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")


_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


def on_one_line(text: str) -> str:
    """The text as one line that can be printed; words too long to be read are cut in their middle."""
    words = (escaped(word) for word in text.split())
    return " ".join(w if len(w) <= _LONGEST else f"{w[:300]}…{w[-100:]}" for w in words)


class EdgeSelError(Exception):
    """An error with a place and a remedy; ``str()`` gives the one line shown to the user."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        line = what if self.where is None else f"{what}: {escaped(self.where)}"
        super().__init__(on_one_line(line if fix is None else f"{line} ({fix})"))


class BudgetSpentError(EdgeSelError):
    """A run cannot go on within its energy budget; with a larger one it can."""

    exit_code = EXIT_STOPPED_RESUMABLE


class UsageError(EdgeSelError):
    """A wrong option, setting or combination of them."""

    exit_code = 2


class SetupError(EdgeSelError):
    """This machine lacks something: a package, a permission, disk space."""

    exit_code = 3


class BadInputError(EdgeSelError):
    """What was given to read cannot be used."""

    exit_code = 4


class PackError(BadInputError):
    """The pack is damaged, incomplete or written by a newer version."""


class DataError(BadInputError):
    """The images or their labels cannot be used."""


class GraphError(BadInputError):
    """The model's graph cannot be turned into a training graph."""
