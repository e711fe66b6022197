"""Command-line options for every key of ``Settings``; their help and limits stand there, once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from edge_sel.config.schema import schema_of
from edge_sel.config.settings import Settings

_UNIT = re.compile("_[jwcs]$")
"""A key is in its unit; a flag is given with one."""


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add one option per setting; an option that is not given is None and leaves the layers below alone."""
    defaults = Settings()
    for name, spec in reversed(schema_of(Settings).items()):
        flag = f"--{_UNIT.sub('', name).replace('_', '-')}"
        text = f"{spec.help[0].upper()}{spec.help[1:]}. [default: {_shown(getattr(defaults, name))}]"
        if spec.kind is bool:
            option = click.option(flag, name, is_flag=True, default=None, help=text)
        else:
            choices = "|".join(spec.choices) if spec.choices else spec.example or spec.kind.__name__.upper()
            option = click.option(flag, name, metavar=choices, help=text)
        command = option(command)
    return command


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
