"""The table at the end of a run."""

import pytest

from edge_sel.cli.show import epoch_line, print_result, verdict_line


def epoch(**changes):
    known = {
        "epoch": 12, "plan": "last2-c30", "energy_j": 1234.5, "net_j": 1122.0, "energy_source": "modelled", "power_w": 10.0,
        "trained": 25000, "candidates": 50000, "sparsity": 0.0, "executed_flops_t": 123.4, "nominal_flops_t": 0.1234,
        "train_loss": 12.345, "validation_acc": 1.0, "temp_c": None,
    }  # fmt: skip
    return known | changes


def result(*epochs):
    return {
        "epochs": list(epochs), "accuracy": {"after": None}, "energy": {"total_j": None, "why": "no meter"}, "time_s": 1.0,
        "suspicious": {"share": None, "files": []}, "duplicates": {"left_out": [], "contradictory": []}, "skipped_images": [],
        "batch_limit": None, "throttled": [], "stopped": "done", "run": "run", "images": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{}, {"energy_j": None, "net_j": None, "energy_source": "unavailable", "validation_acc": None, "train_loss": None}],
)
def test_it_fits_eighty_columns_and_what_is_unknown_is_a_dash(capsys, monkeypatch, changes):
    monkeypatch.setenv("COLUMNS", "80")
    print_result(result(epoch(**changes), epoch(epoch=3, plan="closed_form")))
    lines = capsys.readouterr().out.splitlines()
    table = lines[:4]
    assert max(map(len, table)) <= 80 and "last2-c30" in table[2] and "…" not in "".join(table)
    assert ("–" in table[2]) == bool(changes)


def test_an_epoch_on_one_line_without_joules():
    assert "unavailable" in epoch_line(epoch(energy_j=None, power_w=None, energy_source=""))


@pytest.mark.parametrize(
    ("shipped", "before", "after", "line"),
    (
        (True, 0.4, 0.5, "validation: 40.0% → 50.0%, the new model ships (WHY)"),
        (False, 0.5, 0.5, "validation: 50.0% → 50.0%, the original model stays (WHY)"),
        (True, 0.467, 0.433, "the new model ships: WHY; the validation images alone are too few to tell: 46.7% → 43.3%"),
        (False, 0.4, 0.5, "the original model stays: WHY; the validation images alone are too few to tell: 40.0% → 50.0%"),
    ),
)  # fmt: skip
def test_accuracies_that_seem_to_contradict_the_verdict_come_with_its_reason(shipped, before, after, line):
    assert verdict_line({"shipped": shipped, "before": before, "after": after, "why": "WHY"}) == line
