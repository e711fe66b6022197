"""Beside the reference: claims, curves, the front, and an edge run's joules."""

import json
from pathlib import Path

import pytest

from edge_sel.reference import results


@pytest.fixture
def reference(tmp_path):
    """Results of two systems, two seeds each, as ``edge-sel reference`` writes them."""
    root = tmp_path / "reference"
    for system, energy_j, final in (("baseline", 100.0, 0.9), ("sel-95", 40.0, 0.8)):
        for seed in (0, 1):
            write(root, system, seed, energy_j + seed, final + 0.01 * seed)
    return root


def write(root, system, seed, energy_j, final, epochs=3):
    rows = [
        {"epoch": n + 1, "visited": 100, "test_full": final * (n + 1) / epochs, "train_loss": 1.0 / (n + 1), "sparsity": 0.5,
         "executed_flops_t": 0.1, "train_acc": 0.5, "E_cat": 1.0 / (n + 1), "E_dog": 0.5, "energy_source": "modelled",
         "phase": "train"}
        for n in range(epochs)
    ]  # fmt: skip
    summary = {
        "epochs": epochs, "test_full": final, "test_100": final, "nominal_flops_t": 1.0, "executed_flops_t": 0.3,
        "time_s": 10.0, "last_sparsity": 0.5, "active_rate": 0.5, "energy_j": energy_j, "net_j": energy_j / 2,
        "energy_source": "modelled", "meter": "psutil", "throttled": [],
        "per_class": {"cat": {"acc": 0.7, "E": 0.3}, "dog": {"acc": 0.9, "E": 0.1}},
    }  # fmt: skip
    folder = root / system / f"seed-{seed}"
    folder.mkdir(parents=True)
    result = {
        "schema": 1, "system": system, "seed": seed, "scale": "smoke", "label": "scale smoke: NOT comparable",
        "data_name": "cifar10", "weights": "random", "summary": summary, "rows": rows, "identity": {},
        "environment": {"device": "cpu", "torch": "2.13.0"},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(result))
    assert results.read_finished(folder) is not None


def test_front_spread_claims_and_curves(reference, report):
    page = report(reference=reference)
    assert "NOT comparable" in page.text and "85.0" not in page.text.split("Each system")[0].split("baseline")[0]
    assert "baseline 2 90.5 % ± 0.7" in page.text and "On the front: sel-95, baseline." in page.text
    for words in ("Test accuracy over epochs", "Training loss", "Share of weights not updated", "Embarrassment"):
        assert words in page.text
    assert "SEL benchmark README" in page.text and "no SEL benchmark README" in page.text


def test_a_run_stands_beside_it(reference, finished, report, sketched):
    page = report(finished, reference=reference)
    epochs = json.loads((Path(finished) / "run.json").read_text())["epochs"]
    for epoch in epochs:
        assert f"edge, finished {epoch['epoch']} ({epoch['plan']})" in page.text
    assert "reference, baseline mean 100" in page.text and "Did it work?" in page.text


def test_without_joules_flops_take_their_place(reference, report):
    for path in reference.glob("*/*/run.json"):
        result = json.loads(path.read_text())
        result["summary"] |= {"energy_j": None, "net_j": None, "energy_source": "unavailable"}
        path.write_text(json.dumps(result))
    assert "Test accuracy over executed FLOPs" in report(reference=reference).text
