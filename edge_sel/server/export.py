"""Turn a classifier into a pack: compile every plan, calibrate, check; then, with a table of gains, write."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx

from edge_sel.arrays import Arrays
from edge_sel.data.dataset import ImageSet, images_at_once, normalise
from edge_sel.engines.base import Batch
from edge_sel.engines.native import ort
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import DataError
from edge_sel.graphs.head_form import head_scale
from edge_sel.graphs.plans import head_names, parameters, rectified
from edge_sel.pack.manifest import Calibration, GainRow, Manifest, ModelInfo
from edge_sel.pack.reader import Pack, open_pack
from edge_sel.pack.sums import SUMS, write_sums
from edge_sel.pack.writer import refuse_foreign, write_pack
from edge_sel.server.compile_plans import IMAGES, Compiled, add_quantized_variants, compile_plans
from edge_sel.server.pack_calibration import calibrate_pack, fit_new_head, head_features, make_anchors, sums_of
from edge_sel.server.parity import parity_batches
from edge_sel.server.source.base import Source, WarmupInfo
from edge_sel.server.source.unfold import unfold
from edge_sel.version import __version__

Note = Callable[[str], None]
"""Told in a line what is being done, or left out."""


class Draft(NamedTuple):
    """A pack that was compiled, calibrated and checked, but not yet written.

    Attributes:
        pack: as a device would load it.
        source: what it was made of, unfolded.
        compiled: its graphs.
        others: its files beside graphs and weights, by name.
        batches: what one step of every plan was checked on.
    """

    pack: Pack
    source: Source
    compiled: Compiled
    others: dict[str, bytes]
    batches: list[Batch]


def export_pack(
    source: Source,
    images: ImageSet,
    out: Path,
    *,
    plans: Sequence[str] = (),
    optimizer: str = "sgd",
    now: datetime,
    note: Note = lambda line: None,
) -> Manifest:
    """Export ``source`` as a pack at ``out``, without a table of gains; see ``draft_pack``."""
    refuse_foreign(out)
    draft = draft_pack(source, images, plans=plans, optimizer=optimizer, now=now, note=note)
    return finish_pack(draft, out).manifest


def draft_pack(
    source: Source,
    images: ImageSet,
    *,
    plans: Sequence[str] = (),
    optimizer: str = "sgd",
    gamma_percentile: float = 40.0,
    seed: int = 0,
    now: datetime,
    note: Note = lambda line: None,
) -> Draft:
    """All of a pack but the table of gains; ``images`` calibrate it and feed the parity check.

    Without ``plans`` the pack gets those of ``DEFAULT_PLANS`` that this model can have; of named plans each must be
    possible.

    Raises:
        GraphError: an operator has no rule, or a compiled graph is wrong.
        DataError: the images' classes are not the source's.
    """
    info, rng = source.info, np.random.default_rng(seed)
    if images.classes != info.classes:
        raise DataError("the calibration images have other classes than the model", where=", ".join(images.classes))
    if source.folded:
        note("batch normalisation was folded into the convolutions: giving it back")
        source = unfold(source, images, rng)
    forward, weights = source.forward, dict(source.weights)
    compiled = compile_plans(forward, plans, optimizer, len(info.classes), note)
    described = ModelInfo(
        info.model, sum(weights[name].size for name in parameters(forward)), info.classes, info.image_size, info.mean,
        info.std, head_names(forward), bool(info.training.get("flip", False)), rectified(forward),
        1.0 if rectified(forward) else head_scale(forward), source.taps,
    )  # fmt: skip
    unknown = Calibration(0.0, gamma_percentile, (0.0,), (None,) * len(info.classes), 0.0, 0)
    provenance = _provenance(info, now)
    manifest = Manifest(described, optimizer, unknown, compiled.plans, {}, compiled.backbones, provenance=provenance)
    pack, new_head = _as_loaded(manifest, weights, compiled), None
    if source.new_head:
        note("fitting a new head")
    features = head_features(pack, images, OrtEngine(), rng)
    if source.new_head:
        new_head = fit_new_head(pack, images, features)
        weights |= new_head.weights
    sums = None if features is None else sums_of(pack, images, features, rng)
    count = images_at_once(IMAGES, info.image_size)  # of large ones fewer have as many pixels
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:count])
    add_quantized_variants(compiled, forward, weights, normalise(images.read(chosen), info.mean, info.std), note)
    pack = _as_loaded(manifest, weights, compiled)
    note("calibrating")
    calibration = calibrate_pack(pack, forward, images, new_head, gamma_percentile, rng)
    pack = pack.with_manifest(replace(pack.manifest, calibration=calibration))
    note("choosing anchors")
    others = make_anchors(pack, images, np.random.default_rng(seed))
    others |= {} if sums is None else {SUMS: write_sums(sums)}
    pack = pack.with_manifest(pack.manifest, others)
    note("checking one step of every plan")
    batches = parity_batches(images, described, rng)
    found = source.check(pack, forward, batches, OrtEngine(), note)
    parity = {
        "error_to_float64": {name: agreement.ours for name, agreement in found.items()},
        "error_of_reference": {name: agreement.reference for name, agreement in found.items()},
    }
    return Draft(pack.with_manifest(replace(pack.manifest, parity=parity)), source, compiled, others, batches)


def finish_pack(
    draft: Draft,
    out: Path,
    gains: tuple[GainRow, ...] = (),
    *,
    ort_training: bool = False,
    note: Note = lambda line: None,
) -> Pack:
    """Write the pack at ``out``, with a table of gains, and open it.

    With ``ort_training`` it gets the official artifacts of onnxruntime-training too, of each plan that these can train.
    """
    pack, source, compiled, others, batches = draft
    manifest = replace(pack.manifest, gains=gains)
    if ort_training:
        from edge_sel.server.ort_artifacts import add_artifacts

        note("making artifacts of onnxruntime-training")
        artifacts, official = add_artifacts(
            pack, source.forward, lambda made, engine: source.check(made, source.forward, batches, engine, note), note
        )
        manifest, others = replace(manifest, ort_training=official), {**others, **artifacts}
    write_pack(out, manifest, pack.weights(), compiled.graphs, others)
    return open_pack(out)


def _as_loaded(manifest: Manifest, weights: Arrays, compiled: Compiled) -> Pack:
    """What is calibrated, compared and rehearsed is what a device would load."""
    with TemporaryDirectory() as scratch:
        write_pack(Path(scratch) / "pack", manifest, weights, compiled.graphs)
        return open_pack(Path(scratch) / "pack")


def _provenance(info: WarmupInfo, now: datetime) -> dict[str, object]:
    torch = sys.modules.get("torch")  # a source without it needs none
    versions = {"edge_sel": __version__, "onnx": onnx.__version__, "onnxruntime": ort.__version__}
    if torch is not None:
        versions["torch"] = torch.__version__
    return {
        "created": now.isoformat(timespec="seconds"), **versions, "python": platform.python_version(),
        "training": info.training,
    }  # fmt: skip
