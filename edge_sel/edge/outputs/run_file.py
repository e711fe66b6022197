"""The types of ``run.json``, ``events.jsonl`` and ``journal.jsonl``: what is read of a run, whoever wrote it.

Keys that are not here are not read. docs/reference/files.md says what they mean.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from edge_sel.files import read_regular
from edge_sel.power.meter import EnergySource
from edge_sel.schema import Longest, SchemaError, Within, checked, parse_json, read_as

LARGEST_RESULT, LARGEST_LOG = 1 << 25, 1 << 26

Share = Annotated[float, Within(0, 1)]
Number = Annotated[float, Within(-1e30, 1e30)]
Joules = Annotated[float, Within(-1e15, 1e15)]
Seconds = Annotated[float, Within(0, 1e12)]
Count = Annotated[int, Within(0, 10**15)]
Name = Annotated[str, Longest(4096)]


class Phase(TypedDict):
    """What one phase took."""

    total_j: Joules | None
    net_j: Joules | None
    seconds: Seconds | None


PhasesOfRun = Annotated[dict[str, Phase], Longest(100)]


class _EpochBegun(TypedDict):
    epoch: Count
    plan: Name
    trained: Count
    candidates: Count


class _Channels(TypedDict, total=False):
    of: Count
    chosen: Count
    share_of_norm: Share
    heads: list[Number]
    chosen_heads: list[Count]


class _ClassOfEpoch(TypedDict):
    E: Number | None
    C: Number | None
    acc: Share | None


class _FittedHead(TypedDict):
    prior: Number
    ridge: Number
    old: Number
    features: Count


class Epoch(_EpochBegun, total=False):
    """One of ``epochs``."""

    training_stage: Count
    stage: Count
    stage_name: Name
    train_acc: Share | None
    train_loss: Number | None
    active_rate: Share
    sparsity: Number
    gradient_kept: Number
    nominal_flops_t: Number
    executed_flops_t: Number
    train_flops_t: Number
    statistics: Name
    doubted: Share
    head: _FittedHead
    rehearsed: Count
    guilty: dict[str, _Channels]
    validation_acc: Share | None
    validation_loss: Number | None
    validation_e: Number | None
    best_acc: Share | None
    best_loss: Number | None
    best_e: Number | None
    energy_j: Joules | None
    net_j: Joules | None
    energy_source: EnergySource | None
    meter: Name | None
    power_w: Number | None
    uncertainty_j: Joules | None
    phases: PhasesOfRun
    temp_c: Number | None
    time_s: Seconds | None
    classes: dict[str, _ClassOfEpoch]
    kept: bool
    test_full: Share | None


class Accuracy(TypedDict, total=False):
    """Of the models before and after; ``on`` which images."""

    before: Share | None
    after: Share | None
    validation_before: Share | None
    validation_after: Share | None
    on: Literal["test", "validation"]
    pack: Share | None


class _ClassFigures(TypedDict):
    accuracy: Share | None
    embarrassment: Number | None
    confidence: Number | None


class _Figures(TypedDict, total=False):
    accuracy: Share | None
    loss: Number | None
    calibration_error: Share | None
    embarrassment: Number | None
    images: Count
    classes: dict[str, _ClassFigures]
    epoch: Count


class _FiguresOfSets(TypedDict, total=False):
    validation: _Figures
    test: _Figures
    pack: dict[str, _Figures]


class _Recorder(TypedDict):
    cpu_s: Seconds | None
    energy_j: Joules | None
    source: EnergySource | None


class Energy(TypedDict, total=False):
    """What the run took."""

    total_j: Joules | None
    net_j: Joules | None
    lost_j: Joules | None
    lost_s: Seconds | None
    source: EnergySource | None
    uncertainty_j: Joules | None
    phases: PhasesOfRun
    meter: Name | None
    idle_w: Number | None
    why: Name | None
    recorder: _Recorder


class _Images(TypedDict, total=False):
    train: Count
    validation: Count
    test: Count


class _Outcome(TypedDict, total=False):
    gain: Number | None
    energy_j: Joules | None


class StageDecision(TypedDict, total=False):
    """One of ``decisions``."""

    training_stage: Count
    plan: Name | None
    epochs: Count | None
    why: Name
    expected: _Outcome | None
    came: _Outcome | None


class _AnchorsSeen(TypedDict):
    images: Count
    right_before: Count
    right: Count
    forgot: bool


class _EvidenceOfRun(TypedDict):
    images: Count
    gain: Number
    low: Number
    high: Number
    p_loss: Share
    p_right: Share
    p_worse: Share
    images_needed: Count | None
    level: Share
    anchors: _AnchorsSeen | None
    why: Name


class _HardImage(TypedDict, total=False):
    path: Name
    label: Name
    predicted: Name
    loss_before: Number | None
    loss: Number | None
    right: bool
    visits: Count


class _HardestImages(TypedDict, total=False):
    training: Annotated[list[_HardImage], Longest(1000)]
    validation: Annotated[list[_HardImage], Longest(1000)]


ConfusionCells = list[Annotated[list[Count], Longest(3)]]


class _Confusion(TypedDict, total=False):
    before: ConfusionCells
    after: ConfusionCells


class _ChangedTensor(TypedDict):
    weight: Name
    relative: Number | None
    channels: Count
    updated: Count


class _Dense(TypedDict):
    plan: Name
    epochs: Count
    flops_t: Number
    energy_j: Joules | None


class _SettingOfRun(TypedDict):
    value: Any
    origin: Name


class _Skipped(TypedDict):
    path: Name
    reason: Name


class _Doubted(TypedDict):
    path: Name
    label: Name
    looks_like: Name


class _Suspicious(TypedDict):
    share: Share | None
    dropped: bool
    files: list[_Doubted]


class _Duplicates(TypedDict):
    left_out: list[Name]
    contradictory: list[Name]


class _Signers(TypedDict):
    fingerprints: list[Name]
    checked: bool


class _FeatureStore(TypedDict):
    folder: Name | None
    found: Count
    added: Count
    stopped: Name | None


class _Identified(TypedDict):
    identity: dict[str, Any]
    stopped: Name


class RunFile(_Identified, total=False):
    """``run.json``."""

    schema: Count
    pack: Name
    signers: dict[str, _Signers | None]
    engine: Name
    plan: Name
    classes: list[Name]
    skipped_images: list[_Skipped]
    settings: dict[str, _SettingOfRun]
    run: Name | None
    source: Name | None
    images: _Images
    duplicates: _Duplicates
    shipped: bool
    evidence: _EvidenceOfRun | None
    throttled: list[Name]
    batch_limit: Count | None
    suspicious: _Suspicious
    feature_store: _FeatureStore
    outputs: dict[str, Name]
    confusion: _Confusion
    hardest: _HardestImages
    changed: list[_ChangedTensor]
    dense: _Dense | None
    accuracy: Accuracy
    energy: Energy
    time_s: Seconds | None
    epochs: list[Epoch]
    decisions: list[StageDecision]
    before: _FiguresOfSets
    after: _FiguresOfSets | None


_FROM = TypedDict("_FROM", {"from": Name | None}, total=False)


class RunResult(RunFile, _FROM, total=False):
    """``run.json``, with the key that is a word of Python."""


def read_run_file(path: Path) -> dict[str, Any]:
    """The content of a ``run.json``.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read, or is no regular file of a reasonable size.
        SchemaError: it is not the result of a run; ``str()`` says where it differs.
    """
    found: dict[str, Any] = read_as(RunResult, read_regular(path, LARGEST_RESULT))
    classes = len(found.get("classes", ()))
    for when, cells in found.get("confusion", {}).items():
        if any(len(cell) != 3 or max(cell[:2]) >= classes for cell in cells):
            raise SchemaError("has a cell of no class of this run", f"confusion.{when}")
    return found


class _Event(TypedDict):
    event: Annotated[str, Longest(100)]
    t_s: Seconds


class _Governor(TypedDict, total=False):
    action: Name
    limit: Name
    why: Name | None


class _Started(TypedDict, total=False):
    images: Count
    validation: Count


class _Evaluated(TypedDict, total=False):
    accuracy: Accuracy


_EVENTS: dict[str, Any] = {
    "started": _Started, "evaluated": _Evaluated, "epoch": Epoch, "stage_begun": StageDecision, "governor": _Governor,
}  # fmt: skip


def read_events(path: Path) -> list[dict[str, Any]]:
    """The lines of an ``events.jsonl`` that are whole and as they should be, of the events that a report tells."""
    try:
        lines = read_regular(path, LARGEST_LOG).split(b"\n")
    except OSError:
        return []
    found = []
    for line in lines:
        with suppress(SchemaError):
            content = parse_json(line)
            event = checked(_Event, content)
            found.append({**event, **checked(_EVENTS.get(event["event"], _Event), content)})
    return found


class JournalLine(TypedDict):
    """A line of the journal, without its checksum."""

    at: Annotated[str, Longest(40)]
    cuts: Annotated[int, Within(0, 1000)]
    up_s: Seconds
    seconds: Seconds
    total_j: Joules | None
    net_j: Joules | None
    source: EnergySource | None
    uncertainty_j: Joules | None
    forecast: dict[str, Joules | None]
