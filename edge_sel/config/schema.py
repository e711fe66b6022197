"""What a key of a TOML file, an environment variable or a flag may be, and how to say that it is not.

All mistakes are reported in one error; an unknown key names the nearest one.
"""

from __future__ import annotations

import difflib
import importlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from edge_sel.errors import UsageError
from edge_sel.files import read_regular

ENV_PREFIX = "EDGE_SEL_"
_LONGEST_TOML = 10**6
_MOST_DOTS = 1000
"""The parser's memory grows with the square of the dots in one key."""
GivenValues = list[tuple[str, Any, str]]
"""Key or variable, value, origin."""


class KeySpec(NamedTuple):
    """What one key may be.

    ``help`` is for the command line. ``parse`` reads text with a unit, of which ``example`` is one; where the
    value is text itself, it only checks. A tuple has ``choices``, or holds any names.
    """

    kind: type
    help: str
    low: float = -math.inf
    above: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    optional: bool = False
    parse: Callable[[str], Any] | None = None
    table: str = ""
    example: str = ""

    def allowed(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return ("a list of " if self.kind is tuple else "one of ") + ", ".join(self.choices)
        if self.kind is tuple:
            return f"one or several different names, such as {self.example}"
        if self.kind in (bool, str):
            return "true or false" if self.kind is bool else f"like {self.example}" if self.example else "some text"
        limits = (("at least", self.low), ("above", self.above), ("at most", self.high))
        bounds = " and ".join(f"{word} {_number(limit)}" for word, limit in limits if math.isfinite(limit))
        kind = "a whole number" if self.kind is int else "a number"
        such = f", such as {self.example}" if self.example else ""
        return f"{kind} {bounds}{such}" + " or none" * self.optional

    def read(self, value: Any, *, text: bool) -> Any:
        """The value, checked and of its own type, or an exception; ``text`` says that a string is parsed."""
        if self.optional and value == "none":
            return None
        if isinstance(value, str) and self.kind is str and self.parse is not None:
            self.parse(value)
        elif isinstance(value, str) and self.kind is not str and (text or self.example):
            value = (self.parse or self.kind)(value)
        if (type(value), self.kind) in ((int, float), (list, tuple)):
            value = self.kind(value)
        parts = value if self.kind is tuple else (value,)
        found: type = type(value)
        if found is not self.kind:  # not isinstance: true is no number
            good = False
        elif self.choices:
            good = all(part in self.choices for part in parts) and len(parts) == len(set(parts)) > 0
        elif self.kind is tuple:
            named = all(isinstance(part, str) and part.strip() for part in parts)
            good = named and len(parts) == len(set(parts)) > 0
        elif self.kind is str:
            good = bool(value.strip())
        else:
            good = self.low <= value <= self.high and value > self.above and value not in (math.inf, -math.inf)
        if not good:
            raise ValueError
        return value


def key(help: str, default: Any = MISSING, kind: type | None = None, **limits: Any) -> Any:
    """A field of a dataclass with its spec; ``limits`` are the other fields of ``KeySpec``."""
    return field(default=default, metadata={"spec": KeySpec(kind or type(default), help, **limits)})


def schema_of(dataclass: Any) -> dict[str, KeySpec]:
    """The spec of every key of a dataclass; a profile's keys are named with their table, such as ``power.idle_w``."""
    known: dict[str, KeySpec] = {}
    for name, hint in get_type_hints(dataclass).items():
        if spec := dataclass.__dataclass_fields__[name].metadata.get("spec"):
            choices = get_args(hint) if get_origin(hint) is Literal else spec.choices
            known[f"{spec.table}.{name}".lstrip(".")] = spec._replace(choices=choices)
    return known


def validate(given: GivenValues, known: Mapping[str, KeySpec]) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The good values, their origins, and a line for each mistake; a later value replaces an earlier one."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    mistakes: list[str] = []
    variables = {f"{ENV_PREFIX}{key.upper()}": key for key in known}
    for name, value, origin in given:
        names = variables if origin.startswith("env:") else {name: name for name in known}
        if name not in names:
            mistakes.append(f"{shown(name, repr=str)} is not known ({origin}): did you mean {nearest(name, names)}?")
        if name not in names or value is None:
            continue
        target = names[name]
        try:
            values[target] = known[target].read(value, text=origin.startswith(("env:", "flag")))
            origins[target] = origin
        except (ValueError, TypeError, LookupError, OverflowError, UsageError):
            mistakes.append(f"{target} = {shown(value)} ({origin}) must be {known[target].allowed()}")
    return values, origins, mistakes


def _number(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def shown(value: Any, repr: Callable[[Any], str] = repr) -> str:
    """A value as it was written, the middle of a long one left out."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
        return f"a very long {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:50]}…{text[-20:]}"


def nearest(word: str, words: Iterable[str]) -> str:
    """The word of ``words`` most like ``word``."""
    return "".join(difflib.get_close_matches(word[:80], list(words), n=1, cutoff=0.0)) or "nothing"


def read_toml(path: Path) -> Iterator[tuple[str, Any]]:
    """The keys of a TOML file, those in a table as ``table.key``."""
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        content = read_regular(path, _LONGEST_TOML)
        if content.count(b".") > _MOST_DOTS:
            raise ValueError(f"it has more than {_MOST_DOTS} dots")
        top = tomllib.loads(content.decode("utf-8"))
    except RecursionError:
        raise UsageError("cannot be read as TOML: it is nested too deeply", where=path) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot be read as TOML: {reason}", where=path) from None
    for key, value in top.items():
        if isinstance(value, dict) and value:
            yield from ((f"{key}.{inner}", part) for inner, part in value.items())
        else:
            yield key, value
