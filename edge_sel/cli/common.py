"""What several commands share: options, how they open a pack, a profile and images, how they print."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge_sel.config.schema import KeySpec, schema_of, shown
from edge_sel.config.settings import MAX_SEED, Settings, resolve_one
from edge_sel.errors import SetupError, UsageError
from edge_sel.files import open_no_link

if TYPE_CHECKING:  # these take long to import, and `--help` does without them
    from edge_sel.config.profiles import Profile
    from edge_sel.edge.open import RunImages
    from edge_sel.pack.keys import TrustedKeys
    from edge_sel.pack.reader import Pack

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


def open_profile(asked: str | None) -> Profile:
    """The device profile that was asked for, or the one that fits this machine."""
    from edge_sel.config.profiles import detect_profile, load_profile

    return load_profile(detect_profile() if asked is None else asked)


def trusted_keys(files: Sequence[str] | None) -> TrustedKeys | None:
    """The public keys of which one must have signed what is opened; None where none is required."""
    from edge_sel.pack.keys import read_trusted_keys

    return None if files is None else read_trusted_keys(files)


def required_keys(flag: tuple[str, ...] | None) -> TrustedKeys | None:
    """The same for a command with ``require_signature_option``."""
    return trusted_keys(resolve_one("require_signature", os.environ, flag))


def open_pack_or_builtin(path: Path | None, trusted: TrustedKeys | None = None) -> Pack:
    """The pack, or the built-in one on handwritten digits."""
    from edge_sel.pack.builtin import builtin_pack
    from edge_sel.pack.reader import open_pack

    return builtin_pack(trusted) if path is None else open_pack(path, trusted)


def load_images(pack: Pack, data: Path | None, test: Path | None, settings: Settings) -> RunImages:
    """The device's images and the test images, if there are any; without ``data`` the built-in digits."""
    from edge_sel.data.folder import load_folder
    from edge_sel.edge.open import RunImages

    model = pack.manifest.model
    tested = None
    if data is None:
        from edge_sel.data.builtin import load_digits
        from edge_sel.data.shifts import apply_shift

        images = apply_shift("field_camera", load_digits("field"), seed=0)
        if test is None:
            tested = apply_shift("field_camera", load_digits("test"), seed=0)
    else:
        images = load_folder(
            data, model.image_size, classes=model.classes, new_classes=settings.new_classes,
            max_pixels=settings.max_pixels,
        )  # fmt: skip
    if test is not None:
        tested = load_folder(test, model.image_size, classes=images.classes, max_pixels=settings.max_pixels)
    source = "built-in handwritten digits, re-lit as by a field camera" if data is None else str(data)
    return RunImages(images, tested, source)


def check_images(pack: Pack, data: Path | None, test: Path | None) -> None:
    """Look whether the folders of images can be used at all, before anything is made or measured.

    Raises:
        DataError: one of them is not a folder of class folders.
    """
    from edge_sel.data.listing import list_images

    for root in (data, test):
        if root is not None:
            list_images(root, pack.manifest.model.classes)


def prepare_out(out: Path) -> None:
    """Make the run's folder, or say at once why that will not work.

    Raises:
        UsageError: it is a file.
        SetupError: it cannot be made or written to.
    """
    try:
        if out.exists() and not out.is_dir():
            raise UsageError("--out is a file", where=out, fix="name a folder")
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".edge-sel-write-test"
        open_no_link(probe, "wb").close()
        probe.unlink()
    except OSError as error:
        raise SetupError(
            f"cannot write to --out ({error.strerror})", where=out, fix="choose a folder you may write to"
        ) from error


def echo_json(content: Mapping[str, Any]) -> None:
    """One JSON object, and nothing else, on stdout; what is no number is null."""
    from edge_sel.runs.tables import finite

    click.echo(json.dumps(finite(dict(content))))
