"""The folder of a run: does it hold a run, is it the run to be continued, its checkpoints and its results."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge_sel.arrays import Arrays
from edge_sel.edge.energy import LOST, OPENING, Spent, beyond
from edge_sel.edge.host import Notice
from edge_sel.edge.open import RunInputs
from edge_sel.edge.outputs import model_files
from edge_sel.edge.outputs.earlier import JOURNAL, Earlier, damaged_outputs, look_into, read_result
from edge_sel.edge.outputs.logs import POWER, EventLog, write_history
from edge_sel.edge.outputs.model_files import LEARNT, Learnt, write_learnt
from edge_sel.edge.progress import Progress
from edge_sel.errors import SetupError, UsageError
from edge_sel.files import sha256_of, write_json
from edge_sel.pack.manifest import WEIGHTS
from edge_sel.runs.checkpoint import (
    Identity,
    flatten,
    list_checkpoints,
    load_checkpoint,
    read_checkpoints,
    remove_temporary,
    require_same,
    save_checkpoint,
    unflatten,
)
from edge_sel.version import __version__

# --- What a run is a run of


MAY_CHANGE = {
    "engine", "device", "spinning", "checkpoint_every_s", "meter", "require_measured", "energy_budget_j", "max_temp_c",
    "battery_floor", "deadline_s", "power_cap_w", "on_ac_only", "quiet_hours", "max_pixels", "require_signature",
    "feature_store", "feature_store_mb",
}  # fmt: skip
"""Settings that may change when a run is resumed. They do not change what is computed; limits change only how far.

The engine is compared by its own key, ``ENGINE``, and images by their fingerprint. The keys that may have signed may
change; ``SIGNED`` keeps the requirement of a signature.
"""

ENGINE = "engine"
"""Key of an identity. A run may go on with another engine; the last bits of its results may then differ."""

TUNED = "tuned"
"""Key of an identity: the settings that tuning chose. A resumed run takes them; their values are compared too."""
SIGNED = "--require-signature"
"""Key of an identity: whether a signature was required. A resumed run may add this requirement, but not drop it."""


def identify(given: RunInputs) -> Identity:
    """What the run is a run of; each value survives JSON."""
    pack, resolved, test, learnt = given.pack, given.resolved, given.test, given.learnt
    values = {key: entry["value"] for key, entry in resolved.to_json().items() if key not in MAY_CHANGE}
    return {
        "edge_sel": __version__,
        "pack": pack.digest,
        "from": None if pack.begun_from is None else pack.manifest.files[WEIGHTS].sha256[:16],
        "learnt": None if learnt is None else learnt.digest,
        "images": given.images.fingerprint(),
        "test images": None if test is None else test.fingerprint(),
        ENGINE: given.engine.name,
        "expert": None if given.expert is None else given.expert.digest,
        **values,
        SIGNED: True if resolved.settings.require_signature else None,  # null in runs of before there were signatures
        TUNED: {key: getattr(resolved.settings, key) for key, at in resolved.origins.items() if at == "tuned"},
    }


def require_same_session(found: Mapping[str, Any], identity: Identity, where: Path) -> None:
    """As ``require_same``, but the engine may change, and a signature may be required where none was."""
    ignored = (TUNED, ENGINE, SIGNED) if identity[SIGNED] else (TUNED, ENGINE)
    require_same(found, identity, where, ignored=ignored)


# --- The folder


FILES = ("run.json", "history.csv", "events.jsonl", "model.onnx", "weights.safetensors", LEARNT, JOURNAL, POWER)
"""What a session leaves behind, beside its checkpoints."""


def tuned_at_start(out: Path) -> dict[str, Any] | None:
    """The settings that tuning chose when the run in ``out`` began; None if there is no run to resume.

    A run keeps these settings to its end, also where a later tuning found others.
    """
    result, _ = read_result(out)
    loaded = load_checkpoint(out / "checkpoints") if result is None else None
    if result is None and loaded is None:
        return None
    identity = result["identity"] if result is not None else loaded[2] if loaded is not None else {}
    tuned = identity.get(TUNED, {})
    return dict(tuned) if isinstance(tuned, dict) else {}


def refuse_used(out: Path) -> None:
    """Refuse a folder that holds a run, which a new run would overwrite.

    Raises:
        UsageError: it holds one.
    """
    if any((out / name).exists() for name in FILES) or list_checkpoints(out / "checkpoints"):
        raise UsageError("the folder holds a run already", where=out, fix="--resume, or another --out")


def finished_run(out: Path, identity: Identity) -> dict[str, Any] | None:
    """The result of the run that ended in ``out``; None if there is no result, or a limit stopped the run early.

    A damaged result is ignored where there is a checkpoint to continue from.

    Raises:
        UsageError: it is not the result of this run.
    """
    result, trouble = read_result(out)
    if trouble and load_checkpoint(out / "checkpoints") is None:
        what = f"not the result of a run of edge-sel: {trouble}"
        raise UsageError(what, where=out / "run.json", fix="another --out")
    if result is None:
        return None
    require_same_session(result["identity"], identity, out)
    return result if result["stopped"] == "done" else None


def unfinished_run(out: Path, identity: Identity) -> tuple[Progress, str] | None:
    """The state in the newest checkpoint that this version of edge-sel can read, and the engine that computed it.

    Raises:
        UsageError: there are checkpoints, but all are of another run or of another version.
    """
    refused: UsageError | None = None
    for tensors, scalars, found, path in read_checkpoints(out / "checkpoints"):
        try:
            require_same_session(found, identity, path)
            return unflatten(Progress, tensors, scalars), str(found[ENGINE])
        except UsageError as error:
            refused = refused or error
        except (KeyError, TypeError) as error:
            what = f"the checkpoint is of another version of edge-sel ({error} is missing)"
            refused = refused or UsageError(what, where=path, fix="begin anew with another --out")
    if refused is not None:
        raise refused
    return None


class SessionFolder:
    """The folder of one run. Making this object reads the folder and changes nothing in it.

    Args:
        given: to the run. Its folder need not exist yet.

    Attributes:
        identity: what the run is a run of.
        earlier: what earlier processes left.
        finished: the result of the run, if it has come to its end.
        broken: files of a finished run that are missing or damaged and will be written again.
        found: the state to continue from; None for a new beginning.
        notices: events to tell when the run begins.

    Raises:
        UsageError: the folder holds another run, or one that is not to be continued.
        SetupError: files of the finished run are damaged, and nothing is left to restore them from.
    """

    def __init__(self, given: RunInputs) -> None:
        path, earlier = given.out, given.opened and given.opened.earlier
        identity = identify(given)
        self._given, self.path, self.identity = given, path, identity
        self.earlier, self.finished, self.found = Earlier(), None, None
        self.broken: list[str] = []
        self.notices: list[Notice] = []
        if path is None:
            return
        if not given.resume:
            if earlier is None:
                refuse_used(path)
            return
        self.earlier = look_into(path) if earlier is None else earlier
        self.finished = finished_run(path, identity)
        self.broken = [] if self.finished is None else damaged_outputs(path, self.finished)
        if self.finished is None or not model_files.CAN_BE_MADE_AGAIN.issuperset(self.broken):
            found = unfinished_run(path, identity)
            self.finished, self.found = None, None if found is None else found[0]
            self._notice(path, bool(list_checkpoints(path / "checkpoints")))
            if found is not None and found[1] != identity[ENGINE]:
                self.notices.append(("engine_changed", {"before": found[1], "now": identity[ENGINE]}))

    def _notice(self, path: Path, checkpoints: bool) -> None:
        if self.broken and self.found is None:
            names = " and ".join(self.broken)
            raise SetupError(
                f"{names} of the finished run: missing or damaged, and no checkpoint is left to restore from",
                where=path,
                fix="begin anew with another --out",
            )
        if self.broken:
            self.notices.append(("outputs_damaged", {"files": self.broken}))
        if self.earlier.trouble:
            self.notices.append(("outputs_damaged", {"files": ["run.json"]}))
        if self.earlier.journal_damaged:
            self.notices.append(("journal_damaged", {"file": JOURNAL}))
        if self.found is None and checkpoints:
            self.notices.append(("checkpoints_damaged", {}))

    def spent_before(self, booked: Spent, opening: Spent | None) -> Spent:
        """What earlier processes of the run have spent, and what this one took to open it.

        ``booked``: spent by the checkpoint. ``opening``: by this process so far; None where nothing was measured.
        """
        if self.finished is not None:
            return booked
        if not self.earlier.began:
            return booked if opening is None else booked.plus_phase(OPENING, opening)
        more = Spent() if self.earlier.last_line is None else beyond(self.earlier.last_line, booked)
        undone = not self.earlier.ended or self.found is None or bool(self.broken)
        # Of a process that ended in order, the checkpoint lacks what it took to write it.
        spent = booked.plus_phase(LOST if undone else "checkpoint", more) if more.seconds else booked
        if opening is not None:
            spent = spent.plus_phase(LOST, opening)
        before, now = (s.phases.get(LOST, {"total_j": 0.0, "seconds": 0.0}) for s in (booked, spent))
        if now != before:
            details = {"energy_j": now["total_j"], "seconds": now["seconds"], "cut": not self.earlier.ended}
            self.notices.append(("lost", details))
        return spent

    def begin(self, emit: EventLog) -> None:
        """Tell the notices, and remove temporary files of writes that were interrupted."""
        if self.path is not None:
            for name in FILES:
                with suppress(OSError):
                    (self.path / f".{name}.tmp").unlink(missing_ok=True)
            remove_temporary(self.path / "checkpoints")
        for event, details in self.notices:
            emit(event, **details)

    def restored(self, result: dict[str, Any], emit: EventLog) -> dict[str, Any]:
        """Write the files of a finished run again that are missing or damaged; returns the result."""
        if not self.broken or self.path is None:
            return result
        if "history.csv" in self.broken:
            write_history(self.path / "history.csv", result["epochs"], self._given.classes)
        if "model.onnx" in self.broken:
            self._write_onnx(self.path, model_files.read_weights(self.path / "weights.safetensors"))
        if damaged_outputs(self.path, result):  # another version of a library writes other bytes
            result = {**result, "outputs": self.digests()}
            self.write_summary(result)
        emit("restored", files=self.broken)
        return result

    def digests(self) -> dict[str, str]:
        """sha256 of the result files, by name."""
        if self.path is None:
            return {}
        found = {name: sha256_of(self.path / name) for name in model_files.OUTPUTS}
        return {name: digest for name, digest in found.items() if digest is not None}

    def weights(self) -> Arrays | None:
        """The weights in the folder of a finished run; None in memory."""
        return None if self.path is None else model_files.read_weights(self.path / "weights.safetensors")

    def save(self, progress: Progress) -> str | None:
        """Write a checkpoint; returns its file name, None in memory."""
        if self.path is None:
            return None
        return save_checkpoint(self.path / "checkpoints", *flatten(progress), self.identity).name

    def write_history(self, progress: Progress) -> None:
        """``history.csv``."""
        if self.path is not None:
            write_history(self.path / "history.csv", progress.history, self._given.classes)

    def write_model(self, weights: Arrays) -> None:
        """Write ``weights.safetensors`` and ``model.onnx``, and compare what the latter computes with the engine."""
        if self.path is not None:
            model_files.write_weights(self.path / "weights.safetensors", weights, self._given.classes)
            self._write_onnx(self.path, weights)

    def _write_onnx(self, path: Path, weights: Arrays) -> None:
        given, file, pack = self._given, path / "model.onnx", self._given.pack
        model_files.write_model(file, pack, weights, given.classes)
        model_files.verify_model(file, given.engine.predictor(pack, weights), pack.manifest.model)

    def write_learnt(self, learnt: Learnt | None) -> None:
        """Write ``learnt.safetensors``, which belongs to the weights; nothing where ``learnt`` is None."""
        if self.path is not None and learnt is not None:
            write_learnt(self.path, learnt)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """``run.json``: from now on the run is finished."""
        if self.path is not None:
            write_json(self.path / "run.json", summary)
