"""``manifest.json`` as text: written with a digest, read with every type checked."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from edge_sel.errors import PackError
from edge_sel.pack.manifest import OPTIMIZER_STATE, Int8Info, Manifest

FORMAT = 7
"""Since 2 a plan may have a frozen prefix; format 1 is read as plans without one. Since 3 there is a table of gains,
since 4 there may be artifacts of onnxruntime-training, since 5 plans may tell of attention heads, since 6 the model of
the scale of its head, since 7 of layers that its head reads, and plans of the memory of a step; there may be sums of
the server's features."""


def to_json(manifest: Manifest) -> str:
    """Serialise, with a digest over everything else so that a damaged manifest is noticed too."""
    body = {"format": FORMAT, **asdict(manifest)}
    if not manifest.model.rectified:
        del body["model"]["rectified"]
    # What an older version wrote keeps its digest, and can read this.
    heads = any(plan.heads for plan in manifest.plans.values())
    scaled = manifest.model.head_scale != 1.0
    if not manifest.model.taps:
        del body["model"]["taps"]
        body["format"] = 6
    if not scaled and not manifest.model.taps:
        del body["model"]["head_scale"]
        body["format"] = 5 if heads else 4 if manifest.ort_training else 3 if manifest.gains else 2
    counted = any(plan.step_bytes for plan in manifest.plans.values())
    for plan in body["plans"].values():
        if not heads:
            del plan["heads"]
        if not counted:
            del plan["step_bytes"]
    if counted:
        body["format"] = FORMAT
    if manifest.ort_training is None:
        del body["ort_training"]
    if not manifest.gains:
        del body["gains"]
    return json.dumps({**body, "digest": _digest(body)}, indent=1) + "\n"


def from_json(text: str, where: object) -> Manifest:
    """Parse and check.

    Raises:
        PackError: not JSON, a newer format, a missing key, or a digest that does not match.
    """
    try:
        body = json.loads(text)
        version = body.pop("format")
        if type(version) is not int or version < 1:
            raise ValueError(f"format is {version!r}")
        if version > FORMAT:
            raise PackError(
                f"the pack has format {version}, this edge-sel reads up to {FORMAT}", where=where,
                fix="pip install -U edge-sel",
            )  # fmt: skip
        digest = body.pop("digest")
        if digest != _digest({"format": version, **body}):
            raise PackError("manifest.json is damaged: its digest does not match", where=where, fix="copy it again")
        manifest: Manifest = _typed(Manifest, body, "")
        if manifest.optimizer not in OPTIMIZER_STATE:
            raise ValueError(f"optimizer is {manifest.optimizer!r}")
        for plan in manifest.plans.values():
            if plan.prefix and plan.prefix not in manifest.prefixes:
                raise ValueError(f"plans.{plan.name}.prefix is {plan.prefix!r}")
        for name, prefix in manifest.prefixes.items():
            if prefix.int8 and not _sound(prefix.int8, set(prefix.constants)):
                raise ValueError(f"prefixes.{name}.int8 is {prefix.int8!r}")
        for row in manifest.gains:
            if row.visits < 1 or not math.isfinite(row.excess) or not math.isfinite(row.gain):
                raise ValueError(f"gains holds {row!r}")
        return manifest
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PackError(
            f"manifest.json cannot be read ({type(error).__name__}: {str(error)[:200]})",
            where=where,
            fix="copy the pack again",
        ) from error


def _sound(int8: Int8Info, constants: set[str]) -> bool:
    """Whether the quantized variant is made of the prefix's own weights, and of numbers."""
    for conv in int8.convolutions:
        names = {conv.weight, *conv.norm} | ({conv.bias} if conv.bias else set())
        scale = 1.0 if conv.input_scale is None else conv.input_scale
        if len(conv.norm) not in (0, 4) or not 0 < scale < math.inf or not names <= constants:
            return False
    return set(int8.constants) <= constants


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_hints = cache(get_type_hints)
"""Slow, and asked for each of thousands of plans."""


def _typed(kind: Any, value: Any, key: str) -> Any:
    """``value`` as the annotated type says, lists as tuples.

    Raises:
        ValueError: it is of another type.
        TypeError: a dataclass lacks a key or has one too many.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is UnionType:
        return None if value is None else _typed(arguments[0], value, key)
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_typed(k, v, f"{key}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {name: _typed(arguments[1], v, f"{key}.{name}") for name, v in value.items()}
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        hints = _hints(kind)
        return kind(**{name: _typed(hints.get(name, Any), v, f"{key}.{name}") for name, v in value.items()})
    if type(value) not in ((int, float) if kind is float else (kind,)):
        raise ValueError(f"{key.lstrip('.')} is {value!r}")
    return value
