"""The validation set: what ships is never worse than what was there, and what judges is never trained on."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_sel.edge import judge as judge_module
from edge_sel.edge.judge import Evaluation, evaluate_logits
from edge_sel.edge.limits import Decision, Limit
from edge_sel.engines.ort import OrtEngine
from tests.edge.recording import Recording
from tests.edge.sessions import Tape, digits, of_counts, pack, session, without_anchors


def ruined(out, **given):
    return session(out, plan="full", learning_rate=10.0, gate="off", curriculum="off", **given)


def test_a_destroyed_model_stays_behind(tmp_path):
    tape = Tape()
    result = ruined(tmp_path, listener=tape).run()
    accuracy = result["accuracy"]
    assert accuracy["validation_after"] <= accuracy["validation_before"]
    assert result["shipped"] is False
    assert json.loads((tmp_path / "run.json").read_text())["shipped"] is False
    assert [event["shipped"] for event in tape.of("decided")] == [False]
    shipped, original = load_file(tmp_path / "weights.safetensors"), pack().weights()
    assert shipped.keys() == original.keys()
    for name, value in original.items():
        assert shipped[name].dtype == value.dtype and shipped[name].tobytes() == value.tobytes()


def test_the_model_file_of_a_failed_run_is_the_original(tmp_path):
    import onnxruntime as ort

    ruined(tmp_path).run()
    model = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((5, 3, 16, 16)).astype(np.float32)
    expected = OrtEngine(1).predictor(pack(), pack().weights())(images)
    np.testing.assert_allclose(model.run(None, {"x": images})[0], expected, rtol=1e-4, atol=1e-4)


def test_a_run_that_improves_the_model_ships_it(tmp_path):
    result = session(tmp_path, test=digits(100, "test"), forget=0.67).run()
    accuracy = result["accuracy"]
    assert result["shipped"] is True
    assert accuracy["validation_after"] > accuracy["validation_before"]
    assert accuracy["on"] == "test" and accuracy["after"] > accuracy["before"] + 0.3
    original = pack().weights()
    shipped = load_file(tmp_path / "weights.safetensors")
    assert any(shipped[name].tobytes() != value.tobytes() for name, value in original.items())


class Stop(Limit):
    """Ends the run at the boundary after its first step, so that its weights are judged as they are then."""

    name = stopped = "test"
    looks = 0

    def check(self, readings, forecast, *, paused, ending):
        self.looks += 1
        return Decision("stop" if self.looks > 1 else "go")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("before", "after"),
    [(1.0, 1.1), (1.0, 1.0), (1.0, 0.9), (float("nan"), 1.0), (1.0, float("nan")), (1.0, float("inf"))],
)
@pytest.mark.parametrize("limited", [False, True], ids=["done", "stopped by a limit"])
def test_whatever_did_not_lower_the_loss_is_undone(limited, before, after, tmp_path, monkeypatch):
    """Also where a limit ended the plan before its time. Numbers are the logit of the right class, others have 0."""
    values = iter([before])

    def evaluate(predict, images, model, pause_if_due, *, batch_size) -> Evaluation:
        logits = np.eye(len(images.classes), dtype=np.float32)[images.labels]
        value = next(values, after)
        logits[logits > 0] = value
        return evaluate_logits(logits, images.labels)

    monkeypatch.setattr(judge_module, "evaluate", evaluate)
    plans = {name: pack().manifest.plans[name] for name in ("bn", "full")}
    whole = pack().with_manifest(replace(pack().manifest, plans=plans))  # no head in closed form: no features judge
    with np.errstate(invalid="ignore"):
        result = session(tmp_path, base=whole, plan="bn", limits=[Stop()] if limited else []).run()
    assert result["stopped"] == ("test" if limited else "done")
    better = after == 1.1 or not np.isfinite(before)
    (entry,) = result["epochs"] if not limited else ({"kept": None},)
    assert entry["kept"] in (better, None)
    kept = (result["after"]["validation"]["loss"], result["before"]["validation"]["loss"])
    assert (kept[0] != kept[1]) == better


def test_test_images_influence_nothing(tmp_path):
    with_test = session(tmp_path / "with", test=digits(100, "test")).run()
    without = session(tmp_path / "without").run()
    for name in ("weights.safetensors", "model.onnx"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert without["accuracy"]["on"] == "validation" and with_test["accuracy"]["on"] == "test"
    for key in ("validation_before", "validation_after"):
        assert with_test["accuracy"][key] == without["accuracy"][key]


def test_validation_and_training_images_are_disjoint_and_all(tmp_path):
    engine, images = Recording(), digits()
    given = {"plan": "bn,affine", "gate": "off", "curriculum": "off"}
    result = session(tmp_path, images=images, engine=engine, base=without_anchors(), **given).run()
    engine.calls.pop()  # the last look is at the written model, with noise
    learnt, scored, judged = engine.images("step"), engine.images("score"), engine.images("backbone")
    assert not judged & (learnt | scored)
    assert len(judged) == result["images"]["validation"] and len(scored | learnt) == result["images"]["train"]
    assert len(judged | scored | learnt) == len(images)


def test_somebody_judges_however_small_the_share(tmp_path):
    """The same image for every seed."""
    few = of_counts(*[4] * 10)
    judges = set()
    for seed in range(3):
        built = session(tmp_path / str(seed), images=few, validation_fraction=1e-6, plan="bn", seed=seed)
        judges |= set(built.judge.validation.ids)
    assert len(judges) == 1


def test_accuracy_and_embarrassment_are_those_computed_by_hand():
    logits = np.array([[2.0, 0, 0], [0, 3, 0], [5, 0, 0], [0, 0, 1]], np.float32)
    figures = evaluate_logits(logits, np.array([0, 1, 1, 0]))
    assert figures.accuracy == 0.5 and figures.images == 4
    assert figures.class_accuracy[:2].tolist() == [0.5, 0.5] and np.isnan(figures.class_accuracy[2])
    softened = logits.astype(np.float64) / 1.5
    loss = np.log(np.exp(softened).sum(1)) - softened[range(4), [0, 1, 1, 0]]
    np.testing.assert_allclose(figures.embarrassment[:2], [(loss[0] + loss[3]) / 2, (loss[1] + loss[2]) / 2], rtol=1e-6)
    assert np.isnan(figures.embarrassment[2])
    np.testing.assert_allclose(figures.confidence[:2], np.maximum(0, 1 - figures.embarrassment[:2]))
    assert set(figures.to_json(("a", "b", "c"))["classes"]) == {"a", "b"}
