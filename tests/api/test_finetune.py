"""``edge_sel.finetune`` and its kin: what the commands call, from Python."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edge_sel
from edge_sel.errors import DataError, UsageError
from edge_sel.pack.reader import builtin_pack
from tests.edge.sessions import digits, tree

SHORT = {"plan": "head", "epochs": 1, "threads": 1, "meter": "psutil", "profile": "cloud-vm"}


@pytest.fixture
def images():
    return digits(120)


def test_a_run_from_images_in_memory(tmp_path, images):
    events = []
    run = edge_sel.finetune(
        None,
        images,
        out=tmp_path / "run",
        test=digits(60, "test"),
        listener=events.append,
        **SHORT | {"plan": "closed_form"},
    )
    assert run.done and run.model.is_file() and run.folder == tmp_path / "run"
    assert 0 <= run.accuracy_before < run.accuracy_after <= 1
    assert run.energy_source == "modelled" and run.energy_j > 0
    assert {"started", "epoch"} <= {event["event"] for event in events}
    assert run.summary["source"] == "120 images in memory"


def test_paths_may_be_texts_and_the_pack_an_opened_one(tmp_path, images):
    from edge_sel.data.shifts import write_folder

    write_folder(images, tmp_path / "images")
    by_path = edge_sel.finetune(None, str(tmp_path / "images"), out=str(tmp_path / "a"), **SHORT)
    opened = edge_sel.finetune(builtin_pack(), tmp_path / "images", out=tmp_path / "b", **SHORT)
    assert by_path.model.read_bytes() == opened.model.read_bytes()


def test_a_stopped_run_is_resumed(tmp_path, images):
    stopped = edge_sel.finetune(None, images, out=tmp_path / "run", should_stop=lambda: "enough", **SHORT)
    assert not stopped.done and stopped.summary["stopped"] == "enough"
    assert edge_sel.finetune(None, images, out=tmp_path / "run", resume=True, **SHORT).done


def test_labels_follow_the_names_of_the_classes_whatever_their_order(tmp_path, images):
    turned = edge_sel.ImageSet.from_arrays(
        images.read(np.arange(len(images))), 9 - images.labels, images.classes[::-1], images.ids
    )
    runs = [edge_sel.finetune(None, each, out=tmp_path / str(n), **SHORT) for n, each in enumerate((images, turned))]
    assert runs[0].model.read_bytes() == runs[1].model.read_bytes()


def renamed(images, name):
    names = [name if each == "7" else each for each in images.classes]
    return edge_sel.ImageSet.from_arrays(images.read(np.arange(len(images))), images.labels, names)


def test_new_classes_are_refused_unless_they_may_extend_the_model(tmp_path, images):
    with pytest.raises(DataError, match="classes that the model lacks: seven"):
        edge_sel.finetune(None, renamed(images, "seven"), out=tmp_path / "run", **SHORT)
    run = edge_sel.finetune(None, renamed(images, "seven"), out=tmp_path / "run", new_classes="extend", **SHORT)
    assert run.summary["classes"] == [*"0123456789", "seven"]


WRONG = {
    "an unknown setting": ({"epoch": 3}, UsageError, "epoch"),
    "a setting out of its range": ({"epochs": 0}, UsageError, "epochs"),
    "a folder that is not there": ({"images": "nowhere"}, DataError, "nowhere"),
    "images of another size": ({"images": edge_sel.ImageSet.from_arrays(np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 0, 1], "01")},
                               DataError, "8 x 8 pixels: the model takes 16 x 16"),
    "no such pack": ({"pack": "nothing"}, edge_sel.EdgeSelError, "nothing"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_bad_input_is_one_line_and_leaves_nothing(what, tmp_path, images, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, kind, message = WRONG[what]
    given = {"pack": None, "images": images, **SHORT, **given}
    with pytest.raises(kind, match=message) as caught:
        edge_sel.finetune(given.pop("pack"), given.pop("images"), out="run", **given)
    assert len(str(caught.value).splitlines()) == 1 and tree(tmp_path) == {}


def test_the_monitor_measures_any_code_and_windows_of_it():
    with edge_sel.EnergyMonitor("psutil", profile="cloud-vm") as monitor:
        with monitor.window("first") as first:
            sum(range(10**6))
        with pytest.raises(KeyError), monitor.window("second") as second:
            raise KeyError
        with pytest.raises(RuntimeError, match="still open"):
            _ = monitor.figure
    assert monitor.figure.source == "modelled" and first.figure.seconds > 0 and second.figure.seconds > 0
    assert 0 < first.total_j <= monitor.total_j + 1e-9
    assert first.figure.seconds + second.figure.seconds <= monitor.figure.seconds


def test_no_meter_is_no_guess():
    with edge_sel.EnergyMonitor("jetson", profile="cloud-vm") as monitor:
        pass
    assert monitor.total_j is None and monitor.figure.source == "unavailable"
    assert [probe.usable for probe in monitor.probes] == [False]


def test_a_classifier_of_a_run(tmp_path, images):
    run = edge_sel.finetune(None, images, out=tmp_path / "run", forget=1.0, **SHORT)
    pixels = images.read(np.arange(5))
    found = edge_sel.open_classifier(run.folder).probabilities(pixels)
    assert found.shape == (5, 10) and np.allclose(found.sum(1), 1)
    assert edge_sel.open_pack(str(Path(builtin_pack().path))).digest == builtin_pack().digest


def test_every_public_name_is_there_and_documented_and_comes_from_where_it_says():
    assert set(edge_sel.__all__) == {"__version__", *edge_sel.PLACES} == set(dir(edge_sel))
    for name, place in edge_sel.PLACES.items():
        value = getattr(edge_sel, name)
        assert value.__module__ == f"edge_sel.{place}" and inspect.getdoc(value), name
    with pytest.raises(AttributeError, match="nothing"):
        _ = edge_sel.nothing


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, edge_sel; dir(edge_sel); print(sorted({'numpy', 'click', 'onnxruntime', 'onnx', 'PIL'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
