"""Open a pack: a folder or one ``.edgepack`` file. Every byte is hashed before it is used; nothing is executed.

A hash says that a pack is whole, not who made it: what it holds is checked against a closed description too. Who made
it is checked where a signature is required, before anything else is read.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edge_sel.arrays import Arrays, TensorPlace, not_finite, read_tensors, tensor_bytes, tensor_places
from edge_sel.errors import BadInputError, PackError, UsageError
from edge_sel.pack.anchors import ANCHORS, Anchors, read_anchors
from edge_sel.pack.container import PackFolder, PackZip, open_container
from edge_sel.pack.graph_check import check_graphs
from edge_sel.pack.manifest import (
    EVAL,
    MANIFEST,
    WEIGHTS,
    BackboneInfo,
    Manifest,
    ModelInfo,
    PlanInfo,
    artifact_files,
    closed_form_flops,
    file_info,
)
from edge_sel.pack.manifest_json import check_content, check_files, from_json, graph_files, to_json
from edge_sel.pack.plan_kinds import CLOSED, RIDGE, plan_kind
from edge_sel.pack.signatures import MOST_SIGNATURES_BYTES, SIGNATURES, Signers, TrustedKeys, find_signers
from edge_sel.pack.sums import SUMS, ServerSums, read_sums, write_sums
from edge_sel.version import __version__

MOST_MANIFEST_BYTES = 4 << 20


class LinearHead(NamedTuple):
    """Logits are ``scale`` times the sum of ``W φ + b`` over the layers, each of its own part of the features φ.

    Attributes:
        names: weight [C, F] or [C, F, 1, 1] and bias [C] of each layer, one after the other.
        scale: ½ for a mean of two layers, 1 for a single one.
    """

    names: tuple[str, ...]
    scale: float = 1.0

    def joined(self, weights: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Weight [C, ΣF] and bias [C] of the one layer that makes the same logits."""
        parts = [weights[name].reshape(len(weights[name]), -1) for name in self.names[::2]]
        bias = np.sum([weights[name] for name in self.names[1::2]], axis=0)
        return np.concatenate(parts, 1) * np.float32(self.scale), bias * np.float32(self.scale)

    def parted(self, weight: np.ndarray, bias: np.ndarray, like: Mapping[str, np.ndarray]) -> Arrays:
        """Tensors by name, shaped as those of ``like``, that make the logits of the one layer."""
        starts = np.cumsum([0, *(like[name][0].size for name in self.names[::2])])
        scale, layers = np.float32(self.scale), np.float32(len(self.names) // 2)
        parts = {}
        for name, start, end in zip(self.names[::2], starts[:-1], starts[1:], strict=True):
            parts[name] = np.ascontiguousarray(weight[:, start:end] / scale).reshape(len(weight), *like[name].shape[1:])
        return {**parts, **dict.fromkeys(self.names[1::2], bias / (scale * layers))}


class Pack:
    """A verified pack.

    Attributes:
        path: where it was opened.
        manifest: its parsed manifest.
        signers: who signed it, if anybody did.
        begun_from: where its weights are from, if not from the server; see ``with_weights``.
        exported: then the pack as the server made it; else None.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        content: Mapping[str, bytes],
        signers: Signers | None = None,
        begun_from: str | None = None,
        exported: Pack | None = None,
    ) -> None:
        self.path = path
        self.begun_from, self.exported = begun_from, exported
        self.manifest = manifest
        self.signers = signers
        self._content = content

    def with_manifest(self, manifest: Manifest, more: Mapping[str, bytes] | None = None) -> Pack:
        """The same files, and more, under another manifest, such as one with fewer plans; nothing is verified."""
        content = {**self._content, **(more or {})}
        return Pack(self.path, manifest, content, self.signers, self.begun_from, self.exported)

    def with_weights(
        self, weights: Mapping[str, np.ndarray], classes: Sequence[str] = (), begun_from: str = "memory"
    ) -> Pack:
        """The pack as if it had been exported with these weights and classes, with a digest of its own.

        The server's sums of features stay where the body is the pack's, its anchors in any case. Graphs, calibration
        and signatures are the pack's: whoever signed it did not sign the weights. Artifacts of onnxruntime-training go
        where classes were added: they are of the old shapes.

        Args:
            weights: every one, and every running statistic, of the pack's types; the head may have more classes.
            classes: those of the pack, then others; by default the pack's.
            begun_from: where the weights are from, for people.

        Raises:
            BadInputError: they are another model's, or not finite.
        """
        manifest, old = self.manifest, self.weights()
        known, classes = len(manifest.model.classes), tuple(classes) or manifest.model.classes
        if wrong := _unlike(weights, old, manifest.model, len(classes)):
            fix = "name a run of this pack"
            raise BadInputError(f"the weights to begin with are another model's: {wrong}", where=begun_from, fix=fix)
        content, changed = dict(self._content), {WEIGHTS: tensor_bytes(weights)}
        same_body = all(np.array_equal(weights[name], old[name]) for name in old if name not in manifest.model.head)
        if self.sums is None or not same_body:
            content.pop(SUMS, None)
        elif len(classes) > known:
            changed[SUMS] = write_sums(self.sums.with_classes(len(classes)))
        official = manifest.ort_training if len(classes) == known else None
        for plan in manifest.ort_training.parameters if manifest.ort_training and not official else ():
            for file in artifact_files(plan):
                del content[file]
        files = {name: info for name, info in manifest.files.items() if name in content}
        files |= {name: file_info(of) for name, of in changed.items()}
        unseen = (None,) * (len(classes) - known)
        calibration = replace(manifest.calibration, embarrassment=(*manifest.calibration.embarrassment, *unseen))
        grown = sum(value.size for value in weights.values()) - sum(value.size for value in old.values())
        model = replace(manifest.model, classes=classes, parameters=manifest.model.parameters + grown)
        manifest = replace(manifest, files=files, model=model, calibration=calibration, ort_training=official)
        return Pack(self.path, manifest, {**content, **changed}, self.signers, begun_from, self.exported or self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write it as a new pack, which nobody has signed; one with weights of a run (``with_weights``) too.

        What the server measured stays as it was measured: calibration, parity, gains, which anchors its model knew.
        Which images the weights have learnt is not told: a device that goes on by itself begins with its run
        (``weights=``, ``--from``), which tells that.

        Args:
            path: ending in ``.edgepack`` it becomes one file, any other a folder. A pack that is there is replaced.

        Raises:
            UsageError: something else than a pack is there.
            SetupError: it cannot be written.
        """
        import onnx  # takes long

        from edge_sel.pack.writer import write_pack

        manifest, provenance = self.manifest, self.manifest.provenance
        ours = {*graph_files(manifest)}
        graphs = {name: onnx.load_model_from_string(self._content[name]) for name in manifest.files if name in ours}
        others = {name: self._content[name] for name in manifest.files if name not in {WEIGHTS, *ours}}
        if self.begun_from is not None:
            provenance = {**provenance, "weights_of": {"begun_from": self.begun_from, "edge_sel": __version__}}
        write_pack(Path(path), replace(manifest, provenance=provenance), self.weights(), graphs, others)

    @property
    def files(self) -> Mapping[str, bytes]:
        """Every file as it was read, the manifest and the signatures too."""
        return self._content

    @property
    def eval_graph(self) -> bytes:
        """The inference graph, weights external, head as inputs."""
        return self._content[EVAL]

    def graph(self, file: str) -> bytes:
        """The bytes of the graph of a plan or of a backbone, or of an artifact."""
        return self._content[file]

    def plan(self, name: str) -> PlanInfo:
        """The named plan; UsageError listing the pack's plans when there is none."""
        if name not in self.plan_names:
            raise UsageError(
                f"the pack has no plan {name}", where=self.path, fix=f"one of {', '.join(self.plan_names)}"
            )
        if plan_kind(name).needs_features:
            return self._closed_form_plan(name)
        return self.manifest.plans[name]

    @property
    def plan_names(self) -> tuple[str, ...]:
        """Of every plan: those in the manifest, and those in closed form where only the head follows the features."""
        plans = self.manifest.plans
        head, bn = plans.get("head"), plans.get("bn")
        shape = self.manifest.backbones[head.backbone].shape if head is not None and head.backbone else ()
        vector = len(shape) == 1 and self._head_takes(shape[0])
        closed_form = [RIDGE] if vector else []
        if vector and bn is not None and bn.buffers:
            closed_form.append(CLOSED)
        return (*plans, *closed_form)

    def _head_takes(self, width: int) -> bool:
        """Whether the head is linear in a vector of this many features, with a bias in each of its layers."""
        model = self.manifest.model
        shapes = [self._places[name].shape for name in model.head]
        if model.rectified or not model.head_scale or len(shapes) % 2 or any(len(bias) != 1 for bias in shapes[1::2]):
            return False
        plain = all(len(weight) in (2, 4) and set(weight[2:]) <= {1} for weight in shapes[::2])
        return plain and sum(weight[1] for weight in shapes[::2]) == width

    @property
    def linear_head(self) -> LinearHead:
        """The head as one linear layer, of a pack that has the plan ``ridge``."""
        return LinearHead(self.manifest.model.head, self.manifest.model.head_scale)

    @cached_property
    def _places(self) -> dict[str, TensorPlace]:
        return tensor_places(self._content[WEIGHTS])

    def _closed_form_plan(self, name: str) -> PlanInfo:
        """The plan ``head`` without its graphs; in ``closed_form`` the statistics come with it, but not their FLOPs."""
        head = self.manifest.plans["head"]
        (width,) = self.manifest.backbones[head.backbone].shape
        flops = closed_form_flops(width, len(self.manifest.model.classes))
        buffers = self.manifest.plans["bn"].buffers if plan_kind(name).statistics else ()
        return replace(head, name=name, buffers=buffers, train="", score="", flops_train=flops, flops_forward=0)

    def backbone(self, plan: str) -> BackboneInfo | None:
        """The frozen backbone of the named plan; None when it has none."""
        name = self.plan(plan).backbone
        return self.manifest.backbones[name] if name else None

    def weights(self) -> dict[str, np.ndarray]:
        """Every parameter and running statistic, as fresh arrays."""
        return read_tensors(self._content[WEIGHTS])

    @cached_property
    def anchors(self) -> Anchors | None:
        """Images of the server; None where the pack has none.

        Raises:
            PackError: they cannot be read.
        """
        content, model = self._content.get(ANCHORS), self.manifest.model
        return None if content is None else read_anchors(content, model.image_size, model.classes, self.path)

    @cached_property
    def sums(self) -> ServerSums | None:
        """Sums of the server's features; None where the pack has none, or no head in closed form.

        Raises:
            PackError: they cannot be read.
        """
        content = self._content.get(SUMS)
        if content is None or RIDGE not in self.plan_names:
            return None
        return read_sums(content, self.head_features, len(self.manifest.model.classes), self.path)

    @property
    def head_features(self) -> int:
        """How many the head takes, of a pack that has the plan ``ridge``."""
        head = self.manifest.plans["head"]
        return self.manifest.backbones[head.backbone].shape[0]

    @property
    def digest(self) -> str:
        """A short identity of the pack, its calibration included, for resume checks."""
        return hashlib.sha256(to_json(self.manifest).encode()).hexdigest()[:16]


def open_pack(path: str | PathLike[str], trusted: TrustedKeys | None = None) -> Pack:
    """Read and verify a pack: sizes before bytes, hashes before content, content before anything is loaded.

    Args:
        path: of a folder or a file.
        trusted: public keys of which one must have signed it; then it may hold nothing that was not signed. None: it
            need not be signed, and signatures are not checked.

    Raises:
        PackError: missing, unreadable, damaged, incomplete, other than described, written by a newer version, or not
            signed as required.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise PackError("no such pack", where=path, fix="make one with `edge-sel export`")
        with open_container(path) as files:
            if MANIFEST not in files:
                raise PackError("not a pack: it has no manifest.json", where=path)
            own = {MANIFEST: files.read(MANIFEST, MOST_MANIFEST_BYTES)}
            if SIGNATURES in files:
                own[SIGNATURES] = files.read(SIGNATURES, MOST_SIGNATURES_BYTES)
            signers = find_signers("pack", own[MANIFEST], own.get(SIGNATURES), trusted, path)
            manifest = from_json(own[MANIFEST].decode("utf-8", "replace"), path)
            check_files(manifest)
            if trusted is not None:
                refuse_unlisted(files, manifest, path)
            content = {name: _verified(path, name, manifest, files) for name in manifest.files}
        _check(manifest, content)
    except ValueError as error:
        raise PackError(str(error)[:300], where=path, fix="export it again") from error
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, struct.error, OverflowError) as error:
        raise PackError(f"the pack cannot be read ({error})", where=path, fix="copy it again") from error
    pack = Pack(path, manifest, {**own, **content}, signers)
    _ = pack.sums  # refused here rather than in the middle of a run
    return pack


def builtin_pack(trusted: TrustedKeys | None = None) -> Pack:
    """Open the built-in pack; it is not signed, so PackError where that is required."""
    with resources.as_file(resources.files("edge_sel.pack") / "assets" / "digits.edgepack") as path:
        return open_pack(Path(path), trusted)


def _unlike(weights: Mapping[str, np.ndarray], expected: Arrays, model: ModelInfo, classes: int) -> str:
    """In which way these are no weights of the pack's model; empty if they are."""
    if missing := sorted(expected.keys() - weights.keys()):
        return f"{missing[0]} is missing"
    if unknown := sorted(weights.keys() - expected.keys()):
        return f"{unknown[0][:100]} is not in the pack"
    for name, value in weights.items():
        shape: Sequence[int] = expected[name].shape
        if name in model.head:
            shape = (shape[0] + classes - len(model.classes), *shape[1:])
        if value.shape != tuple(shape) or value.dtype != expected[name].dtype:
            return f"{name[:100]} is {value.dtype} {list(value.shape)}"
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return f"{name[:100]} holds numbers that are not finite"
    return ""


def refuse_unlisted(files: PackFolder | PackZip, manifest: Manifest, path: Path) -> None:
    """Raise PackError where something lies in the pack that its manifest, and so a signature, says nothing of."""
    unlisted = sorted(files.names() - {MANIFEST, SIGNATURES} - manifest.files.keys())
    if unlisted:
        raise PackError(f"{unlisted[0][:200]} in the pack is not in its manifest", where=path, fix="remove it")


def _check(manifest: Manifest, content: Mapping[str, bytes]) -> None:
    """ValueError unless weights, anchors and graphs are what the manifest says."""
    places = {}
    for name in {WEIGHTS, ANCHORS, SUMS} & content.keys():
        try:
            places[name] = tensor_places(content[name])
        except ValueError as error:
            raise ValueError(f"{name} cannot be read ({error})") from error
        if wrong := not_finite(content[name], places[name]):
            raise ValueError(f"{name}: {wrong} holds numbers that are not finite")
    check_content(manifest, places[WEIGHTS])
    check_graphs(manifest, content, places[WEIGHTS])


def _verified(path: Path, name: str, manifest: Manifest, files: PackFolder | PackZip) -> bytes:
    if name not in files:
        raise PackError(f"{name} is missing from the pack", where=path, fix="copy the pack again")
    info = manifest.files[name]
    content = files.read(name, info.bytes)
    if len(content) != info.bytes or hashlib.sha256(content).hexdigest() != info.sha256:
        raise PackError(f"{name} is damaged: its sha256 does not match", where=path, fix="copy the pack again")
    return content
