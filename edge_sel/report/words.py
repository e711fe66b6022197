"""Figures as the page writes them; what is not known is a dash, never a zero."""

from __future__ import annotations

from typing import Any

from edge_sel.units import format_duration, format_energy, format_flops

NONE = "–"
PHASES = ("train", "backbone", "fit", "score", "evaluate", "load", "checkpoint", "opening", "other", "lost")
"""What a run's joules go into, in the order of the colours."""
ON = ("validation", "test")
"""Sets of images that a model is judged on."""


def percent(value: Any, digits: int = 1) -> str:
    """Of 0..1."""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def points(value: Any) -> str:
    """A difference of shares, in percentage points."""
    return NONE if value is None else f"{100 * value:+.1f} points"


def number(value: Any, digits: int = 3) -> str:
    """With so many digits behind the point."""
    return NONE if value is None else f"{value:.{digits}f}"


def joules(value: Any) -> str:
    """With the fitting unit."""
    return NONE if value is None else format_energy(value)


def seconds(value: Any) -> str:
    """With the fitting unit."""
    return NONE if value is None else format_duration(value)


def flops(tera: Any) -> str:
    """Of 10¹² operations."""
    return NONE if tera is None else format_flops(tera * 1e12)
