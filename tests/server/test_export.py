"""From checkpoint to pack; and what must happen to nothing that was there when that fails."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sel.data.dataset import normalise
from edge_sel.engines.ort import OrtEngine
from edge_sel.engines.torch import TorchEngine, add_deep_head
from edge_sel.errors import DataError, GraphError, UsageError
from edge_sel.graphs.rules.registry import RULES
from edge_sel.pack.manifest import OPTIMIZER_STATE
from edge_sel.pack.reader import open_pack
from edge_sel.server import export, warmup
from edge_sel.server.compile_plans import DEFAULT_PLANS
from edge_sel.server.export import export_pack
from edge_sel.server.onnx_reference import reference_step
from edge_sel.server.parity import (
    BATCH_SIZE,
    EXACT,
    MULTIPLE,
    ROUNDING,
    STEP,
    TRIES,
    Program,
    blame,
    check_parity,
    parity_batches,
    program_of,
)
from edge_sel.server.source import torch_model
from edge_sel.server.source.torch_model import from_checkpoint
from tests.server.conftest import CLASSES, NOW, noise_images


def everything_under(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def bent(op, index, factor=1.05):
    """The operator's rule with one of its gradients wrong by a factor."""
    right = RULES[op]

    def rule(g, node, dy):
        grads = right(g, node, dy)
        if grads[index] is not None:
            grads[index] = g.op("Mul", grads[index], g.scalar(factor))
        return grads

    return rule


def wrong_on_one_element(g, node, dy):
    """Of a convolution's weight gradient, the middle one of its thousand."""
    grads = RULES_CONV(g, node, dy)
    if grads[1] is not None:
        factors = np.ones(g.forward.shape(node.inputs[1]), np.float32)
        factors.flat[factors.size // 2] = 1.5
        grads[1] = g.op("Mul", grads[1], g.floats(factors))
    return grads


RULES_CONV = RULES["Conv"]


def relu_that_forgets_its_mask(g, node, dy):
    return [dy]


def batch_norm_that_ignores_the_statistics(g, node, dy):
    """Right with frozen statistics, wrong with the batch's: they depend on the input too."""
    right = RULES_BATCH_NORM
    grads = right(g, node, dy)
    if g.bn_mode == "batch" and grads[0] is not None:
        scale = node.inputs[1]
        inverse = g.op("Reciprocal", g.op("Sqrt", g.op("Add", g.saved(node.outputs[0])["variance"], g.scalar(1e-5))))
        gain = g.op("Reshape", g.op("Mul", scale, inverse), g.ints(1, -1, 1, 1))
        grads[0] = g.op("Mul", dy, gain)
    return grads


RULES_BATCH_NORM = RULES["BatchNormalization"]

WRONG = {
    "Relu": ("Relu", relu_that_forgets_its_mask, "affine"),
    "Conv, its input": ("Conv", bent("Conv", 0), "affine"),
    "Conv, its weight": ("Conv", bent("Conv", 1), "last"),
    "Conv, one element of its weight": ("Conv", wrong_on_one_element, "last"),
    "BatchNormalization, frozen": ("BatchNormalization", bent("BatchNormalization", 0), "affine"),
    "BatchNormalization, its scale": ("BatchNormalization", bent("BatchNormalization", 1), "affine"),
    "BatchNormalization, of the batch": ("BatchNormalization", batch_norm_that_ignores_the_statistics, "full"),
    "Gemm, its weight": ("Gemm", bent("Gemm", 1), "head"),
    "Gemm, its input": ("Gemm", bent("Gemm", 0), "affine"),
    "ReduceMean": ("ReduceMean", bent("ReduceMean", 0), "affine"),
}


@pytest.mark.sampled(11)
@pytest.mark.parametrize("wrong", WRONG)
def test_parity_refuses_a_wrong_rule_and_names_the_operator(wrong, warm, tmp_path, monkeypatch):
    op, rule, plan = WRONG[wrong]
    monkeypatch.setitem(RULES, op, rule)
    plans = tuple(dict.fromkeys(("head", plan)))
    with pytest.raises(GraphError) as error:
        export_pack(from_checkpoint(warm), noise_images(), tmp_path / "pack", plans=plans, now=NOW)
    assert error.value.what.startswith(f"plan {plan} differs from torch by")
    assert error.value.where is not None and error.value.where.startswith(f"operator {op}, node ")
    assert "not written" in error.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_forward_pass_is_not_blamed_on_a_rule(exported_forward, warm, tmp_path, monkeypatch):
    values = exported_forward.initializers
    broken = dataclasses.replace(
        exported_forward,
        nodes=tuple(
            dataclasses.replace(n, attributes={**n.attributes, "epsilon": 0.5}) if n.op == "BatchNormalization" else n
            for n in exported_forward.nodes
        ),
        initializers=values,
    )
    monkeypatch.setattr(torch_model, "export_forward", lambda model, size: broken)
    with pytest.raises(GraphError, match="at loss: the forward pass"):
        export_pack(from_checkpoint(warm), noise_images(), tmp_path / "pack", plans=("bn", "head"), now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_no_operator_is_blamed_when_every_rule_is_right(exported_forward):
    for bad in ("head.weight", "stem.conv.weight", "stages.1.0.norm1.bias"):
        for mode in ("frozen", "batch"):
            line = blame(exported_forward, bad, mode, np.random.default_rng(0))
            assert line.startswith("one of the operators ") and line.endswith("each right on its own")


@pytest.fixture(scope="module")
def exported(exports_once, warm, tmp_path_factory):
    """A pack in a folder and the same in a file."""
    folder = tmp_path_factory.mktemp("exported")
    for name in ("pack", "one.edgepack"):
        export_pack(from_checkpoint(warm), noise_images(), folder / name, plans=("head", "bn"), now=NOW)
    return folder


@pytest.mark.sampled(9)
@pytest.mark.parametrize("failure", (GraphError("refused"), KeyboardInterrupt(), MemoryError()))
@pytest.mark.parametrize("stage", ("calibrate_pack", "parity_batches", "write_pack"))
def test_a_failed_export_leaves_what_was_there(exported, warm, tmp_path, monkeypatch, stage, failure):
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    before = everything_under(tmp_path)

    def fail(*args, **options):
        raise failure

    monkeypatch.setattr(export, stage, fail)
    for name in ("pack", "one.edgepack", "new"):
        with pytest.raises(type(failure)):
            export_pack(from_checkpoint(warm), noise_images(), tmp_path / name, plans=("head",), now=NOW)
    assert everything_under(tmp_path) == before


def test_a_second_export_replaces_the_first(exported, warm, tmp_path):
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    for name in ("pack", "one.edgepack"):
        assert "bn" in open_pack(tmp_path / name).manifest.plans
        manifest = export_pack(from_checkpoint(warm), noise_images(), tmp_path / name, plans=("head",), now=NOW)
        assert list(manifest.plans) == list(open_pack(tmp_path / name).manifest.plans) == ["head"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.edgepack", "pack"]
    assert not (tmp_path / "pack" / "train-bn.onnx").exists()


def foreign_places(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"jpg")
    web = tmp_path / "extension"
    web.mkdir()
    (web / "manifest.json").write_text('{"name": "somebody else\'s", "manifest_version": 3}')
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "report.edgepack").write_text("no zip")
    (tmp_path / "folder.edgepack").mkdir()
    (tmp_path / "folder.edgepack" / "keep").write_text("keep")
    return [folder, web, tmp_path / "notes.txt", tmp_path / "report.edgepack", tmp_path / "folder.edgepack"]


def test_export_over_something_else_is_refused_before_any_work(warm, tmp_path, monkeypatch):
    places = foreign_places(tmp_path)
    before = everything_under(tmp_path)
    source = from_checkpoint(warm)
    monkeypatch.setattr(export, "compile_plans", lambda *given: pytest.fail("work was done"))
    for place in places:
        with pytest.raises(UsageError, match="is not a pack") as error:
            export_pack(source, noise_images(), place, now=NOW)
        assert error.value.where == str(place)
    assert everything_under(tmp_path) == before


def test_other_classes_are_refused(warm, tmp_path):
    images = noise_images(classes=("ant", "bee", "dog"))
    with pytest.raises(DataError, match=r"other classes.*ant, bee, dog"):
        export_pack(from_checkpoint(warm), images, tmp_path / "pack", now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_unknown_plans_and_optimizers_are_usage_errors(warm, tmp_path):
    with pytest.raises(UsageError, match="unknown plan"):
        export_pack(from_checkpoint(warm), noise_images(), tmp_path / "pack", plans=("head", "everything"), now=NOW)
    with pytest.raises(UsageError, match="unknown optimizer"):
        export_pack(from_checkpoint(warm), noise_images(), tmp_path / "pack", optimizer="adagrad", now=NOW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ("mobilenet-c", "simple-cnn"))
def test_every_kind_of_model_exports_with_the_default_plans(make_checkpoint, tmp_path, name):
    notes: list[str] = []
    path = make_checkpoint(name)
    manifest = export_pack(from_checkpoint(path), noise_images(), tmp_path / "pack", now=NOW, note=notes.append)
    wanted = set(DEFAULT_PLANS) - ({"bn"} if name == "simple-cnn" else set())
    assert set(manifest.plans) == wanted
    assert [line for line in notes if "left out" in line] == (
        [
            "plan bn left out: plan bn finds nothing to change in this graph",
            "plan closed_form left out: the network has no batch statistics",
        ]
        if name == "simple-cnn"
        else []
    )
    ours, torchs = (manifest.parity[key] for key in ("error_to_float64", "error_of_reference"))
    assert ours.keys() == torchs.keys() == wanted and all(0 < error < 1e-2 for error in torchs.values())
    assert all(0 < error <= MULTIPLE * max(torchs[name], ROUNDING) for name, error in ours.items())
    model, info = warmup.load(path)
    assert manifest.model.classes == CLASSES and manifest.model.name == name and manifest.model.flip
    model = add_deep_head(model, manifest.model.taps, len(CLASSES))
    assert manifest.model.parameters == sum(p.numel() for p in model.parameters())
    assert (manifest.model.mean, manifest.model.std, manifest.model.image_size) == (info.mean, info.std, (16, 16))
    assert manifest.provenance["created"] == "2024-01-01T00:00:00+00:00"
    pack = open_pack(tmp_path / "pack")
    weights = pack.weights()
    expected = {n: v.numpy() for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert weights.keys() == expected.keys()
    assert all(weights[n].tobytes() == v.tobytes() for n, v in expected.items())
    x = normalise(noise_images().read(np.arange(5)), info.mean, info.std)
    with torch.no_grad():
        logits = model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(OrtEngine(1).predictor(pack, weights)(x), logits, rtol=1e-3, atol=1e-4)


def test_the_same_export_twice_is_the_same_file(warm, tmp_path):
    for name in ("a.edgepack", "b.edgepack"):
        export_pack(from_checkpoint(warm), noise_images(), tmp_path / name, plans=("head", "last-c25"), now=NOW)
    assert (tmp_path / "a.edgepack").read_bytes() == (tmp_path / "b.edgepack").read_bytes()


@pytest.fixture(scope="module")
def checked(exports_once, warm, tmp_path_factory):
    """A pack, and batches to check it on."""
    path = tmp_path_factory.mktemp("checked") / "pack"
    export_pack(from_checkpoint(warm), noise_images(), path, plans=("bn", "head", "full"), now=NOW)
    pack = open_pack(path)
    return pack, parity_batches(noise_images(), pack.manifest.model, np.random.default_rng(0))


ENGINES = {"reference": TorchEngine(1, device="cpu"), "twin": TorchEngine(1, device="cpu", dtype=torch.float64)}
TWINS = {name: program_of(engine) for name, engine in ENGINES.items()}


def test_parity_reports_what_two_like_engines_differ_by(checked, source_forward):
    pack, batches = checked
    same = check_parity(pack, source_forward, batches, engine=ENGINES["reference"], **TWINS)
    assert same.keys() == {"bn", "head", "full"} and all(0 < ours == torch < 1e-4 for ours, torch in same.values())
    other = check_parity(pack, source_forward, batches, engine=OrtEngine(1), **TWINS)
    assert all(0 < ours <= MULTIPLE * max(torch, ROUNDING) for ours, torch in other.values())
    exact = check_parity(pack, source_forward, batches, engine=ENGINES["twin"], **TWINS)
    assert all(ours == 0 for ours, _ in exact.values())


def test_parity_batches_differ(checked):
    pack, batches = checked
    assert len(batches) == TRIES and all(len(field) == BATCH_SIZE for batch in batches for field in batch)
    assert len({batch.images.tobytes() for batch in batches}) > TRIES // 2
    given = normalise(noise_images().read(np.arange(12)), pack.manifest.model.mean, pack.manifest.model.std)
    known = {image.tobytes() for image in given}
    for batch in batches:
        assert known.issuperset(image.tobytes() for image in batch.images)
        assert (batch.weights > 0).all() and len(set(batch.weights.tolist())) == BATCH_SIZE


def test_parity_batches_do_not_have_the_images_own_labels(checked):
    """By these a model that has every image right would have no gradient to compare."""
    pack, batches = checked
    images, model = noise_images(), pack.manifest.model
    given = normalise(images.read(np.arange(len(images))), model.mean, model.std)
    own = {image.tobytes(): label for image, label in zip(given, images.labels, strict=True)}
    wrong = [own[image.tobytes()] != label for batch in batches for image, label in zip(*batch[:2], strict=True)]
    assert np.mean(wrong) > 0.3
    labels = np.concatenate([batch.labels for batch in batches])
    assert labels.dtype == np.int64 and set(labels.tolist()) <= set(range(len(model.classes)))


class KinkedEngine(TorchEngine):
    """Differs on the first batches that every trainer sees, as a rounding error across a kink makes it."""

    def __init__(self, kinked: int) -> None:
        super().__init__(1, device="cpu")
        self.kinked = kinked

    def trainer(self, pack, plan, weights):
        trainer = super().trainer(pack, plan, weights)
        step, state = trainer.step, trainer.state
        steps = 0

        def counting_step(batch, hyper):
            nonlocal steps
            steps += 1
            return step(batch, hyper)

        def kinked_state():
            factor = 1.05 if 0 < steps <= self.kinked else 1.0
            return {name: value * factor if name.startswith("momentum::") else value for name, value in state().items()}

        trainer.step, trainer.state = counting_step, kinked_state
        return trainer


def test_a_batch_with_rounding_across_a_kink_refuses_no_right_graph(checked, source_forward):
    pack, batches = checked
    report = check_parity(pack, source_forward, batches, engine=KinkedEngine(TRIES - 1), **TWINS)
    assert all(ours < 1e-4 for ours, _ in report.values())
    with pytest.raises(GraphError, match=r"plan head differs from torch by 5\.0e-02.*what torch makes of it"):
        check_parity(pack, source_forward, batches, engine=KinkedEngine(TRIES), **TWINS)


@pytest.mark.parametrize(("sway", "refused"), [(0.06, False), (0.04, True)])
def test_a_kink_that_the_other_program_does_not_meet_is_told_by_a_jolt_of_the_images(
    sway, refused, checked, source_forward
):
    """ResNet-50 at 224 pixels was refused or not by the draw of the images."""
    pack, batches = checked

    def near_a_kink(*given):
        step = TWINS["twin"].start(*given)

        def first_step(batch):
            jolted = not any(np.array_equal(batch.images, known.images) for known in batches)
            return {name: value * (1 + sway) if jolted else value for name, value in step(batch).items()}

        return first_step

    programs = TWINS | {"twin": Program("torch in float64", near_a_kink)}
    with pytest.raises(GraphError, match="what torch makes of it") if refused else contextlib.nullcontext():
        report = check_parity(pack, source_forward, batches, engine=KinkedEngine(TRIES), **programs)
        assert max(found.ours for found in report.values()) == pytest.approx(0.05, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ("sgd", "adam"))
def test_a_step_in_float64_is_that_of_torch_in_float64(optimizer, warm, tmp_path):
    """Of every plan: with a frozen backbone, with guilty channels, with batch statistics."""
    export_pack(
        from_checkpoint(warm), noise_images(), tmp_path / "pack", plans=DEFAULT_PLANS, optimizer=optimizer, now=NOW
    )
    pack = open_pack(tmp_path / "pack")
    batch = parity_batches(noise_images(), pack.manifest.model, np.random.default_rng(0))[0]
    for plan in pack.manifest.plans:
        found = reference_step(pack, plan, pack.weights(), batch, STEP)
        trainer = ENGINES["twin"].trainer(pack, plan, pack.weights())
        losses, state = trainer.step(batch, STEP).losses, trainer.state()
        np.testing.assert_allclose(found["loss"], losses, rtol=1e-9)
        slot = OPTIMIZER_STATE[optimizer][0]
        for name in (*(f"{slot}::{name}" for name in trainer.plan.trainable), *trainer.plan.buffers):
            largest = np.abs(state[name]).max()
            np.testing.assert_allclose(found[f"new::{name}"], state[name], rtol=0, atol=EXACT * largest, err_msg=name)


@pytest.mark.slow
def test_where_every_batch_has_a_kink_the_graph_must_be_right_in_float64(
    checked, source_forward, warm, tmp_path, monkeypatch
):
    """Then torch in float32 is off by percents, and its error alone would hide much."""
    pack, batches = checked
    report = check_parity(
        pack, source_forward, batches, engine=OrtEngine(1), **TWINS | {"reference": program_of(KinkedEngine(TRIES))}
    )
    assert all(report[plan].ours < 1e-3 < 0.04 < report[plan].reference for plan in ("head", "full"))
    monkeypatch.setitem(RULES, "Gemm", bent("Gemm", 1, 1.01))
    unchecked = dataclasses.replace(from_checkpoint(warm), check=lambda *_: {})
    export_pack(unchecked, noise_images(), tmp_path / "wrong", plans=("head",), now=NOW)
    with pytest.raises(GraphError, match=r"by 1\.0e-02 at (deep_)?head\.weight: operator Gemm, node"):
        check_parity(
            open_pack(tmp_path / "wrong"), source_forward, batches, engine=OrtEngine(1),
            **TWINS | {"reference": program_of(KinkedEngine(TRIES))},
        )  # fmt: skip
