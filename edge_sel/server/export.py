"""Turn a warmup checkpoint into a pack: export, calibrate, compile every plan, check parity, write."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch

from edge_sel import __version__
from edge_sel.data.dataset import ImageSet
from edge_sel.data.transforms import normalise
from edge_sel.engines.ort import OrtEngine
from edge_sel.engines.torch import TorchEngine
from edge_sel.errors import DataError, GraphError
from edge_sel.graphs.executed_flops import executed_flops
from edge_sel.graphs.ir import Forward
from edge_sel.graphs.plans import head_names, make_plan, with_probes
from edge_sel.graphs.prefix import Cut, compile_prefix, find_cut, tail
from edge_sel.graphs.train import compile_eval, compile_score, compile_train
from edge_sel.pack.anchors import ANCHORS, choose_anchors, read_anchors, write_anchors
from edge_sel.pack.manifest import EVAL, GainRow, Manifest, ModelInfo, PlanInfo, PrefixInfo
from edge_sel.pack.reader import Pack, open_pack
from edge_sel.pack.writer import refuse_foreign, write_pack
from edge_sel.server.calibrate import calibrate
from edge_sel.server.forward import export_forward
from edge_sel.server.parity import check_parity, parity_batches
from edge_sel.server.quantized_variant import IMAGES, make_quantized_variant
from edge_sel.server.warmup import WarmupInfo, load

DEFAULT_PLANS = (
    "bn", "head", "affine", "last", "last2", "first", "full", "last-c25", "last-c50", "full-c25", "full-c50",
)  # fmt: skip


def export_pack(
    checkpoint: Path,
    images: ImageSet,
    out: Path,
    *,
    plans: Sequence[str] = DEFAULT_PLANS,
    optimizer: str = "sgd",
    gamma_percentile: float = 40.0,
    seed: int = 0,
    now: datetime,
    rehearse: Callable[[Pack], tuple[GainRow, ...]] = lambda pack: (),
    note: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Export ``checkpoint`` as a pack at ``out``; ``images`` calibrate it and feed the parity check.

    ``rehearse`` makes the table of gains with the pack as a device would load it.

    Raises:
        GraphError: an operator has no rule, or a compiled graph differs from torch: nothing is written then.
        DataError: the images' classes are not the checkpoint's.
    """
    refuse_foreign(out)
    model, info = load(checkpoint)
    if images.classes != info.classes:
        raise DataError(
            "the calibration images have other classes than the checkpoint", where=", ".join(images.classes)
        )
    note("exporting the forward graph")
    forward = export_forward(model, info.image_size)
    compiled = compile_plans(forward, plans, optimizer, len(info.classes), note)
    note("calibrating")
    rng = np.random.default_rng(seed)
    calibration = calibrate(model, images, info.mean, info.std, gamma_percentile=gamma_percentile, rng=rng)
    weights = {n: v.detach().numpy() for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:IMAGES])
    _add_quantized_variants(compiled, forward, weights, normalise(images.read(chosen), info.mean, info.std), note)
    described = ModelInfo(
        info.model, sum(p.numel() for p in model.parameters()), info.classes, info.image_size, info.mean, info.std,
        head_names(forward), bool(info.training.get("flip", False)),
    )  # fmt: skip
    manifest = Manifest(
        described, optimizer, calibration, compiled.plans, {}, compiled.prefixes, provenance=_provenance(info, now)
    )
    with TemporaryDirectory() as scratch:  # what is compared and rehearsed is what a device would load
        write_pack(Path(scratch) / "pack", manifest, weights, compiled.graphs)
        pack = open_pack(Path(scratch) / "pack")
    note("choosing anchors")
    others = make_anchors(pack, images, np.random.default_rng(seed))
    note("checking one step of every plan against torch")
    parity = _parity(pack, forward, images, rng)
    manifest = replace(manifest, parity=parity, gains=rehearse(pack))
    write_pack(out, manifest, weights, compiled.graphs, others)
    return open_pack(out).manifest


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

    A prefix has the name of the first plan that is cut there; others share it.
    """
    graphs = {EVAL: compile_eval(forward)}
    compiled: dict[str, PlanInfo] = {}
    prefixes: dict[str, PrefixInfo] = {}
    cuts: dict[Cut, str] = {}
    for name in with_probes(names):
        try:
            plan = make_plan(forward, name)
        except GraphError as error:
            note(f"plan {name} left out: {error}")
            continue
        cut = find_cut(forward, plan)
        if cut and cut not in cuts:
            cuts[cut], file = name, f"prefix-{name}.onnx"
            graphs[file] = compile_prefix(forward, cut)
            prefixes[name] = PrefixInfo(file, cut.shape, cut.constants, executed_flops(graphs[file], classes))
        trained = tail(forward, cut)
        train = compile_train(trained, plan, optimizer)
        score = compile_score(trained, (*plan.trainable, *plan.buffers))
        graphs |= {f"train-{name}.onnx": train, f"score-{name}.onnx": score}
        compiled[name] = PlanInfo(
            name, plan.trainable, plan.buffers, plan.bn_mode, plan.channels, f"train-{name}.onnx",
            f"score-{name}.onnx", executed_flops(train, classes), executed_flops(score, classes),
            cuts[cut] if cut else "",
        )  # fmt: skip
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
    return {
        "created": now.isoformat(timespec="seconds"),
        "edge_sel": __version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "training": info.training,
    }


def _parity(pack: Pack, forward: Forward, images: ImageSet, rng: np.random.Generator) -> dict[str, object]:
    batches = parity_batches(images, pack.manifest.model, rng)
    reference, twin = (TorchEngine(device="cpu", dtype=dtype) for dtype in (torch.float32, torch.float64))
    found = check_parity(pack, forward, batches, engine=OrtEngine(), reference=reference, twin=twin)
    return {
        "images": len(batches[0].labels),
        "error_to_float64": {name: agreement.ours for name, agreement in found.items()},
        "error_of_torch": {name: agreement.torch for name, agreement in found.items()},
    }
