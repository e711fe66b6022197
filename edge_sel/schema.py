"""JSON that anybody may have written: bounded while it is parsed, then compared with a type, value by value.

Types are dataclasses, TypedDicts and what they are made of. An annotation may carry bounds:
``Annotated[float, Within(0, 1)]``, ``Annotated[str, Longest(80)]``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints, is_typeddict

MOST_VALUES = 2_000_000
"""In one text; these take some 200 MB."""
MOST_DIGITS = 19
LONGEST_TEXT, LONGEST_LIST = 1 << 16, 1_000_000

ValueCheck = Callable[[Any], Any]
"""Returns the value as its type has it, lists as tuples where it says so; raises SchemaError."""


class SchemaError(ValueError):
    """A text is no JSON, or a value is not as its type says; ``str()`` says which, and how it differs."""

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(what)
        self.what, self.place = what, place

    def __str__(self) -> str:
        return f"{self.place.lstrip('.')} {self.what}".strip()

    def below(self, step: str) -> SchemaError:
        """The same, one step further from the value: ``.key`` or ``[3]``."""
        return SchemaError(self.what, step + self.place)


class Within(NamedTuple):
    """Bounds of a number, both included."""

    low: float
    high: float


class Longest(NamedTuple):
    """Bound of the number of characters, items or keys."""

    most: int


def parse_json(text: bytes | str, *, finite: bool = True) -> Any:
    """Parse a text whose numbers are of no more than 64 bits, and in which no key occurs twice.

    Args:
        text: in UTF-8.
        finite: whether an infinity or NaN is refused.

    Raises:
        SchemaError: it is no such text.
    """
    try:
        found = text.decode() if isinstance(text, bytes) else text
        if found.count(",") + found.count("[") + found.count("{") > MOST_VALUES:
            raise SchemaError(f"has more than {MOST_VALUES} values")
        return json.loads(
            found, object_pairs_hook=_object, parse_int=_integer,
            parse_float=_number if finite else float, parse_constant=_number if finite else float,
        )  # fmt: skip
    except SchemaError:
        raise
    except RecursionError:
        raise SchemaError("is nested too deeply") from None
    except ValueError as error:
        raise SchemaError(f"is no JSON ({error})"[:200]) from error


def read_as(kind: Any, text: bytes | str) -> Any:
    """Parse a text and compare it with a type.

    Raises:
        SchemaError: it is no such JSON, or something else than the type says.
    """
    return checked(kind, parse_json(text))


def checked(kind: Any, value: Any) -> Any:
    """``value`` as the type says: of a TypedDict only the keys that it has, of a dataclass an object.

    Raises:
        SchemaError: it is of another type, out of bounds, or lacks a key; a dataclass may have no key more.
    """
    try:
        return _check_of(kind)(value)
    except RecursionError:
        raise SchemaError("is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise SchemaError("has a key twice")
    return found


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS + text.startswith("-"):
        raise SchemaError(f"has a number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise SchemaError(f"has the number {text[:20]}")
    return value


# A check of each type, made once


def _shown(value: Any) -> str:
    return repr(value)[:60]


@cache
def _check_of(kind: Any) -> ValueCheck:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if origin is Annotated:
        return _bounded(_check_of(arguments[0]), arguments[1:])
    if origin in (UnionType, Union):
        return _any_of([_check_of(argument) for argument in arguments])
    if origin is Literal:
        return _one_of(arguments)
    if origin in (list, tuple):
        return _items(origin, arguments)
    if origin is dict:
        return _mapping(_check_of(arguments[1]))
    if is_typeddict(kind):
        return _typed_dict(kind)
    if is_dataclass(kind):
        return _dataclass(kind)
    return _plain((int, float) if kind is float else (kind,))


def _plain(kinds: tuple[type, ...]) -> ValueCheck:
    name = "nothing" if kinds[-1] is NoneType else kinds[-1].__name__

    def check(value: Any) -> Any:
        if type(value) not in kinds or (type(value) is str and len(value) > LONGEST_TEXT):
            raise SchemaError(f"is {_shown(value)}, not {name}")
        return value

    return check


def _bounded(inner: ValueCheck, bounds: tuple[Any, ...]) -> ValueCheck:
    def check(value: Any) -> Any:
        value = inner(value)
        for bound in bounds:
            if isinstance(bound, Within) and value is not None and not bound.low <= value <= bound.high:
                raise SchemaError(f"is {_shown(value)}, not within {bound.low:g} and {bound.high:g}")
            if isinstance(bound, Longest) and value is not None and len(value) > bound.most:
                raise SchemaError(f"is longer than {bound.most}")
        return value

    return check


def _any_of(checks: list[ValueCheck]) -> ValueCheck:
    def check(value: Any) -> Any:
        first: SchemaError | None = None
        for one in checks:
            try:
                return one(value)
            except SchemaError as error:
                first = first or error
        assert first is not None
        raise first

    return check


def _one_of(allowed: tuple[Any, ...]) -> ValueCheck:
    def check(value: Any) -> Any:
        if not isinstance(value, str | int) or value not in allowed:
            raise SchemaError(f"is {_shown(value)}, not one of {', '.join(map(str, allowed))}")
        return value

    return check


def _items(made: type, arguments: tuple[Any, ...]) -> ValueCheck:
    alike = made is list or arguments[-1] is Ellipsis
    checks = [_check_of(argument) for argument in (arguments[:1] if alike else arguments)]

    def check(value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) > LONGEST_LIST:
            raise SchemaError(f"is {_shown(value)}, not a list")
        if not alike and len(value) != len(checks):
            raise SchemaError(f"has {len(value)} items, not {len(checks)}")
        found = []
        for place, item in enumerate(value):
            try:
                found.append(checks[0 if alike else place](item))
            except SchemaError as error:
                raise error.below(f"[{place}]") from None
        return made(found)

    return check


def _mapping(inner: ValueCheck) -> ValueCheck:
    def check(value: Any) -> Any:
        found = {}
        for key, item in _as_dict(value).items():
            try:
                found[key] = inner(item)
            except SchemaError as error:
                raise error.below(f".{key[:60]}") from None
        return found

    return check


def _as_dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(type(key) is str for key in value):
        raise SchemaError(f"is {_shown(value)}, not an object")
    return value


def _parts(value: dict[str, Any], checks: dict[str, ValueCheck]) -> dict[str, Any]:
    found = {}
    for key, item in value.items():
        if key in checks:
            try:
                found[key] = checks[key](item)
            except SchemaError as error:
                raise error.below(f".{key}") from None
    return found


def _typed_dict(kind: Any) -> ValueCheck:
    checks: dict[str, ValueCheck] = {}

    def check(value: Any) -> Any:
        if not checks:  # not before: a type may be part of itself
            checks.update({key: _check_of(of) for key, of in get_type_hints(kind, include_extras=True).items()})
        value = _as_dict(value)
        if missing := sorted(kind.__required_keys__ - value.keys()):
            raise SchemaError(f"has no {missing[0]}")
        return _parts(value, checks)

    return check


def _dataclass(kind: Any) -> ValueCheck:
    checks = {key: _check_of(of) for key, of in get_type_hints(kind, include_extras=True).items()}
    needed = {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}

    def check(value: Any) -> Any:
        value = _as_dict(value)
        if odd := sorted(needed - value.keys()) or sorted(value.keys() - checks.keys()):
            raise SchemaError(f"has {'no' if odd[0] in needed else 'an unknown'} {odd[0][:60]}")
        return kind(**_parts(value, checks))

    return check
