"""What a run may be told, and where each value came from.

Each key is declared once, with its spec. Values come from the profile, then from what ``edge-sel tune`` measured, then
a TOML file, then ``EDGE_SEL_*``, then flags: the last wins and its origin is kept.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge_sel import units
from edge_sel.config.profiles import MAX_BATCH, MAX_THREADS, METERS, Profile
from edge_sel.config.schema import ENV_PREFIX, GivenValues, key, read_toml, schema_of, validate
from edge_sel.errors import UsageError

MAX_SEED = 2**32 - 1
RESERVED = frozenset({"EDGE_SEL_SYSFS_ROOT", "EDGE_SEL_CIFAR10", "EDGE_SEL_TOKEN"})  # read elsewhere, not settings
_MAX_MB = 1_000_000_000
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _seconds(text: str) -> float:
    return float(text) if text.strip()[-1:].isdigit() else units.parse_duration_s(text)


def _pixels(text: str) -> int:
    return round(1e6 * float(text[:-1])) if text.endswith("M") else int(text)


def _paths(text: str) -> tuple[str, ...]:
    return tuple(text.split(os.pathsep))


def _limit(help: str, parse: Callable[[str], Any], example: str, kind: type = float, high: float = math.inf) -> Any:
    return key(help, None, kind, above=0, high=high, optional=True, parse=parse, example=example)


@dataclass(frozen=True)
class Settings:
    """How to run. The command line takes its options, their help and their limits from these keys."""

    plan: str = key("plans (which weights change), in this order; auto: those worth their energy", "auto")
    epochs: int = key("epochs in each named plan", 3, low=1, high=1_000_000)
    min_gain_per_kj: float = key(
        "accuracy points that a kilojoule must bring under --plan auto; 0: train as long as it helps",
        10.0, low=0, example="10",
    )  # fmt: skip
    target_accuracy: float | None = key(
        "validation accuracy that is good enough under --plan auto",
        None, float, above=0, high=1, optional=True, parse=units.parse_fraction, example="90%",
    )  # fmt: skip
    batch_size: int = key("images in a batch", 32, low=1, high=MAX_BATCH)
    learning_rate: float | None = key(
        "step size before the SEL factor; none: the plan's own", None, float, above=0, optional=True
    )
    target_rate: float = key(
        "target share of images that get a gradient", 0.5, above=0, high=1, parse=units.parse_fraction
    )
    gate: Literal["sundew", "hard", "random", "off"] = key("how the images that get a gradient are selected", "sundew")
    significance: Literal["v1", "v101"] = key("formula of the gate's significance score", "v1")
    curriculum: Literal["off", "staged", "cumulative"] = key(
        "easy images first: each group alone (staged), or added to those before it (cumulative)", "off"
    )
    gamma: float | None = key(
        "threshold of guilt (gradient size) below which weights stay; none: the pack's, 0: update all",
        None,
        float,
        low=0,
        optional=True,
    )
    validation_fraction: float = key(
        "share of images held out for validation", 0.15, above=0, high=0.9, parse=units.parse_fraction
    )
    evidence_level: float = key(
        "confidence that the new model is better, required before it replaces the old one",
        0.9, low=0.5, high=0.999, parse=units.parse_fraction, example="90%",
    )  # fmt: skip
    forget: float = key(
        "share of what the old model knew of the server's images that a new one may lose and still replace it",
        0.33, low=0, high=1, parse=units.parse_fraction, example="20%",
    )  # fmt: skip
    drop_suspicious: bool = key("leave out training images whose labels look wrong", False, parse=_TRUTH.get)
    keep_duplicates: bool = key("keep copies, and further frames of a scene, among the images", False, parse=_TRUTH.get)
    seed: int = key("seed of every random choice", 0, low=0, high=MAX_SEED)
    threads: int = key("threads to use, 0 for all", 0, low=0, high=MAX_THREADS)
    spinning: bool = key("let idle threads spin instead of sleeping", False, parse=_TRUTH.get)
    engine: Literal["auto", "ort", "ort-training", "torch"] = key("runtime that computes", "auto")
    device: Literal["auto", "cpu", "cuda"] = key("where it computes; auto: on a GPU if one works", "auto")
    meter: str = key("energy meter", "auto", choices=("auto", *METERS))
    require_measured: bool = key("refuse to run if energy can only be modelled", False, parse=_TRUTH.get)
    feature_cache_mb: int = key("memory for the cached features of a frozen backbone, in MB", 64, low=0, high=_MAX_MB)
    feature_cache_disk_mb: int = key(
        "disk space for cached features that do not fit in memory, in MB", 2048, low=0, high=_MAX_MB
    )
    feature_store: str = key(
        "folder where features are kept for later runs; auto: the user's cache, off: nowhere",
        "auto",
        example="/data/features",
    )
    feature_store_mb: int = key("disk space for it, in MB; the least recently used go first", 512, low=1, high=_MAX_MB)
    backbone_precision: Literal["auto", "fp32", "int8"] = key(
        "precision of a frozen backbone; auto: int8 if it is faster and agrees with fp32", "auto"
    )
    max_pixels: int = key(
        "largest image to decode, in pixels; a JPEG counts as it is decoded",
        25_000_000, low=1, high=1_000_000_000, parse=_pixels, example="25M",
    )  # fmt: skip
    require_signature: tuple[str, ...] | None = key(
        "public key file (PEM) that must have signed the pack; with several, any one of them",
        None, tuple, parse=_paths, example="release.pub.pem",
    )  # fmt: skip
    new_classes: Literal["strict", "extend"] = key(
        "classes of the images that the pack lacks: an error (strict), or added to the model (extend)", "strict"
    )
    checkpoint_every_s: float = key("seconds between checkpoints", 30.0, above=0, parse=_seconds)
    energy_budget_j: float | None = _limit(
        "stop before the run takes more gross energy than this", units.parse_energy_j, "500J"
    )
    max_temp_c: float | None = _limit(
        "highest temperature; the run pauses before it", units.parse_temperature_c, "75C", high=150
    )
    battery_floor: float | None = _limit("stop at this battery charge", units.parse_fraction, "20%", high=1)
    deadline_s: float | None = _limit(
        "stop early enough that everything is written within this time", units.parse_duration_s, "30m"
    )
    power_cap_w: float | None = _limit("highest average power; the run pauses to keep it", units.parse_power_w, "8W")
    on_ac_only: bool = key("pause while the device runs on battery", False, parse=_TRUTH.get)
    quiet_hours: str | None = _limit("pause during these local hours", units.parse_hours, "22:00-07:00", str)


@dataclass(frozen=True)
class Resolved:
    """The settings of a run and, for each, ``default``, ``profile:…``, ``tuned``, ``file:…``, ``env:…`` or ``flag``."""

    settings: Settings
    origins: Mapping[str, str]

    def to_json(self) -> dict[str, dict[str, Any]]:
        """``{"epochs": {"value": 5, "origin": "default"}, …}``, to be stored in the run."""
        return {name: {"value": getattr(self.settings, name), "origin": at} for name, at in self.origins.items()}


def resolve_one(name: str, environ: Mapping[str, str], flag: Any) -> Any:
    """One setting, for a command that takes no others: from its flag, else its environment variable, else None.

    Raises:
        UsageError: it is not what it must be.
    """
    variable = f"{ENV_PREFIX}{name.upper()}"
    given: GivenValues = [(variable, environ.get(variable), f"env:{variable}"), (name, flag, "flag")]
    values, _, mistakes = validate(given, {name: schema_of(Settings)[name]})
    if mistakes:
        raise UsageError("; ".join(mistakes))
    return values.get(name)


def resolve(
    *,
    profile: Profile | None = None,
    tuned: Mapping[str, Any] | None = None,
    toml_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Resolved:
    """The settings from all layers, weakest first; a flag that is None was not given."""
    given: GivenValues = []
    if profile is not None:
        at = f"profile:{profile.name}"
        given += [("threads", profile.threads, at), ("batch_size", profile.batch_size, at)]
        given.append(("max_temp_c", profile.max_c, at))
    given += [(name, value, "tuned") for name, value in (tuned or {}).items()]
    if toml_file is not None:
        given += [(name, value, f"file:{toml_file}") for name, value in read_toml(toml_file)]
    ours = {name: text for name, text in (environ or {}).items() if name.startswith(ENV_PREFIX)}
    given += [(name, text, f"env:{name}") for name, text in ours.items() if name not in RESERVED]
    given += [(name, value, "flag") for name, value in (flags or {}).items()]
    values, origins, mistakes = validate(given, schema_of(Settings))
    if mistakes:
        raise UsageError("; ".join(mistakes))
    return Resolved(Settings(**values), {name: origins.get(name, "default") for name in schema_of(Settings)})
