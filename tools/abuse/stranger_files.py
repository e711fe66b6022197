"""Files that somebody else may have written, changed at random: of a run, a model, a place, signatures."""

from __future__ import annotations

import contextlib
import io
import json
import random
import zlib
from pathlib import Path

from edge_sel.errors import EdgeSelError

SIGNED = b'{"format": 1, "signatures": [{"key": "%s", "signature": "%s=="}]}' % (b"0a" * 32, b"A" * 86)


def damaged(rng: random.Random, good: bytes) -> bytes:
    """A few bytes changed, a part cut out, doubled or made of zeros."""
    content = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(content) or 1) if rng.random() < 0.5 else rng.randrange(min(512, len(content)) or 1)
        size = rng.choice((1, 2, 4, 50, 1000))
        part = bytes(content[at : at + size])
        kind = rng.randrange(5)
        new = (rng.randbytes(min(size, 4)), b"", 2 * part, bytes(len(part)), b"\xff" * len(part))[kind]
        content[at : at + (min(size, 4) if kind == 0 else size)] = new
    return bytes(content[: rng.randrange(len(content) or 1)] if rng.random() < 0.1 else content)


def changed_json(rng: random.Random, good: bytes) -> bytes:
    """JSON with one value that it should not have, or a key twice."""
    content = json.loads(good)
    place = content
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
            place[key] = rng.choice(
                (
                    None,
                    -1,
                    10**400,
                    1e300,
                    -1e300,
                    float("nan"),
                    "",
                    "../../x",
                    "\x1b[2J",
                    "=1",
                    "x" * 10**5,
                    [],
                    {},
                    True,
                )
            )
            break
        place = place[key]
    text = json.dumps(content)
    return (text.replace("{", '{"a": 1, "a": 2, ', 1) if rng.random() < 0.05 else text).encode()


RUN: dict[str, bytes] = {}
"""Files of a run, made once in each process."""


def run_files(here: Path) -> dict[str, bytes]:
    if not RUN:
        from edge_sel.api.round import finetune

        given = {"plan": "closed_form,last2", "epochs": 1, "threads": 1, "meter": "psutil", "feature_store": "off"}
        finetune(None, None, out=here / "made", **given)
        RUN.update({path.name: path.read_bytes() for path in (here / "made").iterdir() if path.is_file()})
    return RUN


def read_run_folder(rng: random.Random, here: Path) -> None:
    """A run of somebody else: result, journal, events, joules over time."""
    from edge_sel.cli.show import print_result
    from edge_sel.edge.outputs.earlier import exhausted, look_into
    from edge_sel.edge.outputs.session_folder import tuned_at_start
    from edge_sel.report.read import read_records

    folder = here / "runs" / "a"
    folder.mkdir(parents=True, exist_ok=True)
    files = run_files(here)
    for name in ("run.json", "journal.jsonl", "events.jsonl", "power.csv"):
        good = files[name]
        if name != "power.csv" and rng.random() < 0.5:
            lines = [good] if name == "run.json" else good.splitlines()
            lines[-1] = changed_json(rng, lines[-1])
            good = b"\n".join(lines) + b"\n"
            if name == "journal.jsonl":
                entry = {key: value for key, value in json.loads(lines[-1]).items() if key != "crc"}
                text = json.dumps(entry)
                good = f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}\n'.encode()
        elif rng.random() < 0.5:
            good = damaged(rng, good)
        (folder / name).write_bytes(good)
    earlier = look_into(folder)
    earlier.cuts(30.0), earlier.spent(), tuned_at_start(folder)
    for record in read_records([here / "runs"]):
        _ = record.name, record.epochs, record.classes, record.settings
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if earlier.result is not None and {"energy", "accuracy", "run"} <= earlier.result.keys():
            with contextlib.suppress(KeyError):  # a result of which a part is missing, which only its own run prints
                print_result(earlier.result)
    if any(ord(sign) < 32 and sign != "\n" for sign in printed.getvalue()):
        raise AssertionError("it drives the terminal")
    with contextlib.suppress(EdgeSelError):
        exhausted(earlier, folder, 1.0)


def read_report_page(rng: random.Random, here: Path) -> None:
    """The blocks of a page about such a run, one by one."""
    from edge_sel.report.charts import Charts
    from edge_sel.report.hardness import Thumbnails
    from edge_sel.report.page import _part
    from edge_sel.report.read import read_records

    folder = here / "page" / "a"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in run_files(here).items():
        if name.endswith((".json", ".jsonl", ".csv")):
            good = content.splitlines()[-1] if name == "events.jsonl" else content
            (folder / name).write_bytes(changed_json(rng, good) if name in ("run.json", "events.jsonl") else content)
    for record in read_records([folder]):
        _part(record, Charts(), Thumbnails(here))


def read_model(rng: random.Random, here: Path) -> None:
    """A model to classify with, and an ONNX file to export, as far as they are looked at in this process."""
    from edge_sel.pack.foreign_model import survey_model
    from edge_sel.pack.graph_form import WireError

    good = run_files(here)["model.onnx"]
    head = good[:6000] + good[-3000:] if rng.random() < 0.3 else good
    with contextlib.suppress(WireError):
        survey_model(damaged(rng, head), here if rng.random() < 0.5 else None)


def read_place(rng: random.Random, here: Path) -> None:
    """What a device sends of its images, and signatures of a pack from another machine."""
    from edge_sel.data.signature import FORMAT, LENGTH, read_signature
    from edge_sel.pack.signatures import read_signatures

    good = json.dumps({"format": FORMAT, "size": [16, 16], "images": 9, "values": [0.1] * LENGTH}).encode()
    (here / "place.json").write_bytes(damaged(rng, good) if rng.random() < 0.5 else changed_json(rng, good))
    with contextlib.suppress(EdgeSelError):
        read_signatures(damaged(rng, SIGNED) if rng.random() < 0.5 else changed_json(rng, SIGNED), "here")
    read_signature(here / "place.json")
