"""What several commands share: options, and how they print."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge_sel.config.schema import KeySpec, schema_of, shown
from edge_sel.config.settings import MAX_SEED, Settings, resolve_one
from edge_sel.errors import SetupError, escaped

if TYPE_CHECKING:  # these take long to import, and `--help` does without them
    from edge_sel.pack.signatures import TrustedKeys

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
profile_option = click.option(
    "--profile", help="Device profile: one of `edge-sel profiles`, or a .toml file. [default: detected]"
)


class GivenPath(click.Path):
    """A path that is not empty: an empty one, as of a variable that is not set, would mean the working directory."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(path_type=Path, **limits)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or an error."""
        if value == "":
            self.fail("it is empty: name a file or a folder", param, ctx)
        return super().convert(value, param, ctx)


class FiniteRange(click.FloatRange):
    """Numbers within limits; neither infinity nor what is no number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or an error."""
        number = super().convert(value, param, ctx)
        if number is not None and not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class _Pixels(click.ParamType):  # type: ignore[type-arg]  # generic only in newer clicks
    name = "25M"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        spec = schema_of(Settings)["max_pixels"]
        try:
            return int(spec.read(value, text=True))
        except (ValueError, OverflowError):
            self.fail(f"{shown(value)} must be {spec.allowed()}", param, ctx)


max_pixels_option = click.option(
    "--max-pixels", default=Settings.max_pixels, show_default=True, type=_Pixels(),
    help="Largest image to decode; larger ones are skipped.",
)  # fmt: skip
SEED = click.IntRange(0, MAX_SEED)
LONGEST_S = 3600.0
"""Seconds; longer measuring is a slip of the keyboard."""

_UNIT = re.compile("_[jwcs]$")
"""A key is in its unit; a flag is given with one."""


def settings_options(command: Command) -> Command:
    """Add one option per setting; an option that is not given is None and leaves the layers below alone.

    Their help and limits stand in ``Settings``, once.
    """
    defaults = Settings()
    for name, spec in reversed(schema_of(Settings).items()):
        command = _setting_option(name, spec, getattr(defaults, name))(command)
    return command


def _setting_option(name: str, spec: KeySpec, default: Any) -> Callable[[Command], Command]:
    flag = f"--{_UNIT.sub('', name).replace('_', '-')}"
    text = f"{spec.help[0].upper()}{spec.help[1:]}. [default: {'none' if default is None else default}]"
    if spec.kind is bool:
        return click.option(flag, name, is_flag=True, default=None, help=text)
    choices = "|".join(spec.choices) if spec.choices else spec.example or spec.kind.__name__.upper()
    if spec.kind is tuple:
        return click.option(flag, name, metavar=choices, help=text, multiple=True, callback=_none_if_empty)
    return click.option(flag, name, metavar=choices, help=text)


def _none_if_empty(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...] | None:
    """An option that was not given leaves the layers below alone."""
    return value or None


require_signature_option = _setting_option("require_signature", schema_of(Settings)["require_signature"], None)
"""For commands that open a pack but take no other settings."""


def require_server_extra(command: str, *packages: str) -> None:
    """Raise SetupError, naming the pip command, when these packages of the server extra are missing; none: all."""
    missing = [name for name in packages or ("torch", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(f"`edge-sel {command}` needs {' and '.join(missing)}", fix="pip install 'edge-sel[server]'")


def required_keys(flag: tuple[str, ...] | None) -> TrustedKeys | None:
    """The same for a command with ``require_signature_option``."""
    from edge_sel.api.inputs import trusted_keys

    return trusted_keys(resolve_one("require_signature", os.environ, flag))


def say(text: str, err: bool = False) -> None:
    """Print one line for people; what is neither JSON nor CSV is printed here or by ``plain_console``.

    Names come from files that anybody may have made: control characters are shown, not obeyed.
    """
    click.echo(escaped(text), err=err)


def echo_json(content: Mapping[str, Any]) -> None:
    """One JSON object, and nothing else, on stdout; what is no number is null."""
    from edge_sel.files import finite

    click.echo(json.dumps(finite(dict(content))))
