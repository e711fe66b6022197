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

EXIT_STOPPED_RESUMABLE = 75
EXIT_INTERRUPTED = 130


class EdgeSelError(Exception):
    """An error with a place and a remedy; ``str()`` gives the one line shown to the user."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        line = what if where is None else f"{what}: {where}"
        words = " ".join((line if fix is None else f"{line} ({fix})").split())
        super().__init__("".join(c if c.isprintable() else "?" for c in words))  # it may name what came from outside


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
