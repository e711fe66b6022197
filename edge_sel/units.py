"""Quantities as people write them: ``500J``, ``0.2Wh``, ``8W``, ``75C``, ``30m``, ``20%``, ``22:00-07:00``.

Parsing is strict, because a wrong unit is a budget wrong by a thousand: the unit must be there, its prefix
is case-sensitive (``mJ`` is not ``MJ``), and a text that is not understood is a ``UsageError`` that says what
is. Printing keeps three significant digits; what is printed can be parsed again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from edge_sel.errors import UsageError

_NUMBER = r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?"
_QUANTITY = re.compile(rf"([+-]?(?:{_NUMBER}))\s*(.*)", re.DOTALL)
_DURATION_PART = re.compile(rf"({_NUMBER})\s*(d|h|min|ms|m|s)\s*")

_ENERGY_J = {"µJ": 1e-6, "μJ": 1e-6, "uJ": 1e-6, "mJ": 1e-3, "J": 1.0, "kJ": 1e3, "MJ": 1e6, "GJ": 1e9}
_ENERGY_J |= {"mWh": 3.6, "Wh": 3.6e3, "kWh": 3.6e6, "MWh": 3.6e9}
_ENERGY_J |= {"j": 1.0, "kj": 1e3, "wh": 3.6e3, "kwh": 3.6e6}
_POWER_W = {"mW": 1e-3, "W": 1.0, "w": 1.0, "kW": 1e3, "kw": 1e3, "MW": 1e6}
_DURATION_S = {"d": 86400.0, "h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
_ABSOLUTE_ZERO_C = -273.15
_FROM_MICRO = ((1e-6, "µ"), (1e-3, "m"), (1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"))
_FROM_ONE = ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"), (1e15, "P"))


def parse_energy_j(text: str) -> float:
    """Joules of ``500J``, ``0.2Wh``, ``2kJ`` or ``300mJ``."""
    return _parsed(text, _ENERGY_J, "an energy", "500J, 2kJ, 300mJ or 0.2Wh")


def parse_power_w(text: str) -> float:
    """Watts of ``8W``, ``7.5 W`` or ``500mW``."""
    return _parsed(text, _POWER_W, "a power", "8W, 7.5W or 500mW")


def parse_temperature_c(text: str) -> float:
    """Degrees Celsius of ``75C`` or ``75 °C``."""
    number, unit = _split(text)
    if number is None or unit not in ("C", "c", "°C", "°c") or not _ABSOLUTE_ZERO_C <= number < math.inf:
        raise _not_understood("a temperature", text, "degrees Celsius, such as 75C")
    return number


def parse_duration_s(text: str) -> float:
    """Seconds of ``30m``, ``1h30m``, ``90s`` or ``250ms``: each part once, from long to short."""
    total, place, smallest = 0.0, 0, math.inf
    text = text.strip()
    while part := _DURATION_PART.match(text, place):
        unit_s = _DURATION_S[part[2]]
        if unit_s >= smallest:
            break
        total, place, smallest = total + float(part[1]) * unit_s, part.end(), unit_s
    if place < len(text) or not text or not math.isfinite(total):
        raise _not_understood("a duration", text, "30m, 1h30m, 90s or 250ms")
    return total


def parse_fraction(text: str) -> float:
    """A share between 0 and 1 of ``20%`` or ``0.2``."""
    number, unit = _split(text)
    if number is None or unit not in ("", "%") or not 0 <= number <= (100 if unit else 1):
        raise _not_understood("a share", text, "20% or 0.2, from 0 to 100%")
    return number / 100 if unit else number


def parse_hours(text: str) -> tuple[int, int]:
    """Minutes since midnight of the beginning and the end of ``22:00-07:00``."""
    found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)\s*-\s*([01]?\d|2[0-3]):([0-5]\d)", text.strip(), re.ASCII)
    begin, end = (60 * int(found[1]) + int(found[2]), 60 * int(found[3]) + int(found[4])) if found else (0, 0)
    if begin == end:
        raise _not_understood("a part of the day", text, "two different times, such as 22:00-07:00")
    return begin, end


def format_energy(j: float | None) -> str:
    """``512 J``, ``1.23 kJ``; None is ``unavailable``, never 0."""
    return _scaled(j, "J", _FROM_MICRO)


def format_power(w: float | None) -> str:
    """``12.3 W``, ``350 mW``; None is ``unavailable``, never 0."""
    return _scaled(w, "W", _FROM_MICRO)


def format_flops(f: float | None) -> str:
    """``33.5 TFLOP``: a number of floating-point operations, not a rate."""
    return _scaled(f, "FLOP", _FROM_ONE)


def format_duration(s: float | None) -> str:
    """``250 ms``, ``12.3 s``, ``1m30s``, ``1h30m``: whole seconds from a minute on."""
    if s is None:
        return "unavailable"
    if not math.isfinite(s) or s < 0:
        return f"{s} s"
    if s < 0.9995:
        return f"{s * 1e3:.3g} ms" if s else "0 s"
    if s < 59.95:
        return f"{s:.3g} s"
    minutes, seconds = divmod(round(s), 60)
    hours, minutes = divmod(minutes, 60)
    return "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (seconds, "s")) if n)


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2 000 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}".replace(",", " ")


def _parsed(text: str, units: Mapping[str, float], kind: str, accepted: str) -> float:
    """A quantity that is not negative, in the unit whose factor is 1."""
    number, unit = _split(text)
    factor = units.get(unit)
    if number is None or factor is None or number < 0 or not math.isfinite(number * factor):
        raise _not_understood(kind, text, accepted)
    return number * factor


def _split(text: str) -> tuple[float | None, str]:
    """The number and the unit of a text, the number None where there is none."""
    found = _QUANTITY.fullmatch(text.strip())
    return (None, "") if found is None else (float(found[1]), found[2].strip())


def _scaled(value: float | None, unit: str, scales: Sequence[tuple[float, str]]) -> str:
    if value is None:
        return "unavailable"
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    rounded = float(f"{value:.3g}")  # before the prefix is chosen, so that 999.9 becomes 1 k
    scale, prefix = next((s for s in reversed(scales) if abs(rounded) >= s[0]), scales[0])
    shown = rounded / scale
    return f"{shown:.0f} {prefix}{unit}" if 1000 <= abs(shown) < 1e9 else f"{shown:.3g} {prefix}{unit}"


def _not_understood(kind: str, text: str, accepted: str) -> UsageError:
    return UsageError(f"{text!r} is not {kind}", fix=f"write {accepted}")
