"""The folder of a watcher: the pack, the images that were kept, the models, and which of them is in service.

``kept/`` has the images that nobody has labelled, ``labelled/CLASS/`` the others: a folder that ``finetune --data``
takes. A person may move files from the one into the other; see ``labelling.collect_moved``.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, TypedDict

from edge_sel.arrays import Arrays
from edge_sel.data.folder import IMAGE_SUFFIXES, is_clutter
from edge_sel.edge.outputs.earlier import read_result
from edge_sel.edge.outputs.model_files import (
    Learnt,
    nothing_learnt,
    read_learnt,
    write_learnt,
    write_model,
    write_weights,
)
from edge_sel.errors import BadInputError, UsageError
from edge_sel.files import cannot_write, read_regular, write_durably, write_json
from edge_sel.pack.manifest import WEIGHTS
from edge_sel.pack.plan_kinds import RIDGE
from edge_sel.pack.reader import Pack, open_pack
from edge_sel.pack.signatures import TrustedKeys
from edge_sel.pack.weights import pack_of_run
from edge_sel.schema import SchemaError, Within, read_as
from edge_sel.watch.records import FILE as RECORDS
from edge_sel.watch.records import Records

FORMAT = 1
HOME, PACK, SERVICE = "home.json", "pack.edgepack", "service.json"
KEPT, LABELLED, ASIDE, MODELS, RUNS = "kept", "labelled", "set_aside", "models", "runs"
MODEL = "model.onnx"
LAST_MODELS = 5
"""That are kept, the one in service among them."""
MOST_NAME = 80
_MOST_BYTES = 1 << 16
_Number = Annotated[int, Within(0, 1 << 40)]


class _HomeFile(TypedDict):
    format: _Number
    pack: str


class _ServiceFile(TypedDict):
    model: _Number
    before: list[_Number]


class Home:
    """A home, opened.

    Attributes:
        folder: its path.
        pack: as the server exported it.
        records: what was seen and said.
        restored: why the records were made anew, empty if they were not.
    """

    def __init__(self, folder: Path, pack: Pack, records: Records, restored: str = "") -> None:
        self.folder, self.pack, self.records, self.restored = folder, pack, records, restored

    def close(self) -> None:
        """Let go of the records."""
        self.records.close()

    # The model in service

    def service(self) -> int:
        """The number of the model in service.

        Raises:
            BadInputError: the file that says it is damaged, and no model can be found.
        """
        return self._service()["model"]

    def _service(self) -> _ServiceFile:
        path = self.folder / SERVICE
        try:
            found: _ServiceFile = read_as(_ServiceFile, read_regular(path, _MOST_BYTES))
            if self._whole(found["model"]):
                return found
        except (OSError, SchemaError):
            pass
        whole = [number for number in self.models() if self._whole(number)]
        if not whole:
            raise BadInputError("no model is in service", where=path, fix="make a new home with --model")
        return {"model": whole[-1], "before": whole[:-1]}

    def _whole(self, number: int) -> bool:
        folder = self.model_folder(number)
        return (folder / WEIGHTS).is_file() and (folder / MODEL).is_file()

    def models(self) -> list[int]:
        """Numbers of the models that are there, ascending."""
        with suppress(OSError):
            return sorted(int(path.name) for path in (self.folder / MODELS).iterdir() if path.name.isdecimal())
        return []

    def model_folder(self, number: int) -> Path:
        """Where a model's files are."""
        return self.folder / MODELS / f"{number:04d}"

    def pack_in_service(self, number: int | None = None) -> Pack:
        """The pack with the weights and classes of the model in service, or of another one."""
        return pack_of_run(self.pack, self.model_folder(self.service() if number is None else number))

    def learnt_by(self, number: int, classes: int) -> Learnt | None:
        """Which images a model has learnt; None where nobody knows."""
        return read_learnt(self.model_folder(number), classes)

    def put_in_service(
        self, weights: Arrays, classes: Sequence[str], learnt: Learnt | None, about: dict[str, object]
    ) -> int:
        """Write a model, then make it the one in service: whoever is cut in between leaves the old one in service.

        The caller holds the home (``hold_lock``).
        """
        number = max([-1, *self.models()]) + 1
        folder = self.model_folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder / WEIGHTS, weights, classes)
        if learnt is not None:
            write_learnt(folder, learnt)
        write_model(folder / MODEL, self.pack, weights, classes)
        write_json(folder / "about.json", about)
        before = [] if number == 0 else [*self._service()["before"], self.service()]
        self._point(number, before)
        return number

    def roll_back(self) -> tuple[int, int]:
        """The model before it is in service again; numbers of the one that was, and that is now.

        Raises:
            UsageError: there is none before it.
        """
        now = self._service()
        before = [number for number in now["before"] if self._whole(number)]
        if not before:
            raise UsageError("no model was in service before this one", where=self.folder)
        self._point(before[-1], before[:-1])
        return now["model"], before[-1]

    def _point(self, number: int, before: Sequence[int]) -> None:
        before = list(before)[-(LAST_MODELS - 1) :]
        write_json(self.folder / SERVICE, {"model": number, "before": before})
        for old in self.models():
            if old not in {number, *before} and old < number:
                shutil.rmtree(self.model_folder(old), ignore_errors=True)

    # Images

    def image_file(self, file: str) -> Path:
        """An image's path, by what the records say."""
        return self.folder / file

    def place(self, name: str, label: str | None = None, *, aside: bool = False) -> str:
        """Where the file of an image belongs, relative to the home."""
        if aside:
            return f"{ASIDE}/{name}"
        return f"{KEPT}/{name}" if label is None else f"{LABELLED}/{label}/{name}"


def suffix_of(path: str) -> str:
    """The ending of an image's name; .jpg of one that has none of ours."""
    suffix = Path(path).suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES else ".jpg"


def check_class_name(name: str) -> str:
    """The name of a class as a person typed it, without spaces around it.

    Raises:
        UsageError: it is empty, too long, or cannot be the name of a folder everywhere.
    """
    name = " ".join(name.split())
    fix = f"letters, digits and spaces, at most {MOST_NAME}"
    odd = set('/\\:*?"<>|') & set(name)
    if not name or len(name) > MOST_NAME or not name.isprintable() or odd or name[0] in ".-~" or name[-1] == ".":
        raise UsageError("that cannot be the name of a class", where=name[:MOST_NAME] or None, fix=fix)
    if is_clutter(name) or len(name.encode()) > 200:
        raise UsageError("that cannot be the name of a class", where=name, fix=fix)
    return name


def make_home(folder: Path, model: Path, trusted: TrustedKeys | None = None) -> None:
    """Make a home for a pack, or for a run of one; what is there already stays.

    Raises:
        UsageError: it is a home already, of another pack.
        PackError, BadInputError: the model cannot be used.
        SetupError: the folder cannot be made.
    """
    pack, started = _open_model(model, trusted)
    if RIDGE not in pack.plan_names:
        raise BadInputError("the pack has no head in closed form, so nothing can be watched with it", where=model,
                            fix="`edge-sel export --dry-run` names what is in the way")  # fmt: skip
    for name in pack.manifest.model.classes:
        check_class_name(name)
    if pack.sums is None and pack.anchors is None:
        raise BadInputError("the pack holds no images of the server", where=model, fix="export it again with --data")
    with suppress(BadInputError):
        there = _read_home(folder)
        if there["pack"] != pack.digest:
            raise UsageError(
                "it is the home of another pack", where=folder, fix="name another --home, or leave out --model"
            )
        return
    try:
        for name in (KEPT, LABELLED, ASIDE, MODELS, RUNS):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    write_durably(folder / PACK, _as_file(pack))
    home = Home(folder, pack, Records(folder))
    try:
        begun = pack if started is None else pack_of_run(pack, started)
        classes = begun.manifest.model.classes
        learnt = nothing_learnt() if started is None else read_learnt(started, len(classes))
        home.put_in_service(begun.weights(), classes, learnt, {"from": str(started or model)})
        write_json(folder / HOME, {"format": FORMAT, "pack": pack.digest})
    finally:
        home.close()


def _as_file(pack: Pack) -> bytes:
    """One file with all that the pack holds, its signatures too."""
    from io import BytesIO
    from zipfile import ZIP_STORED, ZipFile, ZipInfo

    made = BytesIO()
    with ZipFile(made, "w", ZIP_STORED) as archive:
        for name, content in sorted(pack.files.items()):
            archive.writestr(ZipInfo(name), content)
    return made.getvalue()


def _open_model(model: Path, trusted: TrustedKeys | None) -> tuple[Pack, Path | None]:
    """The pack, and the folder of the run if the model is one: that says which pack it was."""
    if not (model / "run.json").is_file():
        return open_pack(model, trusted), None
    result, why = read_result(model)
    if result is None:
        raise BadInputError(
            f"the run cannot be read, {why}", where=model / "run.json", fix="name a pack, or another run"
        )
    pack = open_pack(Path(result["pack"]), trusted)
    return pack, model if (model / WEIGHTS).is_file() else None  # of a run that did not ship there are none


def _read_home(folder: Path) -> _HomeFile:
    try:
        found: _HomeFile = read_as(_HomeFile, read_regular(folder / HOME, _MOST_BYTES))
    except FileNotFoundError as error:
        fix = "`edge-sel watch FOLDER --model PACK --home DIR` makes one"
        raise BadInputError("it is no home of a watcher", where=folder, fix=fix) from error
    except (OSError, SchemaError) as error:
        raise BadInputError("the home cannot be read", where=f"{folder / HOME}: {error}") from error
    if found["format"] != FORMAT:
        raise BadInputError(f"a home of version {found['format']}", where=folder, fix="take the edge-sel that made it")
    return found


def open_home(folder: Path, trusted: TrustedKeys | None = None) -> Home:
    """Open a home. Damaged records are made anew, as far as the folders tell what was in them.

    Raises:
        BadInputError: it is none, or of another version.
        PackError: its pack is damaged.
        SetupError: the records cannot be opened.
    """
    content = _read_home(folder)
    pack = open_pack(folder / PACK, trusted)
    if pack.digest != content["pack"]:
        raise BadInputError("the pack in the home is another one", where=folder / PACK)
    restored = ""
    try:
        records = Records(folder)
        records.check()
    except BadInputError as error:
        if error.what.startswith("records of version"):
            raise
        restored = error.what
        records = _new_records(folder)
    return Home(folder, pack, records, restored)


def _new_records(folder: Path) -> Records:
    """Put damaged records aside, and begin new ones."""
    number = 1
    while (aside := folder / f"{RECORDS}.damaged-{number}").exists():
        number += 1
    try:
        (folder / RECORDS).rename(aside)
        for end in ("-wal", "-shm"):
            (folder / f"{RECORDS}{end}").unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(folder / RECORDS, error) from error
    return Records(folder)
