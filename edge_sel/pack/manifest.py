"""``manifest.json``: what a pack holds and how each file must hash."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from edge_sel.errors import PackError

FORMAT = 2
"""Since 2 a plan may have a frozen prefix; format 1 is read as plans without one."""

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
EVAL = "eval.onnx"
OPTIMIZER_STATE = {"sgd": ("momentum",), "adam": ("m", "v")}
"""Per optimizer, the state tensors that accompany each trained weight."""


@dataclass(frozen=True)
class ModelInfo:
    """The classifier: its builder's name, class names in label order, and input geometry."""

    name: str
    parameters: int
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head: tuple[str, ...]
    flip: bool = False
    """Whether a mirrored image keeps its class."""


@dataclass(frozen=True)
class PlanInfo:
    """One compiled update plan.

    ``flops_forward`` and ``flops_train`` count 2 operations per multiply-add of every Conv, ConvTranspose, Gemm and
    MatMul in the graph, per image. With a ``prefix`` both graphs begin at its features, and so do their counts.
    """

    name: str
    trainable: tuple[str, ...]
    buffers: tuple[str, ...]
    bn_mode: str
    channels: dict[str, int]
    train: str
    score: str
    flops_train: int
    flops_forward: int
    prefix: str = ""
    """Which of the manifest's prefixes; none where the graphs begin at the image."""


IMAGE_GRID = ("image::scale", "image::zero")
"""Initializers of an int8 prefix: what one step of its image is worth, and which step is zero."""


def grid(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of 0 … 255 from ``low`` to ``high``, with the number zero exactly on a step."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    scale = scale if scale > 1e-30 else 1.0
    return scale, min(max(round(-low / scale), 0), 255)


@dataclass(frozen=True)
class Int8Conv:
    """A convolution of an int8 prefix, whose integers the device computes.

    Attributes:
        name: of its output; what is supplied is named after it.
        weight: name of the weights, ``bias`` of the bias, if any.
        norm: names of the scale, shift, mean and variance that are folded in, if any, with their ``epsilon``.
        input_scale: of one step of its input; None where that is the image, whose range the device knows.
    """

    name: str
    weight: str
    bias: str
    norm: tuple[str, ...]
    epsilon: float
    input_scale: float | None

    @property
    def supplied(self) -> tuple[str, str, str]:
        """Initializers of the graph: int8 weights, their scales, int32 biases."""
        return f"{self.name}::weight", f"{self.name}::scale", f"{self.name}::bias"


@dataclass(frozen=True)
class Int8Info:
    """The int8 twin of a prefix, whose integers and whose image's grid, ``IMAGE_GRID``, the device computes.

    Attributes:
        graph: its file, without the weights.
        relative_error: of the features, on the server's calibration images.
        convolutions: in the order of the graph.
        constants: weights that it takes as they are, behind its last convolution.
    """

    graph: str
    relative_error: float
    convolutions: tuple[Int8Conv, ...]
    constants: tuple[str, ...] = ()


@dataclass(frozen=True)
class PrefixInfo:
    """The frozen part of the forward pass that one or several plans share.

    Attributes:
        graph: its file, image in, features out.
        shape: of one image's features.
        constants: initializers that the features depend on, the exporter's own among them.
        flops: of the prefix per image, counted as those of the plans are.
        int8: the same in integers, where the features agree.
    """

    graph: str
    shape: tuple[int, ...]
    constants: tuple[str, ...]
    flops: int
    int8: Int8Info | None = None


@dataclass(frozen=True)
class Calibration:
    """Measured by the server on clean images.

    Attributes:
        gamma: guilt threshold, the ``gamma_percentile`` of |gradient|.
        difficulty: the 0, 10 … 100 % quantiles of the per-image loss.
        embarrassment: E_c of each class at T = 1.5; ``None`` for a class without images.
        accuracy: share of the calibration images classified correctly.
        images: how many images were used.
    """

    gamma: float
    gamma_percentile: float
    difficulty: tuple[float, ...]
    embarrassment: tuple[float | None, ...]
    accuracy: float
    images: int


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and sha256 of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The whole manifest; field names are the JSON keys."""

    model: ModelInfo
    optimizer: str
    calibration: Calibration
    plans: dict[str, PlanInfo]
    files: dict[str, FileInfo]
    prefixes: dict[str, PrefixInfo] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    opset: int = 18
    ir_version: int = 9


def to_json(manifest: Manifest) -> str:
    """Serialise, with a digest over everything else so that a damaged manifest is noticed too."""
    body = {"format": FORMAT, **asdict(manifest)}
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
        return manifest
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PackError(
            f"manifest.json cannot be read ({type(error).__name__}: {error})",
            where=where,
            fix="copy the pack again",
        ) from error


def _sound(int8: Int8Info, constants: set[str]) -> bool:
    """Whether the twin is made of the prefix's own weights, and of numbers."""
    for conv in int8.convolutions:
        names = {conv.weight, *conv.norm} | ({conv.bias} if conv.bias else set())
        scale = 1.0 if conv.input_scale is None else conv.input_scale
        if len(conv.norm) not in (0, 4) or not 0 < scale < math.inf or not names <= constants:
            return False
    return set(int8.constants) <= constants


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


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
        hints = get_type_hints(kind)
        return kind(**{name: _typed(hints.get(name, Any), v, f"{key}.{name}") for name, v in value.items()})
    if type(value) not in ((int, float) if kind is float else (kind,)):
        raise ValueError(f"{key.lstrip('.')} is {value!r}")
    return value
