"""What training changed on a device, for rounds that train more than the head; and how a server combines the changes.

Of each output channel that changed a file holds the largest changes only, as eight bits each. What was left out stays
on the device and joins its next change (error feedback: Seide et al. 2014, Karimireddy et al. 2019). Where a plan
trains under the statistics of its batches, the running ones are sent as they are, and averaged as moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from edge_sel.arrays import Arrays, read_tensors
from edge_sel.errors import BadInputError, DataError, UsageError
from edge_sel.files import read_regular
from edge_sel.fleet.header import LEAST_IMAGES, Header, Origin, update_bytes
from edge_sel.pack.manifest import PlanInfo
from edge_sel.pack.reader import Pack
from edge_sel.sel import aggregation

KEEP = 0.25
"""Share of the numbers of a plan that an update holds."""
MOST_CHANGE = 1.0
"""Norm of a change, in units of the norm of what was changed."""
MOST_STATISTICS = 100.0
"""Norm of batch statistics, in units of the norm of the pack's: other images than the server's may change them much."""
LONGEST = 2.0
"""A device's change counts for so many times the norm of the median device, at most."""
TRIM = 0.2
"""Share of the devices that the trimmed mean leaves out at each end."""
MOMENTUM = 0.9
MOST_VELOCITY_BYTES = 1 << 30
Rule = Literal["mean", "momentum", "trimmed", "median", "krum"]


class Delta(NamedTuple):
    """A change that was read."""

    plan: str
    change: Arrays
    """float32, of every tensor that the plan trains."""
    statistics: Arrays
    """float32, running means and variances; empty where the plan leaves them alone."""
    sent: int
    """Numbers that the file holds; ``size``: that there are."""
    size: int


def delta_plan(pack: Pack, name: str) -> PlanInfo:
    """The plan, if it changes weights in steps.

    Raises:
        UsageError: the pack has none of this name, or it is none of these.
    """
    plan = pack.plan(name)
    if not plan.kind.stepped:
        raise UsageError(f"the plan {name} makes no delta", where=pack.path, fix="one that trains in steps")
    return plan


def make_delta(
    pack: Pack, plan: str, weights: Mapping[str, np.ndarray], images: int, origin: Origin, *,
    residual: Mapping[str, np.ndarray] | None = None, keep: float = KEEP,
) -> tuple[bytes, Arrays]:  # fmt: skip
    """The content of an update, and what it leaves out.

    Args:
        pack: that training began with.
        plan: that was trained.
        weights: after training: every one, of the pack's classes.
        images: trained on.
        origin: nonce and joules.
        residual: what the update of the round before left out; None for none.
        keep: share of the numbers to send.

    Raises:
        DataError: there are too few images.
        BadInputError: training diverged.
    """
    if images < LEAST_IMAGES:
        raise DataError(f"an update of {images} images", fix=f"at least {LEAST_IMAGES} images to train on")
    old, names = pack.weights(), delta_plan(pack, plan).trainable
    wanted = {name: weights[name].astype(np.float64) - old[name] for name in names}
    for name, left in (residual or {}).items():
        if name in wanted and left.shape == wanted[name].shape:
            wanted[name] += left
    joined = _joined(wanted, names)
    if not np.isfinite(joined).all() or _norm(wanted) > MOST_CHANGE * _norm({name: old[name] for name in names}):
        raise BadInputError("training diverged", where=plan, fix="a smaller --learning-rate, or fewer epochs")
    chosen = np.zeros(len(joined), bool)
    count = ceil(keep * len(joined))
    chosen[np.argpartition(-np.abs(joined), count - 1)[:count]] = True
    chosen &= joined != 0
    starts = _starts(old, names)
    row_of = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    rows = np.unique(row_of[chosen])
    inside = np.isin(row_of, rows)
    largest = np.zeros(len(starts) - 1)
    np.maximum.at(largest, row_of[chosen], np.abs(joined[chosen]))
    scales = (largest[rows] / 127).astype(np.float32)
    steps = np.zeros(len(starts) - 1)
    steps[rows] = np.where(scales > 0, scales, 1)
    values = np.clip(np.rint(joined[chosen] / steps[row_of[chosen]]), -127, 127).astype(np.int8)
    tensors: Arrays = {
        "rows": rows.astype(np.int32), "mask": np.packbits(chosen[inside]), "scales": scales, "values": values,
    }  # fmt: skip
    if buffers := delta_plan(pack, plan).buffers:
        tensors["statistics"] = _joined(weights, buffers).astype(np.float32)
    classes = pack.manifest.model.classes
    content = update_bytes(pack, "delta", origin, tensors, classes, images, plan=plan)
    sent = np.zeros(len(joined))
    sent[chosen] = values * steps[row_of[chosen]]
    return content, _parted((joined - sent).astype(np.float32), old, names)


def delta_of(tensors: Arrays, header: Header, pack: Pack) -> Delta:
    """ValueError unless it is a change that training of the plan can make."""
    try:
        plan = delta_plan(pack, str(header["plan"]))
    except UsageError as error:
        raise ValueError(error.what) from error
    if len(header["classes"]) != len(pack.manifest.model.classes):
        raise ValueError("a delta has no new classes")
    old, names = pack.weights(), plan.trainable
    statistics = _statistics_of(tensors, plan, old)
    kinds = {"rows": np.int32, "mask": np.uint8, "scales": np.float32, "values": np.int8}
    if {name: array.dtype for name, array in tensors.items()} != {name: np.dtype(kind) for name, kind in kinds.items()}:
        raise ValueError("it holds something else than a delta")
    if any(array.ndim != 1 for array in tensors.values()):
        raise ValueError("it holds something else than a delta")
    rows, mask, scales, values = (tensors[name] for name in kinds)
    starts = _starts(old, names)
    if (
        len(rows) != len(scales)
        or (np.diff(rows.astype(np.int64)) <= 0).any()
        or (rows < 0).any()
        or (rows >= len(starts) - 1).any()
    ):
        raise ValueError("its channels are none of the plan's")
    if not np.isfinite(scales).all() or (scales < 0).any():
        raise ValueError("it holds numbers that are not finite")
    lengths = np.diff(starts)[rows]
    total = int(lengths.sum())
    if len(mask) != (total + 7) // 8:
        raise ValueError("its mask is of other channels")
    chosen = np.unpackbits(mask, count=total).astype(bool)
    if int(chosen.sum()) != len(values):
        raise ValueError("its mask and its values disagree")
    places = np.repeat(starts[rows] - np.cumsum(lengths) + lengths, lengths) + np.arange(total)
    joined = np.zeros(int(starts[-1]), np.float32)
    joined[places[chosen]] = values * np.repeat(scales, lengths)[chosen]
    change = _parted(joined, old, names)
    if _norm(change) > MOST_CHANGE * _norm({name: old[name] for name in names}):
        raise ValueError("it changes more than training does")
    return Delta(plan.name, change, statistics, len(values), len(joined))


def _statistics_of(tensors: Arrays, plan: PlanInfo, old: Mapping[str, np.ndarray]) -> Arrays:
    """Taken out of ``tensors``; ValueError unless means and variances are what training can make of the pack's."""
    if not plan.buffers:
        return {}
    joined = tensors.pop("statistics")
    if joined.dtype != np.float32 or joined.shape != (sum(old[name].size for name in plan.buffers),):
        raise ValueError("its batch statistics are another model's")
    found = _parted(joined, old, plan.buffers)
    if not np.isfinite(joined).all() or any((found[name] < 0).any() for name in plan.buffers[1::2]):
        raise ValueError("its batch statistics are none")
    before = {name: old[name] for name in plan.buffers}
    if _norm(found) > MOST_STATISTICS * _norm(before):
        raise ValueError("its batch statistics are larger than any images'")
    return found


def merge_deltas(
    old: Mapping[str, np.ndarray], deltas: Sequence[Delta], images: Sequence[int], rule: Rule = "mean",
    velocity: Mapping[str, np.ndarray] | None = None,
) -> tuple[Arrays, Arrays, tuple[int, ...]]:  # fmt: skip
    """Weights, changed as the devices say. A change much longer than the median one is shortened first.

    Args:
        old: every weight of the pack that they are of.
        deltas: of different devices, of one plan.
        images: of each device.
        rule: ``mean`` weighted by images, the same with server ``momentum``, ``trimmed`` mean, ``median``, or ``krum``:
            of the device nearest to the others.
        velocity: of the round before; for the rule ``momentum``.

    Returns:
        Every weight; the velocity for the next round, empty without momentum; which devices it is made of.
    """
    norms = np.array([_norm(delta.change) for delta in deltas])
    factors = np.minimum(1.0, LONGEST * float(np.median(norms)) / np.maximum(norms, 1e-30))
    names = [*deltas[0].change]

    def changes(name: str) -> np.ndarray:
        parts = [factor * delta.change[name] for factor, delta in zip(factors, deltas, strict=True)]
        return np.stack(parts).reshape(len(deltas), -1)

    chosen = list(range(len(deltas)))
    if rule == "krum":
        between = np.sum([aggregation.distances(changes(name)) for name in names], axis=0)
        chosen = [aggregation.krum(between, round(TRIM * len(deltas)))]
    counts = np.asarray(images, np.float64)[chosen]
    weights, moved = dict(old), {}
    for name in names:
        found = changes(name)
        if rule == "trimmed":
            change = aggregation.trimmed_mean(found, TRIM)
        elif rule == "median":
            change = aggregation.median(found)
        else:
            change = aggregation.weighted_mean(found[chosen], counts)
        change = change.reshape(old[name].shape)
        if rule == "momentum":
            change = change + MOMENTUM * _like(velocity, name, change)
            moved[name] = change.astype(np.float32)
        weights[name] = (old[name] + change).astype(np.float32)
    return weights | _merge_statistics([deltas[at].statistics for at in chosen], counts, rule), moved, tuple(chosen)


def _like(velocity: Mapping[str, np.ndarray] | None, name: str, change: np.ndarray) -> np.ndarray:
    """Of the round before; 0 where there is none of this shape."""
    known = (velocity or {}).get(name)
    fits = known is not None and known.shape == change.shape and bool(np.isfinite(known).all())
    return known if fits and known is not None else np.zeros_like(change)


def _merge_statistics(parts: Sequence[Arrays], images: np.ndarray, rule: Rule) -> Arrays:
    """Means and variances, as a plan has them in turn."""
    made: Arrays = {}
    names = [*parts[0]]
    for mean, variance in zip(names[::2], names[1::2], strict=True):
        means, variances = (np.stack([part[name] for part in parts]).astype(np.float64) for name in (mean, variance))
        if rule in ("trimmed", "median"):
            joined = aggregation.median(means), aggregation.median(variances)
        else:
            joined = aggregation.mean_of_moments(means, variances, images)
        made |= {mean: joined[0].astype(np.float32), variance: joined[1].astype(np.float32)}
    return made


def read_velocity(path: Path) -> Arrays:
    """Of the round before.

    Raises:
        BadInputError: it cannot be read.
    """
    try:
        return read_tensors(read_regular(path, MOST_VELOCITY_BYTES))
    except (OSError, ValueError) as error:
        raise BadInputError("the velocity cannot be read", where=f"{path}: {error}", fix="remove it") from error


def _starts(weights: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Where each row begins when all tensors are joined, int64[R + 1]; a vector is one row."""
    lengths = [length for name in names for length in _rows(weights[name].shape)]
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _rows(shape: tuple[int, ...]) -> list[int]:
    return [prod(shape)] if len(shape) < 2 else [prod(shape[1:])] * shape[0]


def _joined(tensors: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name in names])


def _parted(joined: np.ndarray, like: Mapping[str, np.ndarray], names: Sequence[str]) -> Arrays:
    ends = np.cumsum([like[name].size for name in names])
    return {name: part.reshape(like[name].shape) for name, part in zip(names, np.split(joined, ends[:-1]), strict=True)}


def _norm(tensors: Mapping[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in tensors.values())))
