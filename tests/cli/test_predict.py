"""``edge-sel predict``: classes with probabilities, by a run's model or a pack, of images prepared as in training."""

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_sel.data.dataset import normalise
from edge_sel.data.folder import load_folder
from edge_sel.edge.classifier import open_classifier
from edge_sel.engines.ort import OrtEngine
from edge_sel.pack.reader import open_pack
from tests.cli.shell import PACK

SHORT = ["--plan", "bn", "--threads", 1]


@pytest.fixture
def run(edge_sel, here, digits_folder):
    """A finished run in ``run``."""
    assert (
        edge_sel("finetune", PACK, "--data", digits_folder, "--out", "run", "--json", "--forget", "1", *SHORT).code == 0
    )
    return here / "run"


def predicted(edge_sel, *arguments):
    result = edge_sel("predict", *arguments, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_images_are_prepared_as_in_training_to_the_bit(digits_folder):
    pack = open_pack(Path(PACK))
    model, seen = pack.manifest.model, []
    images = load_folder(digits_folder, model.image_size, classes=model.classes)
    classifier = open_classifier(Path(PACK), 1)
    object.__setattr__(classifier, "logits", lambda x: (seen.append(x), np.zeros((len(x), 10)))[1])
    rows = np.arange(20)
    from edge_sel.data.images import read_image

    classifier.probabilities(
        np.stack([read_image(digits_folder / images.ids[row], classifier.image_size) for row in rows])
    )
    trained_on = normalise(images.read(rows), model.mean, model.std)
    assert seen[0].tobytes() == trained_on.tobytes()


def test_probabilities_of_a_pack_are_the_softmax_of_its_logits(edge_sel, digits_folder):
    pack = open_pack(Path(PACK))
    model = pack.manifest.model
    images = load_folder(digits_folder, model.image_size, classes=model.classes)
    logits = OrtEngine(1).predictor(pack, pack.weights())(normalise(images.read(np.arange(5)), model.mean, model.std))
    files = [digits_folder / images.ids[row] for row in range(5)]
    summary = predicted(edge_sel, PACK, *files)
    assert summary["classes"] == list(model.classes)
    for row, image in zip(logits.astype(np.float64), summary["images"], strict=True):
        expected = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        np.testing.assert_allclose(list(image["probabilities"].values()), expected, atol=1e-5)
        assert image["class"] == model.classes[row.argmax()] and image["probability"] == pytest.approx(
            expected.max(), abs=1e-5
        )


def test_a_run_is_named_by_its_folder_or_by_its_model(edge_sel, run, digits_folder):
    by_folder, by_file = (predicted(edge_sel, name, digits_folder)["images"] for name in (run, run / "model.onnx"))
    assert by_folder == by_file and len(by_folder) == 120
    summary = json.loads((run / "run.json").read_text())
    right = np.mean([image["class"] == Path(image["path"]).parent.name for image in by_folder])
    before = np.mean(
        [
            image["class"] == Path(image["path"]).parent.name
            for image in predicted(edge_sel, PACK, digits_folder)["images"]
        ]
    )
    assert summary["shipped"] == (right != before)


def test_csv_has_a_column_for_each_class(edge_sel, digits_folder):
    result = edge_sel("predict", PACK, digits_folder / "3", "--csv")
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert result.code == 0 and len(rows) == len(list((digits_folder / "3").iterdir()))
    for row in rows:
        figures = {name: float(row[f"p_{name}"]) for name in "0123456789"}
        assert row["class"] == max(figures, key=figures.__getitem__) and sum(figures.values()) == pytest.approx(
            1, abs=1e-5
        )


def test_a_camera_pipes_a_frame(edge_sel, digits_folder, monkeypatch):
    file = next((digits_folder / "7").iterdir())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    (piped,) = predicted(edge_sel, PACK, "-")["images"]
    (named,) = predicted(edge_sel, PACK, file)["images"]
    assert piped.pop("path") == "-" and named.pop("path") == str(file) and piped == named


def test_what_cannot_be_read_is_skipped_and_told(edge_sel, here, digits_folder):
    (here / "some").mkdir()
    (here / "some" / "damaged.jpg").write_bytes(b"\xff\xd8 no")
    (here / "some" / "notes.txt").write_text("no image")
    (here / "some" / "good.png").write_bytes(next((digits_folder / "7").iterdir()).read_bytes())
    result = edge_sel("predict", PACK, "some", "missing.png")
    assert result.code == 0 and result.out.startswith("some/good.png: ") and len(result.out.splitlines()) == 1
    assert len(result.err.splitlines()) == 3 and "missing.png: missing" in result.err
    summary = predicted(edge_sel, PACK, "some", "missing.png")
    assert [each["path"] for each in summary["skipped_images"]] == ["some/notes.txt", "some/damaged.jpg", "missing.png"]


BAD = {
    "no image": ([PACK, "missing.png"], "not one image could be read: missing.png: missing"),
    "an empty folder": ([PACK, "empty"], "not one image could be read"),
    "no model": (["nothing", "x.png"], "nothing"),
    "a folder that is no run": (["empty", "x.png"], "empty"),
    "a foreign model": (["foreign.onnx", "x.png"], "names neither its classes"),
    "no onnx file": (["broken.onnx", "x.png"], "broken.onnx"),
    "both forms": ([PACK, "x.png", "--csv", "--json"], "give one of them"),
    "a run that has not ended": (["cut", "x.png"], "no model.onnx"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(what, edge_sel, here):
    (here / "empty").mkdir()
    (here / "cut").mkdir()
    (here / "cut" / "run.json").write_text("{}")
    x, y = (onnx.helper.make_tensor_value_info(name, 1, ["n", 3, 4, 4]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "foreign", [x], [y])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), "foreign.onnx"
    )
    (here / "broken.onnx").write_bytes(b"not a model")
    arguments, message = BAD[what]
    result = edge_sel("predict", *arguments)
    assert result.code not in (0, 1) and result.out == "" and len(result.err.splitlines()) == 1, result.err
    assert message in result.err


def test_a_cache_that_may_not_be_read_is_no_obstacle(run, digits_folder, here, monkeypatch):
    """A service whose user may not look into the cache once died of it."""
    from edge_sel.edge import classifier

    class Barred(type(Path())):
        def exists(self, *given, **more):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(classifier, "cache_folder", lambda *given: Barred(here / "cache"))
    assert open_classifier(run, 1).classes
