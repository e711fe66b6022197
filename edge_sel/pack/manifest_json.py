"""``manifest.json``: written with a digest, read by its types and their bounds; then whether it makes sense.

Every name is of something that is there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from edge_sel.arrays import TensorPlace
from edge_sel.errors import PackError
from edge_sel.files import finite
from edge_sel.pack.anchors import ANCHORS
from edge_sel.pack.manifest import (
    DEEP_HEAD,
    EVAL,
    MOST_FEATURES,
    OPTIMIZER_STATE,
    WEIGHTS,
    Int8Info,
    Manifest,
    ModelInfo,
    PlanInfo,
    artifact_files,
)
from edge_sel.pack.plan_kinds import STATISTICS
from edge_sel.pack.sums import SUMS
from edge_sel.schema import SchemaError, checked, parse_json

FORMAT = 8
"""A pack of another one is refused."""
MOST_BYTES = 1 << 30
"""Of a whole pack, unpacked."""
MOST_GRAPH_BYTES = 64 << 20
MOST_GRAPHS = 400
MOST_CLASSES = 100_000


def to_json(manifest: Manifest) -> str:
    """Serialise, with a digest over everything else so that a damaged manifest is noticed too."""
    body = {"format": FORMAT, **asdict(manifest), "provenance": finite(manifest.provenance)}
    return json.dumps({**body, "digest": _digest(body)}, indent=1) + "\n"


def from_json(text: str, where: object) -> Manifest:
    """Parse and check.

    Raises:
        PackError: not JSON, another format, a missing key, or a digest that does not match.
    """
    try:
        body = parse_json(text)
        version = body.pop("format")
        if type(version) is not int or version < 1:
            raise ValueError(f"format is {version!r}")
        if version != FORMAT:
            fix = "pip install -U edge-sel" if version > FORMAT else "export it again"
            raise PackError(f"the pack has format {version}, this edge-sel reads {FORMAT}", where=where, fix=fix)
        digest = body.pop("digest")
        if digest != _digest({"format": FORMAT, **body}):
            raise PackError("manifest.json is damaged: its digest does not match", where=where, fix="copy it again")
        manifest: Manifest = checked(Manifest, body)
        if manifest.optimizer not in OPTIMIZER_STATE:
            raise ValueError(f"optimizer is {manifest.optimizer!r}")
        for plan in manifest.plans.values():
            if plan.backbone and plan.backbone not in manifest.backbones:
                raise ValueError(f"plans.{plan.name}.backbone is {plan.backbone!r}")
        for name, backbone in manifest.backbones.items():
            if backbone.int8 and not _sound(backbone.int8, set(backbone.constants)):
                raise ValueError(f"backbones.{name}.int8 is {backbone.int8!r}")
        return manifest
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        kind = "" if isinstance(error, SchemaError) else f"{type(error).__name__}: "
        what = f"manifest.json cannot be read ({kind}{str(error)[:200]})"
        raise PackError(what, where=where, fix="copy the pack again") from error


def _sound(int8: Int8Info, constants: set[str]) -> bool:
    """Whether the quantized variant is made of the backbone's own weights, and of numbers."""
    for conv in int8.convolutions:
        names = {conv.weight, *conv.norm} | ({conv.bias} if conv.bias else set())
        if len(conv.norm) not in (0, 4) or conv.input_scale == 0 or not names <= constants:
            return False
    return set(int8.constants) <= constants


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_files(manifest: Manifest) -> None:
    """That the listed files are those of the format, inside of the pack, and not too large.

    Raises:
        ValueError: they are not; one line.
    """
    for name, info in manifest.files.items():
        if PurePosixPath(name).name != name or name in ("", "..", ".") or "\\" in name or not name.isprintable():
            raise ValueError(f"the manifest names a file outside the pack ({name})")
        if not 0 <= info.bytes <= (MOST_GRAPH_BYTES if name.endswith(".onnx") else MOST_BYTES):
            raise ValueError(f"{name} would be of {info.bytes} bytes")
    if sum(info.bytes for info in manifest.files.values()) > MOST_BYTES:
        raise ValueError(f"it would take more than {MOST_BYTES >> 20} MB")
    artifacts = manifest.ort_training.parameters if manifest.ort_training else {}
    checkpoints = {artifact_files(plan).checkpoint for plan in artifacts}
    named = [*graph_files(manifest), *(file for plan in artifacts for file in artifact_files(plan)[:3])]
    graphs = set(named)
    if len(graphs) < len(named) or len(named) > MOST_GRAPHS or len(manifest.files) > 2 * MOST_GRAPHS:
        raise ValueError("the manifest names a graph twice, or too many")
    missing = sorted({WEIGHTS, *graphs, *checkpoints} - manifest.files.keys())
    if missing:
        raise ValueError(f"the manifest does not list {', '.join(missing)}")
    known = {WEIGHTS, ANCHORS, SUMS, *checkpoints}
    foreign = sorted(name for name in manifest.files.keys() - known if not name.endswith(".onnx"))
    if foreign:  # a graph that no plan uses is never loaded
        raise ValueError(f"the manifest lists {foreign[0]}, which is no file of a pack")
    if not all(name.endswith(".onnx") for name in graphs):
        raise ValueError("a plan's graph is not an .onnx file")


def graph_files(manifest: Manifest) -> Iterable[str]:
    """The graphs that the plans and the backbones name."""
    yield EVAL
    for plan in manifest.plans.values():
        yield from (plan.train, plan.score)
    for backbone in manifest.used_backbones():
        yield from (backbone.graph, backbone.int8.graph) if backbone.int8 else (backbone.graph,)


def check_content(manifest: Manifest, weights: Mapping[str, TensorPlace]) -> None:
    """That what the manifest says of model, plans and backbones fits together, and the weights.

    Raises:
        ValueError: it does not; one line.
    """
    _check_model(manifest.model, weights)
    calibration, classes = manifest.calibration, manifest.model.classes
    _require(len(calibration.embarrassment) == len(classes) and calibration.difficulty, "calibration")
    for key, plan in manifest.plans.items():
        _check_plan(key, plan, weights)
    for name, parameters in (manifest.ort_training.parameters if manifest.ort_training else {}).items():
        trained = manifest.plans[name].trainable if name in manifest.plans else ("",)
        _require(set(trained) <= set(parameters) <= weights.keys(), f"the artifacts of plan {name}")
    for name, backbone in manifest.backbones.items():
        int8 = backbone.int8.convolutions if backbone.int8 else ()
        known = all(conv.weight in weights for conv in int8)
        _require(known and backbone.shape and math.prod(backbone.shape) <= MOST_FEATURES, f"backbone {name}")


def _check_model(model: ModelInfo, weights: Mapping[str, TensorPlace]) -> None:
    classes = model.classes
    _require(1 <= len(classes) <= MOST_CLASSES and len(set(classes)) == len(classes), "the number of classes")
    _require(all(name and name.isprintable() and len(name) <= 256 for name in classes), "a class's name")
    _require(model.name.isprintable() and len(model.name) <= 256, "the model's name")
    _require(len(model.mean) == len(model.std) == 3, "mean or std")
    _require(min(model.std) > 0, "std")
    _require(model.parameters <= sum(math.prod(place.shape) for place in weights.values()), "parameters")
    deep = weights[f"{DEEP_HEAD}.weight"].shape if f"{DEEP_HEAD}.weight" in model.head else (len(classes), 0)
    sound = all(tap.name.isprintable() for tap in model.taps)
    fits = not model.taps or deep == (len(classes), sum(tap.features for tap in model.taps))
    _require(sound and fits, "the taps")
    _require(model.head and set(model.head) <= weights.keys(), "the head")
    heads = [weights[name] for name in model.head]
    _require(all(place.kind.str == "<f4" and len(classes) in place.shape for place in heads), "the head's shape")


def _check_plan(key: str, plan: PlanInfo, weights: Mapping[str, TensorPlace]) -> None:
    names = (*plan.trainable, *plan.buffers)
    _require(key == plan.name and key.isprintable() and len(key) <= 64, "a plan's name")
    _require(len(set(names)) == len(names) and set(names) <= weights.keys(), f"what plan {key} trains")
    _require(all(weights[name].kind.str == "<f4" for name in names), f"what plan {key} trains")
    _require(bool(plan.trainable) == (plan.kind.trained_by != STATISTICS), f"what plan {key} trains")
    _require(plan.bn_mode in ("batch", "frozen"), f"bn_mode of plan {key}")
    for name, count in plan.channels.items():
        limited = name in plan.trainable and weights[name].shape and 1 <= count <= weights[name].shape[0]
        _require(limited, f"the channels of plan {key}")
    for name, heads in plan.heads.items():
        shape = weights[name].shape if name in plan.trainable else ()
        _require(len(shape) == 2 and heads >= 1 and shape[0] % (3 * heads) == 0, f"the heads of plan {key}")


def _require(holds: object, what: str) -> None:
    if not holds:
        raise ValueError(f"the manifest is wrong about {what}")
