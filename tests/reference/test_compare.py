"""Claims beside results."""

import copy
import csv
import json
from pathlib import Path

import pytest

import edge_sel.reference
from edge_sel.cli.reference import print_comparison, print_edge, print_overview
from edge_sel.errors import BadInputError
from edge_sel.reference.results import (
    compare_claims,
    edge_epochs,
    joules_per_point,
    list_results,
    load_claims,
    overview,
    reference_epochs,
)
from edge_sel.reference.systems import SYSTEMS, find_scale

PUBLISHED = Path(edge_sel.reference.__file__).parent / "published"


def result(system="sel-95", *, accuracy=0.8, energy_j=400.0, scale="full", data="cifar10", rows=2, label=None):
    per_class = {name: {"acc": 0.5, "E": 0.4, "C": 0.6} for name in ("airplane", "cat")}
    summary = {
        "epochs": rows, "test_full": accuracy, "test_100": accuracy, "nominal_flops_t": 0.1, "executed_flops_t": 2000.0,
        "energy_j": energy_j, "net_j": None, "time_s": 10.0, "energy_source": "measured", "per_class": per_class,
        "throttled": [], "meter": "nvml", "active_rate": 0.5, "last_sparsity": 0.9, "sparsity": 0.8, "train_acc": 0.7, "train_loss": 0.3,
    }  # fmt: skip
    curve = [{"test_full": 0.1 * (n + 1), "train_loss": 1.0, "visited": 500} for n in range(rows)]
    return {
        "system": system,
        "seed": 0,
        "identity": {"system": system},
        "scale": scale,
        "label": find_scale(scale).label if label is None else label,
        "data_name": data,
        "weights": "random",
        "summary": summary,
        "rows": curve,
    }


def test_every_claim_is_of_a_system_that_exists_and_has_a_source():
    claims = load_claims()
    assert {claim.system for claim in claims} <= SYSTEMS.keys() and all(claim.source for claim in claims)
    sources = {
        "sel-95",
        "warmup-sel",
        "baseline",
        "lottery-ticket",
        "sel-v3",
        "ast",
        "ast-6",
        "ast-two-stage",
        "spl",
        "mcl",
        "random-mini-batch",
    }
    assert sources <= {claim.system for claim in claims}


@pytest.mark.parametrize(
    ("system", "metric", "data", "value"),
    [
        ("baseline", "nominal_flops_t", "cifar10", 33.521886),
        ("baseline", "test_full", "cifar10", 0.9252),
        ("lottery-ticket", "time_s", "cifar10", 1459.617803812027),
        ("sel-95", "nominal_flops_t", "cifar10", 0.08419393773568162),
        ("warmup-sel", "E_cat", "cifar10", 0.24958520458718805),
        ("sel-v3", "acc_cat", "cifar10", 0.61),
        ("ast", "active_rate", "cifar10", 0.104),
        ("ast-6", "nominal_savings_percent", "cifar10", 98.8),
        ("ast-two-stage", "test_full", "imagenet-100", 0.9212),
        ("dihcl-exp", "test_full", "cifar10", 0.9703),
        ("dihcl-beta", "test_full", "imagenet", 0.7633),
        ("mcl", "test_full", "cars", 0.7698),
    ],
)
def test_claims_are_the_published_figures(system, metric, data, value):
    found = [c.value for c in load_claims() if (c.system, c.metric, c.data, c.epoch) == (system, metric, data, None)]
    assert value in found


def test_curves_are_the_tables_rows():
    rows = list(csv.DictReader((PUBLISHED / "hist_sel95.csv").read_text().splitlines()))
    found = {c.epoch: c.value for c in load_claims() if c.system == "sel-95" and c.metric == "test_full" and c.epoch}
    assert found == {int(row["epoch"]): float(row["test_full"]) for row in rows[:-1]} and len(found) == 49


def test_claim_ours_and_difference():
    found = {(c["metric"], c["epoch"], c["source"]): c for c in compare_claims([result(), result(accuracy=0.7)])}
    row = found["test_full", None, "hist_sel95.csv, last row"]
    assert (row["claim"], row["ours"], row["seeds"], row["comparable"]) == (0.7726, pytest.approx(0.75), 2, True)
    assert row["difference"] == pytest.approx(0.75 - 0.7726) and row["std"] == pytest.approx(0.0707, abs=1e-3)
    assert found["E_cat", None, "hist_sel95.csv, last row"]["ours"] == 0.4
    assert found["acc_dog", None, "hist_sel95.csv, last row"]["ours"] is None  # a class that this data lacks
    assert found["last_sparsity", None, "hist_sel95.csv, last row"]["claim"] == pytest.approx(0.9911, abs=1e-4)
    curve = found["test_full", 2, "hist_sel95.csv"]
    assert (curve["claim"], curve["ours"]) == (0.2001, pytest.approx(0.2))
    assert found["test_full", 3, "hist_sel95.csv"]["ours"] is None


def test_a_reduced_run_is_never_comparable():
    assert not any(c["comparable"] for c in compare_claims([result(scale="small")]))
    assert not any(c["comparable"] for c in compare_claims([result(data="digits")]))
    assert not any(c["comparable"] for c in compare_claims([result(label="sel-95, not the source's model")]))
    assert all(c["comparable"] for c in compare_claims([result(data="/home/me/cifar10")]))


def test_claims_about_other_data_are_left_out():
    on_cifar = compare_claims([result("dihcl-exp")])
    assert {c["claim"] for c in on_cifar} == {0.9703}
    assert {c["claim"] for c in compare_claims([result("dihcl-exp", data="svhn")])} == {0.9691}


def test_joules_per_point():
    assert joules_per_point(400.0, 0.8, 10) == pytest.approx(400 / 70)
    assert joules_per_point(None, 0.8, 10) is None and joules_per_point(400.0, 0.1, 10) is None
    row = overview([result()])[0]
    assert row["j_per_point"] == pytest.approx(400 / 30) and (row["net_j"], row["seeds"]) == (None, 1)
    assert (row["image_visits"], row["active_rate"], row["last_sparsity"]) == (1000, 0.5, 0.9)


def test_an_epoch_of_the_reference_is_the_mean_one():
    (epoch,) = reference_epochs([result(energy_j=300.0), result(energy_j=500.0)])
    assert (epoch["system"], epoch["images"], epoch["energy_source"]) == ("sel-95", 500, "measured")
    assert (epoch["energy_j"], epoch["net_j"], epoch["executed_flops_t"]) == (200.0, None, 1000.0)
    assert epoch["j_per_image"] == pytest.approx(0.4)
    older = result(energy_j=None)
    del older["summary"]["throttled"]  # as the first versions wrote them
    (epoch,) = reference_epochs([older])
    assert epoch["energy_j"] is None and epoch["j_per_image"] is None


def test_an_edge_run_stands_beside(tmp_path):
    cost = {"energy_j": 0.5, "net_j": None, "energy_source": "modelled", "executed_flops_t": 0.1}
    epochs = [{"epoch": n, "plan": "bn", "trained": images, **cost, "more": 1} for n, images in ((1, 50), (2, 0))]
    (tmp_path / "run.json").write_text(json.dumps({"epochs": epochs}))
    first, second = edge_epochs(tmp_path)
    assert first == {"epoch": 1, "plan": "bn", "images": 50, "j_per_image": 0.01, **cost}
    assert second["j_per_image"] is None  # nothing was trained on
    with pytest.raises(BadInputError, match="fine-tune"):
        edge_epochs(tmp_path / "none")


FOREIGN = ("text", -1, 0, True, None, [1], ["text"], {"a": 1}, {"a": {"b": "text"}}, float("nan"), 10**400)


def places(value, path=()):
    """Where in a JSON value another one can stand."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield (*path, key)
        yield from places(part, (*path, key))


def put(content, path, value):
    changed = copy.deepcopy(content)
    *way, last = path
    inner = changed
    for key in way:
        inner = inner[key]
    inner[last] = value
    return changed


@pytest.mark.slow
def test_a_result_with_foreign_values_is_passed_over_or_shown(tmp_path, capsys):
    run, kept = tmp_path / "sel-95" / "seed-0" / "run.json", 0
    run.parent.mkdir(parents=True)
    for path in places(result()):
        for value in FOREIGN:
            run.write_text(json.dumps(put(result(), path, value)))
            if results := list_results(tmp_path):
                kept += 1
                print_comparison(compare_claims(results)[:60], "")
                print_overview(overview(results), "")
                print_edge([], reference_epochs(results))
    assert kept > 100  # such as another accuracy
    for text in ("[" * 100_000, "null", "[]", '{"summary": 3}', "\udcff"):
        run.write_bytes(text.encode(errors="surrogateescape"))
        assert list_results(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("summary",), []),
        (("summary", "test_full"), "0.8"),
        (("summary", "epochs"), 0),
        (("summary", "energy_j"), "much"),
        (("summary", "energy_source"), None),
        (("summary", "per_class", "cat", "E"), "0.4"),
        (("summary", "time_s"), 10**400),
        (("rows", 1, "visited"), None),
        (("rows", 1, "test_full"), [0.2]),
        (("rows",), {}),
        (("label",), None),
        (("weights",), ["random"]),
    ],
)
def test_what_cannot_be_compared_is_no_result(path, value, tmp_path):
    run = tmp_path / "sel-95" / "seed-0" / "run.json"
    run.parent.mkdir(parents=True)
    run.write_text(json.dumps(result()))
    assert len(list_results(tmp_path)) == 1
    run.write_text(json.dumps(put(result(), path, value)))
    assert list_results(tmp_path) == []


def test_an_edge_run_with_foreign_values_is_one_clean_error_or_shown(tmp_path, capsys):
    cost = {"energy_j": 0.5, "net_j": 0.1, "energy_source": "modelled", "executed_flops_t": 0.1}
    content = {"epochs": [{"epoch": 1, "plan": "bn", "trained": 50, **cost}]}
    refused = set()
    for path in places(content):
        for value in FOREIGN:
            (tmp_path / "run.json").write_text(json.dumps(put(content, path, value)))
            try:
                print_edge(edge_epochs(tmp_path), [])
            except BadInputError:
                if value not in FOREIGN[-2:]:  # NaN and a number of 400 digits, refused wherever they stand
                    refused.add(path[-1])
    assert refused == {"epochs", 0, "trained", *cost}
