"""Turn a classifier into a pack: compile every plan, calibrate, check, write."""

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
from edge_sel.data.dataset import ImageSet
from edge_sel.data.transforms import normalise
from edge_sel.engines.native import ort
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import DataError, GraphError
from edge_sel.graphs.cost import executed_flops, step_bytes
from edge_sel.graphs.head_form import closed_form_reasons, head_scale
from edge_sel.graphs.ir import Forward
from edge_sel.graphs.optimizers import require_optimizer
from edge_sel.graphs.plans import head_names, make_plan, parameters, rectified, with_probes
from edge_sel.graphs.prefix import Cut, compile_prefix, find_cut, tail
from edge_sel.graphs.train import compile_eval, compile_score, compile_train
from edge_sel.pack.anchors import ANCHORS, choose_anchors, read_anchors, write_anchors
from edge_sel.pack.manifest import EVAL, Calibration, GainRow, Manifest, ModelInfo, PlanInfo, PrefixInfo
from edge_sel.pack.reader import Pack, open_pack
from edge_sel.pack.sums import SUMS, write_sums
from edge_sel.pack.writer import refuse_foreign, write_pack
from edge_sel.server.calibrate import calibrate, frozen_gradients
from edge_sel.server.new_head import NewHead, fit_new_head, head_features, sums_of
from edge_sel.server.parity import parity_batches
from edge_sel.server.quantized_variant import IMAGES, make_quantized_variant
from edge_sel.server.source.base import Source, WarmupInfo
from edge_sel.server.source.unfold import unfold
from edge_sel.version import __version__

DEFAULT_PLANS = (
    "bn", "head", "affine", "last", "last2", "first", "full", "last-c25", "last-c50", "full-c25", "full-c50",
)  # fmt: skip


def export_pack(
    source: Source,
    images: ImageSet,
    out: Path,
    *,
    plans: Sequence[str] = (),
    optimizer: str = "sgd",
    gamma_percentile: float = 40.0,
    seed: int = 0,
    ort_training: bool = False,
    now: datetime,
    rehearse: Callable[[Pack], tuple[GainRow, ...]] = lambda pack: (),
    note: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Export ``source`` as a pack at ``out``; ``images`` calibrate it and feed the parity check.

    With ``ort_training`` it gets the official artifacts of onnxruntime-training too, of each plan that these can train.
    ``rehearse`` makes the table of gains with the pack as a device would load it. Without ``plans`` the pack gets
    those of ``DEFAULT_PLANS`` that this model can have; of named plans each must be possible.

    Raises:
        GraphError: an operator has no rule, or a compiled graph is wrong: nothing is written then.
        DataError: the images' classes are not the source's.
    """
    refuse_foreign(out)
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
    manifest = Manifest(
        described, optimizer, unknown, compiled.plans, {}, compiled.prefixes, provenance=_provenance(info, now)
    )
    new_head = None
    if source.new_head:
        note("fitting a new head")
    pack = _as_loaded(manifest, weights, compiled)
    features = head_features(pack, images, OrtEngine(), rng)
    if source.new_head:
        new_head = fit_new_head(pack, images, features)
        weights |= new_head.weights
    sums = None if features is None else sums_of(pack, images, features, rng)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:IMAGES])
    _add_quantized_variants(compiled, forward, weights, normalise(images.read(chosen), info.mean, info.std), note)
    pack = _as_loaded(manifest, weights, compiled)
    note("calibrating")
    calibration = _calibrate(pack, forward, images, new_head, gamma_percentile, rng)
    manifest = replace(manifest, calibration=calibration)
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
    manifest = replace(manifest, parity=parity, gains=rehearse(pack))
    if ort_training:
        from edge_sel.server.ort_artifacts import add_artifacts

        note("making artifacts of onnxruntime-training")
        artifacts, official = add_artifacts(
            pack, forward, lambda made, engine: source.check(made, forward, batches, engine, note), note
        )
        manifest, others = replace(manifest, ort_training=official), {**others, **artifacts}
    write_pack(out, manifest, weights, compiled.graphs, others)
    return open_pack(out).manifest


def _as_loaded(manifest: Manifest, weights: Arrays, compiled: Compiled) -> Pack:
    """What is calibrated, compared and rehearsed is what a device would load."""
    with TemporaryDirectory() as scratch:
        write_pack(Path(scratch) / "pack", manifest, weights, compiled.graphs)
        return open_pack(Path(scratch) / "pack")


def _calibrate(
    pack: Pack, forward: Forward, images: ImageSet, new_head: NewHead | None, percentile: float,
    rng: np.random.Generator,
) -> Calibration:  # fmt: skip
    """Where the head is new, logits are of heads that did not see the image."""
    model, weights = pack.manifest.model, pack.weights()
    predict = OrtEngine().predictor(pack, weights)
    try:
        gradients = frozen_gradients(forward, weights)
    except GraphError:  # an early operator has no rule: what the largest plan trains
        largest = max((plan.trainable for plan in pack.manifest.plans.values()), key=len)
        gradients = frozen_gradients(forward, weights, largest)

    def logits_of(rows: np.ndarray) -> np.ndarray:
        return predict(normalise(images.read(rows), model.mean, model.std))

    if new_head is None:
        return calibrate(images, model, logits_of, gradients, gamma_percentile=percentile, rng=rng)
    left_out = new_head.left_out
    fitted = images.subset(new_head.rows)
    return calibrate(fitted, model, lambda rows: left_out[rows], gradients, gamma_percentile=percentile, rng=rng)


def make_anchors(pack: Pack, images: ImageSet, rng: np.random.Generator) -> dict[str, bytes]:
    """The file of anchors by its name, with what the pack's model makes of them; nothing if no image is that small."""
    files, labels = choose_anchors(images, rng)
    if not files:
        return {}
    model = pack.manifest.model
    read = read_anchors(write_anchors(files, labels, np.zeros(len(labels))), model.image_size, model.classes).images
    pixels = normalise(read.read(np.arange(len(read))), model.mean, model.std)
    logits = OrtEngine().predictor(pack, pack.weights())(pixels)
    return {ANCHORS: write_anchors(files, labels, logits.argmax(1) == labels)}


class Compiled(NamedTuple):
    """Graphs by file name, and what the manifest says about them."""

    graphs: dict[str, onnx.ModelProto]
    plans: dict[str, PlanInfo]
    prefixes: dict[str, PrefixInfo]
    cuts: dict[str, Cut]
    """Of each prefix."""


def compile_plans(
    forward: Forward, names: Sequence[str], optimizer: str, classes: int, note: Callable[[str], None]
) -> Compiled:
    """Compile the graphs of every plan; a plan that finds nothing to change in this model is left out and noted.

    So is one of the default plans, taken where ``names`` is empty, that has an operator without a gradient rule. A
    prefix has the name of the first plan that is cut there; others share it.

    Raises:
        GraphError: no plan is left, or a named one has an operator without a gradient rule.
        UsageError: unknown plan or optimizer.
    """
    require_optimizer(optimizer)
    graphs = {EVAL: compile_eval(forward)}
    compiled: dict[str, PlanInfo] = {}
    prefixes: dict[str, PrefixInfo] = {}
    cuts: dict[Cut, str] = {}
    for name in with_probes(names or DEFAULT_PLANS):
        try:
            plan = make_plan(forward, name)
        except GraphError as error:
            note(f"plan {name} left out: {error}")
            continue
        cut = find_cut(forward, plan)
        trained = tail(forward, cut)
        try:
            train = compile_train(trained, plan, optimizer)
        except GraphError as error:
            if names:
                raise
            note(f"plan {name} left out: {error}")
            continue
        if cut and cut not in cuts:
            cuts[cut], file = name, f"prefix-{name}.onnx"
            graphs[file] = compile_prefix(forward, cut)
            prefixes[name] = PrefixInfo(file, cut.shape, cut.constants, executed_flops(graphs[file], classes))
        score = compile_score(trained, (*plan.trainable, *plan.buffers))
        graphs |= {f"train-{name}.onnx": train, f"score-{name}.onnx": score}
        compiled[name] = PlanInfo(
            name, plan.trainable, plan.buffers, plan.bn_mode, plan.channels, f"train-{name}.onnx",
            f"score-{name}.onnx", executed_flops(train, classes), executed_flops(score, classes),
            cuts[cut] if cut else "", plan.heads, step_bytes(train, classes),
        )  # fmt: skip
    if "head" in compiled:
        cut = next((cut for cut, name in cuts.items() if name == compiled["head"].prefix), None)
        for name, reason in closed_form_reasons(forward, cut).items():
            note(f"plan {name} left out: {reason}")
    if not compiled:
        raise GraphError("no plan can train this model", fix="`edge-sel export --dry-run` shows why")
    return Compiled(graphs, compiled, prefixes, {name: cut for cut, name in cuts.items()})


def _add_quantized_variants(
    compiled: Compiled,
    forward: Forward,
    weights: dict[str, np.ndarray],
    pixels: np.ndarray,
    note: Callable[[str], None],
) -> None:
    """Give each prefix that can have one its quantized variant."""
    for name, cut in compiled.cuts.items():
        info, file = compiled.prefixes[name], f"prefix-{name}-int8.onnx"
        try:
            quantized = make_quantized_variant(forward, cut, compiled.graphs[info.graph], file, weights, pixels)
        except GraphError as error:
            note(f"frozen backbone of {name}: no quantized variant: {error}")
            continue
        compiled.graphs[file], compiled.prefixes[name] = quantized.graph, replace(info, int8=quantized.info)
        difference = quantized.info.relative_error
        note(f"frozen backbone of {name}: the features of its quantized variant differ by {difference:.1%}")


def _provenance(info: WarmupInfo, now: datetime) -> dict[str, object]:
    torch = sys.modules.get("torch")  # a source without it needs none
    versions = {"edge_sel": __version__, "onnx": onnx.__version__, "onnxruntime": ort.__version__}
    if torch is not None:
        versions["torch"] = torch.__version__
    return {
        "created": now.isoformat(timespec="seconds"), **versions, "python": platform.python_version(),
        "training": info.training,
    }  # fmt: skip
