"""Which images a session takes: new classes, few images, too few images."""

import json
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

from edge_sel.data.folder import load_folder
from edge_sel.data.shifts import write_folder
from edge_sel.edge.progress import extend_head
from edge_sel.edge.train.schedule import fixed_schedule
from edge_sel.errors import DataError, UsageError
from tests.edge.sessions import StopAt, digits, of_counts, outcome, pack, session

MODEL = pack().manifest.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The ten digits, and two classes that the pack does not know."""
    root = tmp_path_factory.mktemp("data") / "images"
    write_folder(digits(120), root)
    rng = np.random.default_rng(0)
    for name, columns in (("bar", slice(6, 10)), ("Zero", slice(0, 0))):
        (root / name).mkdir()
        for number in range(24):
            pixels = rng.integers(80, 120, (16, 16, 3), dtype=np.uint8)
            pixels[:, columns] = rng.integers(10, 30)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def twelve(folder):
    return load_folder(folder, MODEL.image_size, classes=MODEL.classes, new_classes="extend")


def test_unknown_classes_are_refused_and_the_nearest_is_named(folder):
    with pytest.raises(DataError, match=r"Zero \(nearest: .*bar \(nearest: ") as caught:
        load_folder(folder, MODEL.image_size, classes=MODEL.classes)
    assert "--new-classes extend" in str(caught.value) and caught.value.exit_code == 4


def test_new_classes_alone_bring_no_new_statistics(twelve, tmp_path):
    """By these they would be told from the server's, of which there are no images, whatever they look like."""
    images = twelve.subset(np.flatnonzero(twelve.labels >= len(MODEL.classes)))
    result = session(tmp_path, images=images, plan="closed_form", forget=0.1).run()
    assert result["epochs"][0]["statistics"] == "old" and result["shipped"]
    memory = result["evidence"]["anchors"]
    assert memory["right"] >= 0.95 * memory["right_before"] and memory["images"] > 40


def test_two_new_classes_are_learnt(twelve, tmp_path):
    assert twelve.classes == (*MODEL.classes, "Zero", "bar")
    result = session(
        tmp_path, images=twelve, plan="bn,last", epochs=6, gate="off", curriculum="off", learning_rate=0.003,
        forget=0.67,
    ).run()  # fmt: skip
    assert result["shipped"]
    after = result["after"]["validation"]["classes"]
    assert result["before"]["validation"]["classes"]["bar"]["accuracy"] == 0 < after["bar"]["accuracy"]
    assert after["Zero"]["accuracy"] > 0
    model = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    logits = model.run(None, {"x": np.zeros((3, 3, 16, 16), np.float32)})[0]
    assert logits.shape == (3, 12)
    assert json.loads(model.get_modelmeta().custom_metadata_map["classes"]) == list(twelve.classes)
    weights = load_file(tmp_path / "weights.safetensors")
    assert [len(weights[name]) for name in MODEL.head] == [12, 12, 12, 12]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("plan", list(pack().manifest.plans))
def test_every_plan_takes_new_classes(plan, twelve, tmp_path):
    """With a threshold of 0 all that a plan may change is updated, the new rows of the head included."""
    result = session(tmp_path, images=twelve, plan=plan, gamma=0.0, gate="off", curriculum="off", epochs=1).run()
    (epoch,) = result["epochs"]
    weights, info = extend_head(pack().weights(), MODEL, 12), pack().plan(plan)
    values = {name: weights[name][: info.channels.get(name)].size for name in info.trainable}
    added = sum(weights[name].size - value.size for name, value in pack().weights().items())
    assert epoch["sparsity"] == pytest.approx(1 - sum(values.values()) / (MODEL.parameters + added))
    assert epoch["gradient_kept"] == (1.0 if info.trainable else 0.0)
    assert result["classes"] == list(twelve.classes)


def test_a_run_with_new_classes_can_be_resumed(twelve, tmp_path):
    given = {"images": twelve, "plan": "bn,last-c25"}
    session(tmp_path / "one", **given).run()
    session(tmp_path / "two", should_stop=StopAt(6), **given).run()
    session(tmp_path / "two", **given, resume=True).run()
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")


@given(extra=st.integers(0, 4))
def test_extending_keeps_what_is_known(extra):
    weights = pack().weights()
    wide = extend_head(weights, MODEL, 10 + extra)
    assert wide.keys() == weights.keys()
    for name, value in weights.items():
        assert wide[name].dtype == value.dtype
        assert wide[name][: len(value)].tobytes() == value.tobytes()
        if name in MODEL.head:
            assert len(wide[name]) == 10 + extra
            np.testing.assert_allclose(
                wide[name][10:], np.broadcast_to(value.mean(0), wide[name][10:].shape), rtol=1e-6
            )
        else:
            assert wide[name].shape == value.shape


@pytest.mark.parametrize("counts", [(2, 2), (2, 0, 3), (3, 3, 3, 3), (40, 2)], ids=str)
def test_two_images_of_a_class_are_enough(counts, tmp_path):
    """Two classes of two images are enough: one of each to learn from, one to judge by."""
    result = session(tmp_path, images=of_counts(*counts), gate="off").run()
    present = sum(count > 0 for count in counts)
    assert result["images"]["validation"] >= present
    assert result["images"]["train"] + result["images"]["validation"] == sum(counts)
    assert len(result["after"]["validation"]["classes"]) == present


@pytest.mark.parametrize(
    ("counts", "expected"), [((5,), "one class only \\(0\\)"), ((0, 7), "one class only \\(1\\)"), ((5, 1), "1: 1")]
)
def test_one_class_or_one_image_of_a_class_is_refused(counts, expected, tmp_path):
    with pytest.raises(DataError, match=expected) as caught:
        session(tmp_path / "out", images=of_counts(*counts)).run()
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()


def test_plans_in_the_order_named():
    schedule = fixed_schedule(pack(), " bn, last-c25 ,head,", 4)
    assert [(r.plan, r.epochs) for r in schedule.stages] == [("bn", 1), ("last-c25", 4), ("head", 4)]
    assert schedule.decide([], 1)[0].plan == "last-c25" and schedule.decide([], 3)[0] is None


def test_a_budget_needs_the_plan_whose_gradients_choose_its_channels():
    base = pack()
    kept = {name: info for name, info in base.manifest.plans.items() if name != "last"}
    without = base.with_manifest(replace(base.manifest, plans=kept))
    with pytest.raises(UsageError, match="no plan last"):
        fixed_schedule(without, "bn,last-c25", 1)


@pytest.mark.parametrize("plans", ["", " , ", "bn,lst", "bn;head"])
def test_unknown_plans_are_refused_with_the_packs_own(plans):
    with pytest.raises(UsageError, match="full-c25"):
        fixed_schedule(pack(), plans, 1)
