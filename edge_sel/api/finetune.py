"""``finetune``: a run, from opening the pack to the files that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from edge_sel.api.inputs import (
    Given,
    check_images,
    load_images,
    open_pack_or_builtin,
    open_profile,
    prepare_out,
    trusted_keys,
)
from edge_sel.config.profiles import Profile
from edge_sel.config.settings import Resolved, resolve
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.hold import hold_folder
from edge_sel.edge.host import Listener
from edge_sel.edge.open import open_session
from edge_sel.edge.outputs.session_folder import tuned_at_start
from edge_sel.engines.by_name import choose_engine
from edge_sel.errors import UsageError
from edge_sel.pack.expert import read_expert
from edge_sel.pack.reader import Pack
from edge_sel.pack.trained import read_trained, with_weights
from edge_sel.power.processors import usable_cores
from edge_sel.tuning.choose import machine, read_tuning, tuned_settings, tuning_file

AnyPath = str | PathLike[str]


@dataclass(frozen=True)
class Run:
    """A run that has ended, or was stopped.

    Attributes:
        folder: with the model, the weights and the records; docs/reference/files.md lists them.
        summary: what ``run.json`` holds.
    """

    folder: Path
    summary: dict[str, Any]

    @property
    def done(self) -> bool:
        """Whether nothing is left of it; a stopped one goes on with ``resume=True``."""
        return bool(self.summary["stopped"] == "done")

    @property
    def shipped(self) -> bool:
        """Whether the new model replaced the original one, on evidence that it is better."""
        return bool(self.summary["shipped"])

    @property
    def model(self) -> Path:
        """``model.onnx``, the new or the original one."""
        return self.folder / "model.onnx"

    @property
    def accuracy_before(self) -> float | None:
        """0..1, on the test images if there were any, else on the validation images."""
        value: float | None = self.summary["accuracy"]["before"]
        return value

    @property
    def accuracy_after(self) -> float | None:
        """0..1, of the new model, shipped or not; None if it was not looked at."""
        value: float | None = self.summary["accuracy"]["after"]
        return value

    @property
    def energy_j(self) -> float | None:
        """Joules of the whole run; ``energy_source`` tells whether they are measured or modelled."""
        value: float | None = self.summary["energy"]["total_j"]
        return value

    @property
    def energy_source(self) -> str:
        """``measured``, ``modelled`` or ``unavailable``."""
        return str(self.summary["energy"]["source"])


def finetune(
    pack: Pack | AnyPath | None,
    images: ImageSet | AnyPath | None,
    *,
    out: AnyPath,
    test: ImageSet | AnyPath | None = None,
    expert: AnyPath | None = None,
    weights: AnyPath | None = None,
    profile: Profile | str | None = None,
    config: AnyPath | None = None,
    environ: Mapping[str, str] | None = None,
    metrics: AnyPath | None = None,
    resume: bool = False,
    listener: Listener = lambda event: None,
    should_stop: Callable[[], str | None] = lambda: None,
    warn: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> Run:
    """Fine-tune a pack on labelled images of this device.

    Args:
        pack: an opened pack, its path, or None for the small built-in one on handwritten digits.
        images: a folder ``DIR/<class>/*.jpg``, or images in memory, uint8 [N, H, W, 3] of the model's size
            (``ImageSet.from_arrays``); None for the built-in digits.
        out: folder of the run; made where it is missing.
        test: images that only the figures before and after look at.
        expert: weights of ``edge-sel expert`` to begin with.
        weights: folder of a run of this pack, or its ``weights.safetensors``: the model in service. The run begins
            with it, and a new one must be better than it; its classes are known.
        profile: of the device, by name or .toml file; None to detect it.
        config: TOML file with settings.
        environ: environment variables: settings ``EDGE_SEL_…``, and where `edge-sel tune` keeps what it found; None
            for none of it.
        metrics: OpenMetrics text file to keep up to date.
        resume: continue the run in ``out`` if there is one. Of images in memory it compares labels and ids, not pixels.
        listener: told every event, a dict with the key ``event``; docs/reference/files.md lists them.
        should_stop: asked at every step; a text stops the run so that it can be resumed.
        warn: told in one line what does not stop the run.
        **settings: as in ``edge-sel finetune --help``, by their names in ``run.json``: ``plan="last"``, ``epochs=3``,
            ``energy_budget_j=500.0``.

    Returns:
        The run; its folder holds ``model.onnx``.

    Raises:
        EdgeSelError: in one line what cannot be done, where, and what to do about it: UsageError for settings,
            DataError for images, PackError for the pack, SetupError for what the device lacks.
    """
    device = profile if isinstance(profile, Profile) else open_profile(profile)
    layers = partial(resolve, profile=device, toml_file=_path(config), environ=environ, flags=settings)
    untuned = layers()
    trusted = trusted_keys(untuned.settings.require_signature)
    folder, data, tested = Path(out), _given(images), _given(test)
    opened = pack if isinstance(pack, Pack) else open_pack_or_builtin(_path(pack), trusted)
    if weights is not None and expert is not None:
        raise UsageError("a run begins with one model", where="--from and --expert", fix="give one of them")
    if weights is not None and trusted is not None:  # they would stay if nothing is better
        raise UsageError("the weights of a run are not signed", where="--from with --require-signature",
                         fix="leave out one of them")  # fmt: skip
    trained = None if expert is None else read_expert(Path(expert), opened, trusted)
    exported = opened
    if weights is not None:
        opened = with_weights(opened, read_trained(Path(weights), opened))
    check_images(opened, data, tested)
    with hold_folder(folder, prepare_out) as notices:
        tuned = _find_tuning(untuned, exported, device.name, folder if resume else None, environ, listener)
        resolved = layers(tuned=tuned)
        asked = resolved.settings
        with open_session(
            opened,
            resolved,
            device,
            folder,
            read_images=lambda: load_images(opened, data, tested, asked),
            make_engine=partial(
                choose_engine,
                asked.engine,
                asked.threads,
                spinning=asked.spinning,
                device=asked.device,
                note=lambda why: notices.append(("device", {"device": "cpu", "why": why})),
            ),
            should_stop=should_stop,
            listener=listener,
            expert=trained,
            metrics=_path(metrics),
            resume=resume,
            warn=warn,
            notices=notices,
        ) as session:
            return Run(folder, session.run())


def _path(given: AnyPath | None) -> Path | None:
    return None if given is None else Path(given)


def _given(images: ImageSet | AnyPath | None) -> Given:
    return images if images is None or isinstance(images, ImageSet) else Path(images)


def _find_tuning(
    untuned: Resolved, pack: Pack, profile: str, resumed: Path | None, environ: Mapping[str, str] | None, tell: Listener
) -> dict[str, Any]:
    """The settings that `edge-sel tune` found to take the fewest joules, of those that the user did not give.

    A run that is resumed keeps what it began with.
    """
    tuned = None if resumed is None else tuned_at_start(resumed)
    path = None if environ is None else tuning_file(pack.digest, "ort", environ)
    if tuned is None and untuned.settings.engine in ("auto", "ort") and path is not None:
        costs, why = read_tuning(path, machine(profile, usable_cores()))
        tuned = {} if costs is None else tuned_settings(untuned, costs, untuned.settings.plan)
        if why:
            tell({"event": "tuning_ignored", "why": why})
    if tuned:
        tell({"event": "tuned", "settings": tuned})
    return tuned or {}
