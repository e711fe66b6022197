"""Runs on disk, ``OUT/<system>/seed-<n>/``, and the published claims beside them.

A run has a checkpoint while it goes, ``history.csv`` and in the end ``run.json``. Without torch, so a device can read
them too.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from edge_sel.arrays import Arrays
from edge_sel.errors import BadInputError
from edge_sel.files import read_regular, write_json, write_table
from edge_sel.runs.checkpoint import Identity, load_checkpoint, remove_checkpoints, save_checkpoint
from edge_sel.schema import parse_json

EpochRow = dict[str, Any]
"""One epoch, by the columns of ``history.csv``."""
Result = dict[str, Any]
"""A finished run, as ``run.json`` holds it."""

_RUN = "run.json"
LARGEST_RESULT = 1 << 25
_TEXTS = ("system", "scale", "label", "data_name", "weights")
_FIGURES = ("epochs", "test_full", "test_100", "nominal_flops_t", "executed_flops_t", "time_s", "last_sparsity",
            "active_rate")  # fmt: skip
_NO_FIGURES = {"phase", "energy_source", "meter", "throttled", "per_class"}
"""What in a row or a summary is neither a number nor null."""


class RunFolder:
    """The folder of one system and seed."""

    def __init__(self, out: Path, system: str, seed: int) -> None:
        self.path = out / system / f"seed-{seed}"

    def save(self, tensors: Arrays, rows: Sequence[EpochRow], identity: Identity) -> None:
        """The state after an epoch, and its table."""
        save_checkpoint(self.path, tensors, {"rows": rows}, identity)
        write_table(self.path / "history.csv", rows)

    def load(self) -> tuple[Arrays, list[EpochRow], Identity] | None:
        """What ``save`` wrote last; before that if it is damaged; None if both are."""
        found = load_checkpoint(self.path)
        return None if found is None else (found[0], found[1]["rows"], found[2])

    def finish(self, rows: Sequence[EpochRow], result: Result) -> None:
        """The run is over: its table and its result; the checkpoints go."""
        write_table(self.path / "history.csv", rows)
        write_json(self.path / _RUN, result)
        remove_checkpoints(self.path)


def read_finished(folder: Path) -> Result | None:
    """The result of one run; None if it is not over, or its file is none of ours, such as a fine-tune's."""
    try:
        found = parse_json(read_regular(folder / _RUN, LARGEST_RESULT))
        return found if _is_result(found) else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def list_results(out: Path) -> list[Result]:
    """The results of all finished runs in a folder, by system and seed."""
    found = [read_finished(path.parent) for path in sorted(out.glob(f"*/seed-*/{_RUN}"))]
    return [result for result in found if result is not None]


def is_number(value: object) -> bool:
    """Whether it can be calculated with: no truth value, no NaN, and not too large for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_result(found: Any) -> bool:
    """Whether all that comparing reads is of its kind; may raise instead where it is not."""
    summary, rows = found["summary"], found["rows"]
    tables = [summary, *rows, *summary["per_class"].values()]
    figures = [value for table in tables for key, value in table.items() if key not in _NO_FIGURES]
    needed = [*(summary[key] for key in _FIGURES), *(row["visited"] for row in rows)]
    texts = [*(found[key] for key in _TEXTS), summary["energy_source"], *summary.get("throttled", ())]
    return (
        isinstance(rows, list)
        and isinstance(found["identity"], dict)
        and isinstance(found["seed"], int)
        and all(isinstance(text, str) for text in texts)
        and all(is_number(value) for value in needed)
        and all(value is None or is_number(value) for value in [*figures, summary["energy_j"], summary["net_j"]])
        and summary["epochs"] > 0
        and "meter" in summary
    )


_TABLES = {
    "hist_baseline.csv": "baseline",
    "hist_lottery.csv": "lottery-ticket",
    "hist_sel95.csv": "sel-95",
    "hist_warmup.csv": "warmup-sel",
}
_NAMES = {"flops_T": "nominal_flops_t", "sparsity": "last_sparsity"}
"""How a column of the published tables is called in a summary, where that differs."""
_CURVES = ("test_full", "test_100", "train_acc", "train_loss", "sparsity")


class Claim(NamedTuple):
    """One published figure."""

    system: str
    metric: str
    value: float
    source: str
    data: str = "cifar10"
    epoch: int | None = None
    """Of a figure in the course of a run; None for its end."""


def load_claims() -> list[Claim]:
    """Every published figure: those in texts, then the tables: their last rows in full, and the curves before."""
    folder = resources.files("edge_sel.reference") / "published"
    claims = [Claim(**entry) for entry in json.loads((folder / "claims.json").read_text(encoding="utf-8"))]
    for name, system in _TABLES.items():
        rows = list(csv.DictReader((folder / name).read_text(encoding="utf-8").splitlines()))
        for column, value in rows[-1].items():
            if column not in ("epoch", "stage"):
                metric = _NAMES.get(column, column)
                claims.append(Claim(system, metric, float(value), f"{name}, last row"))
        for row in rows[:-1]:
            claims += [Claim(system, c, float(row[c]), name, epoch=int(row["epoch"])) for c in _CURVES]
    return claims


def compare_claims(results: Sequence[Result], data: str | None = None) -> list[dict[str, Any]]:
    """Claim, ours and the difference, for every claim about a system that was run.

    Args:
        results: of finished runs, any number of seeds of each system.
        data: claims about other data sets are left out. None: the set that was used if there are claims about it, else
            CIFAR-10, as most are about that.

    Returns:
        One object per claim: system, metric, epoch, claim, ours (mean over seeds), std, seeds, difference, source and
        comparable, which is false at a reduced scale, with another model or length, or on other data. A folder is
        taken for the data of the claim.
    """
    claims = load_claims()
    known = {claim.data for claim in claims}
    used = {result["data_name"] for result in results}
    data = data or next(iter(sorted(used & known)), "cifar10")
    others = (known | {"digits"}) - {data}
    found = []
    for claim in claims:
        runs = [result for result in results if result["system"] == claim.system]
        if not runs or claim.data != data:
            continue
        ours, std = mean_std([_value(result, claim) for result in runs]) or (None, None)
        found.append(
            {
                "system": claim.system,
                "metric": claim.metric,
                "epoch": claim.epoch,
                "claim": claim.value,
                "ours": ours,
                "std": std,
                "seeds": len(runs),
                "difference": None if ours is None else ours - claim.value,
                "source": claim.source,
                "comparable": all(not r["label"] and r["data_name"] not in others for r in runs),
            }
        )
    return found


def _value(result: Result, claim: Claim) -> float | None:
    summary, rows = result["summary"], result["rows"]
    kind, _, name = claim.metric.partition("_")
    table, key = summary, claim.metric
    if claim.epoch is not None:
        table = rows[claim.epoch - 1] if claim.epoch <= len(rows) else {}
    elif kind in ("acc", "E", "C"):
        table, key = summary["per_class"].get(name, {}), kind
    found: float | None = table.get(key)
    return found


def overview(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One object per system: mean and std over seeds of accuracy, FLOPs, joules and time."""
    found = []
    for system in dict.fromkeys(result["system"] for result in results):
        runs = [result for result in results if result["system"] == system]
        summaries = [result["summary"] for result in runs]
        row: dict[str, Any] = {"system": system, "seeds": len(runs), "scale": runs[0]["scale"]}
        for key in ("test_full", "test_100", "nominal_flops_t", "executed_flops_t", "energy_j", "net_j", "time_s"):
            row[key], row[f"{key}_std"] = mean_std([summary[key] for summary in summaries]) or (None, None)
        for key in ("epochs", "last_sparsity", "active_rate"):
            row[key] = statistics.fmean(summary[key] for summary in summaries)
        row["image_visits"] = statistics.fmean(sum(epoch["visited"] for epoch in result["rows"]) for result in runs)
        row["energy_source"] = " and ".join(sorted({summary["energy_source"] for summary in summaries}))
        row["weights"] = runs[0]["weights"]
        row["meter"] = summaries[0]["meter"]
        row["throttled"] = sorted({reason for summary in summaries for reason in summary.get("throttled", ())})
        classes = max(1, len(summaries[0]["per_class"]))
        row["j_per_point"] = joules_per_point(row["energy_j"], row["test_full"], classes)
        found.append(row)
    return found


def mean_std(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Mean and sample standard deviation (None for one value, which has none); None if a value is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def joules_per_point(energy_j: float | None, accuracy: float, classes: int) -> float | None:
    """Joules for each percentage point of accuracy above guessing; None if there is no such point, or no meter."""
    points = 100 * (accuracy - 1 / classes)
    return None if energy_j is None or points <= 0 else energy_j / points


def edge_epochs(run: Path) -> list[dict[str, Any]]:
    """What each epoch of a fine-tune run took, to stand beside the reference's.

    Raises:
        BadInputError: not the folder of a finished fine-tune run.
    """
    try:
        epochs: list[dict[str, Any]] = parse_json(read_regular(run / _RUN, LARGEST_RESULT))["epochs"]
        if not all(_has_cost(epoch) for epoch in epochs):
            raise ValueError("other kinds of values")
        return [{"epoch": e["epoch"], "plan": e["plan"], **_cost(e, images=e["trained"])} for e in epochs]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise BadInputError("not the folder of a finished fine-tune run", where=run) from error


def _has_cost(epoch: dict[str, Any]) -> bool:
    figures = [epoch[key] for key in ("energy_j", "net_j", "executed_flops_t")]
    known = all(value is None or is_number(value) for value in figures)
    return known and is_number(epoch["trained"]) and isinstance(epoch["energy_source"], str)


def reference_epochs(results: Sequence[Result]) -> list[dict[str, Any]]:
    """What a mean epoch of each system took, over its epochs and seeds."""
    found = []
    for row in overview(results):
        mean = {key: None if row[key] is None else row[key] / row["epochs"] for key in ("energy_j", "net_j")}
        mean["executed_flops_t"] = row["executed_flops_t"] / row["epochs"]
        images = row["image_visits"] / row["epochs"]
        found.append({"system": row["system"], **_cost({**row, **mean}, images=images)})
    return found


def _cost(epoch: dict[str, Any], *, images: float) -> dict[str, Any]:
    """Per epoch, and per image, as an epoch here and one there are not of the same number of images."""
    found = {key: epoch[key] for key in ("energy_j", "net_j", "energy_source", "executed_flops_t")}
    known = epoch["energy_j"] is not None and images > 0
    return found | {"images": images, "j_per_image": epoch["energy_j"] / images if known else None}
