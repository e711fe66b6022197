"""What a run may be told, where each value came from, and what is known about the device.

A ``Profile`` describes a device (``profiles/*.toml``), ``Settings`` describe a run; each key is declared
once, with its rule. Values come from the profile, then a TOML file, then ``EDGE_SEL_*``, then flags: the last
wins and its origin is kept. All mistakes are reported in one error; an unknown key names the nearest one.
"""

from __future__ import annotations

import difflib
import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from edge_sel.errors import UsageError
from edge_sel.units import parse_duration_s, parse_fraction

METERS = ("jetson", "rapl", "nvml", "battery", "psutil")
PREFIX = "EDGE_SEL_"
RESERVED = frozenset({"EDGE_SEL_SYSFS_ROOT", "EDGE_SEL_CIFAR10"})  # read elsewhere, not settings
_Given = list[tuple[str, Any, str]]  # key or variable, value, origin
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_VIRTUAL = r"kvm|qemu|\bxen\b|vmware|virtual|bochs|amazon ec2|google compute|alibaba|openstack|droplet|vserver"


class Rule(NamedTuple):
    """What one key may be; ``help`` is for the command line, ``parse`` for text in flags and variables."""

    kind: type
    help: str
    low: float = -math.inf
    above: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    optional: bool = False
    parse: Callable[[str], Any] | None = None
    table: str = ""

    def allowed(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return ("a list of " if self.kind is tuple else "one of ") + ", ".join(self.choices)
        if self.kind in (bool, str):
            return "true or false" if self.kind is bool else "some text"
        limits = (("at least", self.low), ("above", self.above), ("at most", self.high))
        bounds = " and ".join(f"{word} {limit:g}" for word, limit in limits if math.isfinite(limit))
        return f"{'a whole number' if self.kind is int else 'a number'} {bounds}" + " or none" * self.optional

    def read(self, value: Any, *, text: bool) -> Any:
        """The value, checked and of its own type, or an exception; ``text`` says that a string is parsed."""
        if self.optional and text and value == "none":
            return None
        if text and isinstance(value, str) and self.kind is not str:
            value = (self.parse or self.kind)(value)
        if (type(value), self.kind) in ((int, float), (list, tuple)):
            value = self.kind(value)
        parts = value if self.kind is tuple else (value,)
        found: type = type(value)
        if found is not self.kind:  # not isinstance: true is no number
            good = False
        elif self.choices:
            good = all(part in self.choices for part in parts) and len(parts) == len(set(parts)) > 0
        elif self.kind is str:
            good = bool(value.strip())
        else:
            good = self.low <= value <= self.high and value > self.above and math.isfinite(value)
        if not good:
            raise ValueError
        return value


def _seconds(text: str) -> float:
    return float(text) if text.strip()[-1:].isdigit() else parse_duration_s(text)


def _key(help: str, default: Any = MISSING, kind: type | None = None, **limits: Any) -> Any:
    return field(default=default, metadata={"rule": Rule(kind or type(default), help, **limits)})


@dataclass(frozen=True)
class Profile:
    """A kind of device: what it draws, how warm it may get, what suits it."""

    name: str
    idle_w: float = _key("watts when nothing runs", kind=float, low=0, table="power")
    max_w: float = _key("watts when every core is busy", kind=float, above=0, table="power")
    meters: tuple[str, ...] = _key("meters to try, in order", METERS, choices=METERS, table="power")
    max_c: float | None = _key("degrees it should not exceed", None, float, above=0, high=150, table="thermal")
    threads: int | None = _key("threads to use, 0 for all", None, int, low=0, table="runtime")
    batch_size: int | None = _key("images in a batch", None, int, low=1, table="runtime")


@dataclass(frozen=True)
class Settings:
    """How to run. The command line takes its options, their help and their limits from these keys."""

    plan: str = _key("what may change, in the order tried", "bn,first")
    epochs: int = _key("epochs in each plan", 3, low=1)
    batch_size: int = _key("images in a batch", 32, low=1)
    learning_rate: float = _key("Adam's step size before the SEL factor", 4e-4, above=0)
    target_rate: float = _key("share of images worth a gradient", 0.5, above=0, high=1, parse=parse_fraction)
    gate: Literal["sundew", "random", "off"] = _key("what picks those images", "sundew")
    significance: Literal["v1", "v101"] = _key("how the gate weighs an image", "v1")
    curriculum: Literal["off", "staged", "cumulative"] = _key("easy images first, alone or kept", "off")
    gamma: float | None = _key("guilt threshold; none: the pack's, 0: update all", None, float, low=0, optional=True)
    guard_fraction: float = _key("share kept to judge by", 0.15, above=0, high=0.9, parse=parse_fraction)
    seed: int = _key("seed of every random choice", 0, low=0)
    threads: int = _key("threads to use, 0 for all", 0, low=0)
    engine: Literal["auto", "ort", "torch"] = _key("what computes", "auto")
    meter: str = _key("what measures energy", "auto", choices=("auto", *METERS))
    require_measured: bool = _key("refuse to run on modelled energy", False, parse=_TRUTH.get)
    new_classes: Literal["strict", "extend"] = _key("classes that the pack lacks", "strict")
    checkpoint_every_s: float = _key("time between checkpoints", 30.0, above=0, parse=_seconds)


def rules(of: type[Settings] | type[Profile]) -> dict[str, Rule]:
    """The rule of every key; those of a profile are named with their table, such as ``power.idle_w``."""
    known: dict[str, Rule] = {}
    for name, hint in get_type_hints(of).items():
        if rule := of.__dataclass_fields__[name].metadata.get("rule"):
            choices = get_args(hint) if get_origin(hint) is Literal else rule.choices
            known[f"{rule.table}.{name}".lstrip(".")] = rule._replace(choices=choices)
    return known


@dataclass(frozen=True)
class Resolved:
    """The settings of a run and, for each, ``default``, ``profile:…``, ``file:…``, ``env:…`` or ``flag``."""

    settings: Settings
    origins: Mapping[str, str]

    def to_json(self) -> dict[str, dict[str, Any]]:
        """``{"epochs": {"value": 5, "origin": "default"}, …}``, to be stored in the run."""
        return {key: {"value": getattr(self.settings, key), "origin": at} for key, at in self.origins.items()}


def resolve(
    *,
    profile: Profile | None = None,
    toml_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Resolved:
    """The settings from all layers, weakest first; a flag that is None was not given."""
    given: _Given = []
    if profile is not None:
        at = f"profile:{profile.name}"
        given += [("threads", profile.threads, at), ("batch_size", profile.batch_size, at)]
    if toml_file is not None:
        given += [(key, value, f"file:{toml_file}") for key, value in _read_toml(toml_file)]
    ours = {name: text for name, text in (environ or {}).items() if name.startswith(PREFIX)}
    given += [(name, text, f"env:{name}") for name, text in ours.items() if name not in RESERVED]
    given += [(key, value, "flag") for key, value in (flags or {}).items()]
    values, origins, mistakes = _sift(given, rules(Settings))
    if mistakes:
        raise UsageError("; ".join(mistakes))
    return Resolved(Settings(**values), {key: origins.get(key, "default") for key in rules(Settings)})


def list_profiles() -> list[str]:
    """The names of the profiles that come with edge-sel."""
    return sorted(path.stem for path in _profiles_folder().glob("*.toml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """A shipped profile by its name, or any other by the path of its TOML file."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if str(path) not in list_profiles():
            near = _nearest(str(path), list_profiles())
            raise UsageError(f"no profile {str(path)!r}: did you mean {near}?", fix="or give a .toml file")
        path = _profiles_folder() / f"{path}.toml"
    at = f"file:{path}"
    given = dict(_read_toml(path))
    values, _, mistakes = _sift([(key, value, at) for key, value in given.items()], rules(Profile))
    mistakes += [f"{key} is missing ({at})" for key in ("power.idle_w", "power.max_w") if key not in given]
    if values.get("power.max_w", math.inf) <= values.get("power.idle_w", -math.inf):
        mistakes.append(f"power.max_w must be above power.idle_w ({at})")
    if mistakes:
        raise UsageError("; ".join(mistakes))
    return Profile(path.stem, **{key.partition(".")[2]: value for key, value in values.items()})


def detect_profile(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> str:
    """The name of the profile that fits this machine; ``root`` stands in for ``/`` in tests."""
    sysfs = Path(environ.get("EDGE_SEL_SYSFS_ROOT") or root / "sys")
    if "Raspberry Pi 5" in _text(root / "proc/device-tree/model"):
        return "raspberry-pi-5"
    if any((sysfs / "class/power_supply").glob("BAT*")):
        return "laptop"
    maker = " ".join(_text(sysfs / "class/dmi/id" / name) for name in ("product_name", "sys_vendor"))
    flag = re.search(r"^flags\b.*\bhypervisor\b", _text(root / "proc/cpuinfo"), re.MULTILINE)
    return "cloud-vm" if flag or re.search(_VIRTUAL, maker, re.IGNORECASE) else "default"


def _sift(given: _Given, known: Mapping[str, Rule]) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The good values, their origins, and a line for each mistake; a later value replaces an earlier one."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    mistakes: list[str] = []
    variables = {f"{PREFIX}{key.upper()}": key for key in known}
    for name, value, origin in given:
        names = variables if origin.startswith("env:") else {key: key for key in known}
        if name not in names:
            mistakes.append(f"{name} is not known ({origin}): did you mean {_nearest(name, names)}?")
        if name not in names or value is None:
            continue
        key = names[name]
        try:
            values[key] = known[key].read(value, text=origin.startswith(("env:", "flag")))
            origins[key] = origin
        except (ValueError, TypeError, LookupError, UsageError):
            mistakes.append(f"{key} = {value!r} ({origin}) must be {known[key].allowed()}")
    return values, origins, mistakes


def _nearest(word: str, words: Iterable[str]) -> str:
    return "".join(difflib.get_close_matches(word, list(words), n=1, cutoff=0.0)) or "nothing"


def _read_toml(path: Path) -> Iterator[tuple[str, Any]]:
    """The keys of a TOML file, those in a table as ``table.key``."""
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        top = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot be read as TOML: {reason}", where=path) from None
    for key, value in top.items():
        if isinstance(value, dict) and value:
            yield from ((f"{key}.{inner}", part) for inner, part in value.items())
        else:
            yield key, value


def _profiles_folder() -> Path:
    package = Path(__file__).parent
    return package / "_profiles" if (package / "_profiles").is_dir() else package.parent / "profiles"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
