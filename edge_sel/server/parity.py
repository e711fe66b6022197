"""Before a graph ships, one step of it must be as near to a float64 twin as another float32 program is.

Two right float32 programs differ by percents where rounding carries an activation across the kink of a ReLU, and deep
networks with batch statistics over few images have such activations in most batches. So the distance of torch from
torch in float64, on the same batch, is the yardstick, tensor by tensor. Where the source is an ONNX file without a
torch model, ONNX's reference implementation stands in for torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from edge_sel.arrays import Arrays, tensor_places
from edge_sel.data.dataset import ImageSet, normalise
from edge_sel.engines.base import Batch, Engine, Hyper
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import GraphError
from edge_sel.graphs.check import rule_error
from edge_sel.graphs.ir import Forward, Node
from edge_sel.graphs.plans import Plan, node_parameters, parameters
from edge_sel.graphs.rules.registry import RULES, STEPWISE
from edge_sel.graphs.train import compile_train
from edge_sel.pack.manifest import OPTIMIZER_STATE, WEIGHTS, ModelInfo, PlanInfo
from edge_sel.pack.reader import Pack
from edge_sel.pack.writer import externalise
from edge_sel.server.onnx_reference import reference_step
from edge_sel.server.source.base import Agreement

MULTIPLE = 8
"""How many times the reference's error a tensor's error may be, on a batch without a kink; 4 at most were seen."""
ROUNDING = 1e-5
"""Errors of the reference below this count as this: a tensor may be lucky."""
SURE = 1e-2
"""A batch on which the reference itself is off by more has a kink and cannot tell."""
NOISE = 1e-4
"""A tensor whose gradients are this much smaller than the largest gradient is compared on that scale instead."""
EXACT = 1e-7
"""Largest relative difference of two float64 programs."""
JOLT = 1e-5
"""Relative noise on the images: ten times what float32 rounding comes to behind several layers, so that activations
near a kink cross it."""
RULE_TOLERANCE = 1e-4
STEP = Hyper(learning_rate=1e-3)

BATCH_SIZE, FEW = 4, 2
"""Images of a batch; the latter where they have more than ``MANY_PIXELS`` aside, and so more kinks."""
MANY_PIXELS = 128
TRIES = 4
"""How many batches may have a kink. A wrong rule is off on every batch."""


FirstStep: TypeAlias = Callable[[Batch], Arrays]
"""The first step with a batch: ``loss``, then by name gradients, those closest to the loss first, and statistics."""


class Program(NamedTuple):
    """Something that makes a plan's first step; ``start`` takes a pack, the plan's name and the full set of weights."""

    name: str
    start: Callable[[Pack, str, Mapping[str, np.ndarray]], FirstStep]


def program_of(engine: Engine) -> Program:
    """The engine's own way to make it."""

    def start(pack: Pack, plan: str, weights: Mapping[str, np.ndarray]) -> FirstStep:
        trainer, backbone = engine.trainer(pack, plan, weights), engine.backbone(pack, plan, weights)
        first = trainer.state()

        def step(batch: Batch) -> Arrays:
            trainer.load_state(first)
            fed = batch._replace(images=backbone(batch.images)) if backbone else batch
            losses = trainer.step(fed, STEP).losses
            return _results(pack, plan, losses, trainer.state())

        return step

    return Program(engine.name, start)


def reference_program(dtype: DTypeLike) -> Program:
    """ONNX's reference implementation, which runs a pack's graphs operator by operator in numpy; very slow."""

    def start(pack: Pack, plan: str, weights: Mapping[str, np.ndarray]) -> FirstStep:
        def step(batch: Batch) -> Arrays:
            found = reference_step(pack, plan, weights, batch, STEP, dtype)
            return _results(pack, plan, found["loss"], {n.removeprefix("new::"): value for n, value in found.items()})

        return step

    return Program("ONNX's reference implementation", start)


def _results(pack: Pack, plan: str, losses: np.ndarray, state: Arrays) -> Arrays:
    """The first optimizer state after one step from zero is the gradient times a constant."""
    info, slot = pack.plan(plan), OPTIMIZER_STATE[pack.manifest.optimizer][0]
    gradients = {name: state[f"{slot}::{name}"] for name in reversed(info.trainable)}
    return {"loss": losses, **gradients, **{name: state[name] for name in info.buffers}}


class Errors(NamedTuple):
    """Distances from the float64 twin by tensor, relative to the twin's largest value."""

    ours: dict[str, float]
    reference: dict[str, float]


def parity_batches(images: ImageSet, model: ModelInfo, rng: np.random.Generator) -> list[Batch]:
    """``TRIES`` batches of ``BATCH_SIZE`` images, or of ``FEW`` large ones, with labels and sample weights at random.

    A model that has every image right would have no gradient to compare.
    """
    batches, size = [], BATCH_SIZE if max(model.image_size) <= MANY_PIXELS else FEW
    for _ in range(TRIES):
        chosen = np.sort(rng.permutation(len(images))[:size])
        weights = rng.uniform(0.5, 1.5, len(chosen)).astype(np.float32)
        labels = rng.integers(0, len(model.classes), len(chosen))
        batches.append(Batch(normalise(images.read(chosen), model.mean, model.std), labels, weights))
    return batches


def check_parity(
    pack: Pack, forward: Forward, batches: Sequence[Batch], engine: Engine, *, reference: Program, twin: Program,
    begin: Callable[[str], None] = lambda plan: None,
) -> dict[str, Agreement]:  # fmt: skip
    """Compare one step of every plan with the reference's, and both with the twin's.

    Gradients are compared by the first optimizer state, without Adam's division blowing up differences of tiny ones.
    What stands in the pack in two halves, or for some channels, is compared with the whole that the others compute:
    once for all plans that normalise alike, as a gradient does not depend on what else is trained.

    Args:
        pack: as a device would load it.
        forward: what its graphs were compiled from.
        batches: one is enough if it has no kink.
        engine: that runs what stands in the pack.
        reference: another program, in float32.
        twin: the same in float64.
        begin: told each plan before it is compared.

    Raises:
        GraphError: a plan is farther from the twin than float32 explains; the message names the plan, the weight and
            the operator.
    """
    report: dict[str, Agreement] = {}
    weights, ours = pack.weights(), program_of(engine)
    for name, whole in _with_whole_plans(pack, forward).items():
        mine = [info for info in pack.manifest.plans.values() if info.bn_mode == whole.plan(name).bn_mode]
        others = [program.start(whole, name, weights) for program in (reference, twin)]
        waiting = {info.name: info for info in mine}
        steps: dict[str, FirstStep] = {}
        seen: dict[str, list[Errors]] = {info.name: [] for info in mine}
        for batch in batches:
            single, double = (step(batch) for step in others)
            for info in list(waiting.values()):
                if info.name not in steps:
                    begin(info.name)
                    steps[info.name] = ours.start(pack, info.name, weights)
                found = steps[info.name](batch)
                seen[info.name].append(_errors(found, _of_plan(single, info), _of_plan(double, info), info))
                if not _too_far(seen[info.name][-1]):
                    del waiting[info.name], steps[info.name]
            if not waiting:
                break
        if waiting:
            moved, exact = others[1](_jolted(batch)), _exact(pack, whole, name, steps, batch, double, engine)
            for info in waiting.values():
                expected = _of_plan(double, info)
                sway = max(_errors(expected, _of_plan(moved, info), expected, info).reference.values())
                named = engine.name, reference.name
                _require_explained(info, seen[info.name], exact[info.name], sway, forward, named)
        for info in mine:
            best = min(seen[info.name], key=lambda errors: max(errors.ours.values()))
            report[info.name] = Agreement(max(best.ours.values()), max(best.reference.values()))
    return {name: report[name] for name in pack.manifest.plans}


def _with_whole_plans(pack: Pack, forward: Forward) -> dict[str, Pack]:
    """For each form of normalisation a pack with one plan more: it trains all that any plan of this form trains."""
    packs = {}
    used = {plan.bn_mode for plan in pack.manifest.plans.values()}
    for mode in (mode for mode in ("frozen", "batch") if mode in used):  # the simpler first
        plans = [plan for plan in pack.manifest.plans.values() if plan.bn_mode == mode]
        wanted = {name for plan in plans for name in plan.trainable}
        trained = tuple(name for name in parameters(forward) if name in wanted)
        buffers = max((plan.buffers for plan in plans), key=len)
        name, graph = f"whole-{mode}", f"whole-{mode}.onnx"
        compiled = compile_train(forward, Plan(name, trained, mode, {}, buffers), pack.manifest.optimizer)
        info = PlanInfo(name, trained, buffers, mode, {}, graph, graph, 0, 0)  # nobody scores by it
        stored = externalise(compiled, tensor_places(pack.files[WEIGHTS])).SerializeToString()
        manifest = replace(pack.manifest, plans={**pack.manifest.plans, name: info})
        packs[name] = pack.with_manifest(manifest, {graph: stored})
    return packs


def _of_plan(found: Arrays, plan: PlanInfo) -> Arrays:
    """What a plan's step should give, of what a step of the whole gave: nothing for channels that it does not train."""
    gradients = {}
    for name in reversed(plan.trainable):
        gradients[name] = found[name]
        if name in plan.channels:
            gradients[name] = np.zeros_like(found[name])
            gradients[name][: plan.channels[name]] = found[name][: plan.channels[name]]
    return {"loss": found["loss"], **gradients, **{name: found[name] for name in plan.buffers}}


def _too_far(errors: Errors) -> bool:
    """Whether this batch does not show that all is right."""
    if max(errors.reference.values()) > SURE:
        return True
    return any(error > MULTIPLE * max(errors.reference[name], ROUNDING) for name, error in errors.ours.items())


def _exact(
    pack: Pack, whole: Pack, name: str, steps: dict[str, FirstStep], batch: Batch, double: Arrays, engine: Engine
) -> dict[str, Mapping[str, float]]:
    """How far each plan in ``steps`` is from the twin's step ``double`` with its graph in float64, by tensor.

    That takes long, so it is done once, for the plan ``name`` of ``whole``. The result holds for each plan whose step,
    as the engine makes it, is the same as that of the whole: from one program, both meet the same kinks. ``steps`` is
    emptied, as each holds weights and their optimizer state.
    """
    weights, alone, plans = pack.weights(), reference_program(np.float64), list(steps)
    same = set()
    if engine.name == OrtEngine.name:  # the official runtime has no graph of the whole
        ours = program_of(engine).start(whole, name, weights)(batch)
        for plan in plans:
            mine, expected = steps.pop(plan)(batch), _of_plan(ours, pack.plan(plan))
            if max(_errors(mine, expected, expected, pack.plan(plan)).ours.values()) <= MULTIPLE * ROUNDING:
                same.add(plan)
        del ours
    steps.clear()
    together = _errors(alone.start(whole, name, weights)(batch), double, double, whole.plan(name)).ours if same else {}
    found: dict[str, Mapping[str, float]] = {}
    for plan in plans:
        expected = _of_plan(double, pack.plan(plan))
        if plan in same:
            found[plan] = {tensor: together[tensor] for tensor in expected}
        else:
            step = alone.start(pack, plan, weights)
            found[plan] = _errors(step(batch), expected, expected, pack.plan(plan)).ours
    return found


def _jolted(batch: Batch) -> Batch:
    noise = np.random.default_rng(0).standard_normal(batch.images.shape, np.float32)
    return batch._replace(images=batch.images * (1 + np.float32(JOLT) * noise))


def _require_explained(
    info: PlanInfo, seen: Sequence[Errors], exact: Mapping[str, float], sway: float, forward: Forward,
    names: tuple[str, str],
) -> None:  # fmt: skip
    """No batch was without a kink: the graph itself, in float64, must do what the twin did on the last of them.

    ``exact`` tells how far it is from that, ``sway`` how far the twin moves when the images are jolted: whether one
    program meets a kink and the other does not is chance. ``names`` are those of the engine and of the reference.

    Raises:
        GraphError: it does not, or in float32 it is farther from the twin than a kink explains.
    """
    within = EXACT * max(1.0, sway / JOLT)  # an ill-conditioned network amplifies rounding in float64, too
    bad = next((name for name, error in exact.items() if error > within), "")
    ours, theirs = (float(np.median([max(errors[k].values()) for errors in seen])) for k in (0, 1))
    differs = f"plan {info.name} differs from {names[1]} by"
    if bad:
        where, fix = (
            blame(forward, bad, info.bn_mode, np.random.default_rng(0)),
            "fix the rule in edge_sel/graphs/rules",
        )
        raise GraphError(f"{differs} {exact[bad]:.1e} at {bad}", where=where, fix=f"the pack was not written; {fix}")
    if not ours <= max(MULTIPLE * max(theirs, ROUNDING), sway):
        worst = max(seen[-1].ours, key=lambda name: seen[-1].ours[name])
        where = f"the graph is right in float64, what {names[0]} makes of it is not"
        raise GraphError(f"{differs} {ours:.1e} at {worst}", where=where, fix="another onnxruntime")


def _errors(ours: Arrays, reference: Arrays, twin: Arrays, plan: PlanInfo) -> Errors:
    largest = max((float(np.abs(twin[name]).max()) for name in plan.trainable), default=0.0)
    scales = dict.fromkeys(plan.trainable, NOISE * largest)
    for mean, variance in zip(plan.buffers[::2], plan.buffers[1::2], strict=True):
        scales[mean] = float(np.sqrt(np.abs(twin[variance]).max()))
    return Errors(*({n: _relative(found[n], twin[n], scales.get(n, 0.0)) for n in twin} for found in (ours, reference)))


def _relative(a: np.ndarray, b: np.ndarray, scale: float) -> float:
    """Difference relative to the tensor's largest value, or to ``scale`` where the tensor itself is only noise."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a.astype(np.float64) - b).max() / max(float(np.abs(b).max()), scale, 1e-12))


def blame(forward: Forward, bad: str, bn_mode: str, rng: np.random.Generator) -> str:
    """The operator whose rule is wrong: check each kind of node between the logits and the first bad weight."""
    if bad == "loss":
        return "the forward pass (an operator that ONNX Runtime computes differently)"
    suspects: list[Node] = []
    for node in reversed(forward.nodes):
        suspects.append(node)
        if bad in node.inputs:
            break
    smooth = _smooth_tensors(forward)
    checkable = [node for node in suspects if node.op in RULES and smooth.issuperset(_computed(forward, node))]
    for op, node in {(node.op, node.attribute("group", 1)): node for node in checkable}.items():
        error = _node_error(forward, node, bn_mode, rng)
        if error > RULE_TOLERANCE:
            return f"operator {op[0]}, node {node.name or node.outputs[0]} (its rule is off by {error:.1e})"
    names = sorted({node.op for node in suspects})
    return f"one of the operators {', '.join(names)}, each right on its own"


def _smooth_tensors(forward: Forward) -> set[str]:
    """Tensors of floats that follow the image or a weight: no shapes, indices or conditions."""
    smooth = {forward.input, *forward.parameters}
    for node in forward.nodes:
        if node.op not in STEPWISE and smooth.intersection(node.inputs):
            smooth.update(node.outputs)
    return smooth


def _computed(forward: Forward, node: Node) -> list[str]:
    return [name for name in node.inputs if name and name not in forward.initializers]


def _node_error(forward: Forward, node: Node, bn_mode: str, rng: np.random.Generator) -> float:
    computed = _computed(forward, node)
    arrays: dict[str, np.ndarray] = {}
    for name in node.inputs:
        if name in computed:
            arrays[name] = rng.standard_normal([2 if size is None else size for size in forward.shape(name)])
        elif name:
            arrays[name] = forward.initializers[name]
    wanted = [*computed, *node_parameters(forward, node)]
    return rule_error(node, arrays, wanted, bn_mode=bn_mode, rng=rng) if wanted else 0.0
