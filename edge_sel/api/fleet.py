"""``take_part``: a device's part in a round of a fleet, within its limits; ``judge_candidate``: what it says then.

Images that are for validation on this device, by their pixels, are in no update, so that its evidence stays its own.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from edge_sel.api.inputs import open_profile, trusted_keys
from edge_sel.api.round import AnyPath, Round, train_round
from edge_sel.arrays import read_tensors, tensor_bytes
from edge_sel.config.settings import Resolved, resolve
from edge_sel.data.dataset import ImageSet, normalise
from edge_sel.data.folder import load_folder
from edge_sel.data.split import split_by_content
from edge_sel.edge.governor import Governor, make_reader
from edge_sel.edge.host import local_minute
from edge_sel.edge.limits import Forecast, limits_of, require_sensors
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import UsageError
from edge_sel.files import read_regular
from edge_sel.fleet.delta import delta_plan, make_delta
from edge_sel.fleet.header import LEAST_OF_CLASS, Origin
from edge_sel.fleet.statistics import CHUNK, features_of, make_statistics, require_sums
from edge_sel.fleet.update import sign_update
from edge_sel.pack.reader import Pack, open_pack
from edge_sel.power.battery import read_supply
from edge_sel.power.find import find_meter, why_none
from edge_sel.power.recorder import EnergyRecorder, clock_through_sleep
from edge_sel.power.temperature import find_thermometer
from edge_sel.sysfs import sysfs_root

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MOST_BYTES = 1 << 30
"""Of a file with a residual."""


class Contribution(NamedTuple):
    """A device's part in a round."""

    content: bytes
    """Of the update; empty where it declined."""
    signature: bytes | None
    """Of the file beside it."""
    images: int
    left_out: tuple[str, ...]
    """Classes of which it has too few images."""
    energy_j: float | None
    energy_source: str
    declined: str | None = None
    """Why it takes no part, or left early."""
    residual: bytes | None = None
    """What the update left out, to keep in a file once the update was sent."""


class Judgement(NamedTuple):
    """What a device's validation images say of a candidate."""

    images: int
    right_before: int
    right: int
    won: int
    """Images that only the candidate has right; ``lost``: that only the pack's model has."""
    lost: int


class _DeclinedError(Exception):
    """A limit of the device ends its part in the round."""


def take_part(
    pack: Pack | AnyPath, data: AnyPath, *, key: Ed25519PrivateKey | None = None,
    kind: Literal["statistics", "delta"] = "statistics", plan: str = "last", epochs: int | None = None,
    round_name: str = "", privacy: tuple[float, float] | None = None, residual: AnyPath | None = None,
    config: AnyPath | None = None, environ: Mapping[str, str] | None = None, profile: str | None = None,
    threads: int = 0, max_pixels: int | None = None, deadline_s: float | None = None,
    should_stop: Callable[[], str | None] = lambda: None, tell: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Contribution:  # fmt: skip
    """Make this device's update, if its limits allow it: those of the settings, as ``finetune`` knows them.

    A limit that asks for a pause before anything is done declines; later ones are waited for, within the deadline.

    Args:
        pack: that the round is of, or where it is; a pack that is opened here needs a signature if the settings ask.
        data: a folder ``DIR/<class>/*.jpg``.
        key: of this device, to sign the update with.
        kind: sums of features, or what training changed.
        plan: to train, of kind ``delta``; ``epochs`` of it, None for those of the settings.
        round_name: what the server named the round.
        privacy: (ε, δ) of noise, of kind ``statistics``.
        residual: file with what the update of the round before left out (``delta``); it need not be there.
        config: TOML file with settings.
        environ: environment variables: settings ``EDGE_SEL_…``.
        profile: of the device; None to detect it.
        threads: 0 for all.
        max_pixels: larger images are refused; None for the settings'.
        deadline_s: that the server gives; the settings' counts too.
        should_stop: asked all the time; a text ends it.
        tell: is given every event.

    Raises:
        EdgeSelError: in one line what cannot be done.
    """
    device = open_profile(profile)
    flags: dict[str, Any] = {"threads": threads} | ({} if max_pixels is None else {"max_pixels": max_pixels})
    given_s = resolve(profile=device, toml_file=_path(config), environ=environ, flags=flags).settings.deadline_s
    if deadline_s is not None:
        flags["deadline_s"] = deadline_s if given_s is None else min(deadline_s, given_s)
    resolved = resolve(profile=device, toml_file=_path(config), environ=environ, flags=flags)
    settings = resolved.settings
    opened = pack if isinstance(pack, Pack) else open_pack(pack, trusted_keys(settings.require_signature))
    if kind == "statistics":
        require_sums(opened)
    elif privacy is not None:
        raise UsageError("noise is for statistics only", where="--epsilon", fix="leave it out, or --kind statistics")
    else:
        delta_plan(opened, plan)
    more = {"config": config, "environ": environ, "profile": device, "should_stop": should_stop, "listener": tell}
    with ExitStack() as stack:
        meter, probes = find_meter(device, settings.meter, on_processor=True)
        recorder = stack.enter_context(EnergyRecorder(
            meter, profile=device, temperature=find_thermometer(), on_event=tell,
            why_none="" if meter else why_none(probes),
        ))  # fmt: skip
        window = recorder.start_window("update")
        limits = _Limits(resolved, recorder, should_stop, tell)
        left: bytes | None = None
        try:
            limits.begin()
            images, left_out = _training_images(opened, Path(data), resolved, kind)
            if kind == "statistics":
                features = features_of(opened, images, OrtEngine(settings.threads), limits.between)
            else:
                done = _trained(opened, images, plan, epochs, {**more, **flags})
        except _DeclinedError as why:
            figure = recorder.peek(window)
            return Contribution(b"", None, 0, (), figure.total_j, figure.source, str(why))
        figure = recorder.end_window(window)
    origin = Origin(secrets.token_hex(16), round_name, figure.total_j, figure.source)
    if kind == "statistics":
        rng = np.random.default_rng(secrets.randbits(128))
        content = make_statistics(opened, features, images.labels, images.classes, origin, privacy=privacy, rng=rng)
        sent = sum(count for count in images.class_counts().tolist() if count >= LEAST_OF_CLASS)
    else:
        content, left = _delta(opened, done, plan, origin, _path(residual))
        sent = len(done.training)
    signature = None if key is None else sign_update(content, key)
    return Contribution(content, signature, sent, left_out, figure.total_j, figure.source, residual=left)


def judge_candidate(
    pack: Pack, candidate: Mapping[str, np.ndarray], classes: tuple[str, ...], data: AnyPath, *, threads: int = 0,
    max_pixels: int | None = None, config: AnyPath | None = None, environ: Mapping[str, str] | None = None,
    profile: str | None = None,
) -> Judgement:  # fmt: skip
    """Compare a candidate with the pack's model on this device's validation images.

    Args:
        pack: that the device has.
        candidate: every weight of it.
        classes: the candidate's; others are not judged by.
        data: the device's images.
        threads: 0 for all.
        max_pixels: larger images are refused; None for the settings'.
        config: TOML file with settings.
        environ: environment variables: settings ``EDGE_SEL_…``.
        profile: of the device; None to detect it.

    Raises:
        EdgeSelError: the candidate is another model's, or the images cannot be used.
    """
    flags = {} if max_pixels is None else {"max_pixels": max_pixels}
    resolved = resolve(profile=open_profile(profile), toml_file=_path(config), environ=environ, flags=flags)
    new, model = pack.with_weights(candidate, classes), pack.manifest.model
    images = load_folder(
        Path(data), model.image_size, classes=new.manifest.model.classes, new_classes="extend",
        max_pixels=resolved.settings.max_pixels,
    )  # fmt: skip
    roles = split_by_content(images, resolved.settings.validation_fraction, cap=len(images), keep_duplicates=False)
    held = images.subset(roles.validation[images.labels[roles.validation] < len(new.manifest.model.classes)])
    engine, right = OrtEngine(threads), []
    for one in (pack, new):
        predict = engine.predictor(one, one.weights())
        parts = [
            predict(normalise(held.read(np.arange(at, min(at + CHUNK, len(held)))), model.mean, model.std)).argmax(1)
            for at in range(0, len(held), CHUNK)
        ]
        right.append(np.concatenate([np.zeros(0, np.int64), *parts]) == held.labels)
    before, after = right
    return Judgement(
        len(held), int(before.sum()), int(after.sum()), int((after & ~before).sum()), int((before & ~after).sum())
    )


class _Limits:
    """Holds a part of a round to the limits of the settings."""

    def __init__(
        self, resolved: Resolved, recorder: EnergyRecorder, should_stop: Callable[[], str | None],
        tell: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        supply = partial(read_supply, sysfs_root())
        require_sensors(resolved, recorder, supply())
        clock = clock_through_sleep
        window = recorder.start_window("limits")

        def spent_j() -> float | None:
            recorder.refresh()
            return recorder.peek(window).total_j

        self._read = make_reader(clock, spent_j, recorder.max_temperature_c, supply, local_minute)
        self._limits, self._should_stop = limits_of(resolved, clock()), should_stop
        self._governor = Governor(
            self._limits, self._read, sleep=time.sleep,
            emit=lambda name, **details: tell({"event": name, **details}),
            interrupted=lambda: should_stop() is not None, idle=partial(recorder.phase, "idle"),
        )  # fmt: skip

    def begin(self) -> None:
        """Decline if a limit asks for a stop or a pause now."""
        readings, nothing = self._read(), Forecast(0.0, None, 0.0, None, 0.0, None)
        for limit in self._limits:
            decision = limit.check(readings, nothing, paused=False, ending=False)
            if decision.action != "go":
                raise _DeclinedError(f"{limit.name}: {decision.why}")

    def between(self, left: int) -> None:
        """Wait as the limits ask, or leave."""
        why = self._should_stop() or self._governor.at_boundary(float(left))
        if why is not None:
            raise _DeclinedError(f"left early: {why}")


def _training_images(pack: Pack, data: Path, resolved: Resolved, kind: str) -> tuple[ImageSet, tuple[str, ...]]:
    """Those that are not for validation, and the classes of which there are too few."""
    settings, model = resolved.settings, pack.manifest.model
    images = load_folder(
        data, model.image_size, classes=model.classes, max_pixels=settings.max_pixels,
        new_classes="extend" if kind == "statistics" else "strict",
    )  # fmt: skip
    if kind == "statistics":
        roles = split_by_content(
            images, settings.validation_fraction, cap=len(images), keep_duplicates=settings.keep_duplicates
        )
        images = images.subset(roles.training)
    counts = images.class_counts()
    few = tuple(name for name, count in zip(images.classes, counts.tolist(), strict=True) if 0 < count < LEAST_OF_CLASS)
    if kind == "delta":  # training splits them itself, by the same rule
        images = images.subset(np.flatnonzero(counts[images.labels] >= LEAST_OF_CLASS))
    return images, few


def _trained(pack: Pack, images: ImageSet, plan: str, epochs: int | None, more: Mapping[str, Any]) -> Round:
    done = train_round(pack, images, plan=plan, **({**more, "epochs": epochs} if epochs else more))
    if not done.done or done.weights is None:
        raise _DeclinedError(f"left early: {done.summary['stopped']}")
    return done


def _delta(pack: Pack, done: Round, plan: str, origin: Origin, residual: Path | None) -> tuple[bytes, bytes]:
    """The update, and what it leaves out."""
    assert done.weights is not None
    before = None if residual is None or not residual.exists() else read_tensors(read_regular(residual, MOST_BYTES))
    content, left = make_delta(pack, plan, done.weights, len(done.training), origin, residual=before)
    return content, tensor_bytes(left)


def _path(given: AnyPath | None) -> Path | None:
    return None if given is None else Path(given)
