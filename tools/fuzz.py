"""Feed damaged and strange input to everything that reads some; all but a result or an EdgeSelError is a finding.

    python tools/fuzz.py --seconds 60            # all kinds in turn; --seed N repeats a run, --kind image one kind
    python tools/fuzz.py --kind image --repeat 17  # one input again, with its traceback
    python tools/fuzz.py --keep                  # add the first input of each new outcome to the corpus
    python tools/fuzz.py --corpus                # all inputs of the corpus again

Each input is random bytes changed in a good one, made from the seed and its number alone. Inputs are read by a child
process with 300 MB more memory than it has after its imports (RLIMIT_AS) and 5 s for each; one that dies or takes
longer is a finding, and another takes its place. Findings are printed with the number that repeats them; the exit
status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import multiprocessing
import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from abuse.fleet_garbage import read_fleet  # noqa: E402
from abuse.http_garbage import read_http  # noqa: E402
from abuse.stranger_files import (  # noqa: E402
    SIGNED,
    damaged,
    read_model,
    read_place,
    read_report_page,
    read_run_folder,
)

from edge_sel.errors import EdgeSelError  # noqa: E402

LIMIT_S, MEMORY_BYTES = 5.0, 300 * 10**6
SLOW = f"took more than {LIMIT_S:.0f} s"
VALUES = (
    "",
    "0",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1e308",
    "9" * 400,
    "1_0",
    "٣",
    "none",
    "max",
    "\x1b[2J",
    "\udcff",
    "0x10",
)
Reader = Callable[[random.Random, Path], None]


def pack_bytes() -> bytes:
    """The built-in pack, a zip."""
    return (ROOT / "edge_sel/pack/assets/digits.edgepack").read_bytes()


def read_image_file(rng: random.Random, here: Path) -> None:
    """One picture of any format, damaged."""
    from PIL import Image

    from edge_sel.data.images import UnreadableImage, read_image

    kind, options = rng.choice((
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("BMP", {}), ("WEBP", {}),
        ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}), ("TIFF", {"compression": "tiff_deflate"}), ("PPM", {}),
    ))  # fmt: skip
    mode = rng.choice(("RGB", "L")) if kind not in ("PNG", "TIFF") or options else rng.choice(("RGB", "L", "I;16", "P"))
    picture = Image.frombytes(mode, (48, 40), rng.randbytes(48 * 40 * {"RGB": 3, "I;16": 2}.get(mode, 1)))
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    path = here / "picture"
    path.write_bytes(damaged(rng, buffer.getvalue()))
    with contextlib.suppress(UnreadableImage):
        read_image(path, (16, 16))


def read_zip(rng: random.Random, here: Path) -> None:
    """A pack as one file, damaged anywhere."""
    from edge_sel.pack.reader import open_pack

    (here / "a.edgepack").write_bytes(damaged(rng, pack_bytes()))
    open_pack(here / "a.edgepack").weights()


def read_manifest(rng: random.Random, here: Path) -> None:
    """A pack as a folder, its manifest damaged or one of its values replaced, or its signatures."""
    from edge_sel.pack.reader import open_pack

    folder = here / "pack"
    if not folder.exists():
        with zipfile.ZipFile(io.BytesIO(pack_bytes())) as archive:
            archive.extractall(folder)
        (here / "manifest").write_bytes((folder / "manifest.json").read_bytes())
    good = (here / "manifest").read_bytes()
    (folder / "manifest.json").write_bytes(damaged(rng, good) if rng.random() < 0.5 else replaced(rng, good))
    (folder / "signatures.json").write_bytes(damaged(rng, SIGNED) if rng.random() < 0.2 else SIGNED)
    open_pack(folder).weights()


def replaced(rng: random.Random, good: bytes) -> bytes:
    """A manifest with one value that it should not have, and a digest that says it is whole."""
    from edge_sel.pack.manifest_json import _digest

    content = json.loads(good)
    place = content
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
            place[key] = rng.choice((None, -1, 10**400, 1e308, "", "../../x", "\x1b", [], {}, [[]] * 9, True))
            break
        place = place[key]
    if isinstance(content.pop("digest", None), str):
        content["digest"] = _digest(content)
    return json.dumps(content).encode()


def read_safetensors(rng: random.Random, here: Path) -> None:
    """Weights of a run and of an expert, damaged; the header more often than the rest."""
    from edge_sel.pack.reader import open_pack
    from edge_sel.pack.weights import pack_of_run, read_expert

    pack = open_pack(ROOT / "edge_sel/pack/assets/digits.edgepack")
    with zipfile.ZipFile(pack.path) as archive:
        (here / "w.safetensors").write_bytes(damaged(rng, archive.read("weights.safetensors")))
    if rng.random() < 0.5:
        read_expert(here / "w.safetensors", pack)
    else:
        pack_of_run(pack, here / "w.safetensors")


def read_checkpoint(rng: random.Random, here: Path) -> None:
    """A run's checkpoint, damaged."""
    import numpy as np

    from edge_sel.runs.checkpoint import load_checkpoint, save_checkpoint

    folder = here / "checkpoints"
    for path in folder.glob("*"):
        path.unlink()
    save_checkpoint(folder, {"w": np.arange(50, dtype=np.float32)}, {"step": 3}, {"seed": 0})
    for path in folder.glob("*"):
        path.write_bytes(damaged(rng, path.read_bytes()))
    load_checkpoint(folder)


def read_toml_file(rng: random.Random, here: Path) -> None:
    """Settings and a device profile."""
    from edge_sel.config.profiles import load_profile
    from edge_sel.config.schema import schema_of
    from edge_sel.config.settings import Settings, resolve

    deep = rng.choice((1, 100, 10_000))
    odd = [v.encode("utf-8", "replace").decode() for v in VALUES]
    values = [*odd, *map(json.dumps, odd), "[" * deep + "]" * deep, "{a=" * deep + "1" + "}" * deep, "1979-05-27"]
    names = [*schema_of(Settings), "power", "power.idle_w", "a." * deep + "b", '"\\u0000"', ""]
    text = "".join(f"{rng.choice(names)} = {rng.choice(values)}\n" for _ in range(rng.randrange(4)))
    good = b"epochs = 3\n[power]\nidle_w = 1.0\nmax_w = 2.0\n"
    (here / "a.toml").write_bytes(text.encode() if rng.random() < 0.6 else damaged(rng, good))
    if rng.random() < 0.5:
        load_profile(here / "a.toml")
    else:
        resolve(toml_file=here / "a.toml", environ={}, flags={})


def read_command_line(rng: random.Random, here: Path) -> None:
    """Options with strange values, up to where a command would begin to work."""
    import click

    from edge_sel.cli.main import COMMANDS, cli
    from edge_sel.config.schema import schema_of
    from edge_sel.config.settings import Settings, resolve

    value = rng.choice(VALUES)
    if rng.random() < 0.5:
        resolve(environ={f"EDGE_SEL_{rng.choice([*schema_of(Settings), 'X']).upper()}": value})
        return
    command = cli.get_command(click.Context(cli), rng.choice(list(COMMANDS)))
    options = [p.opts[0] for p in getattr(command, "params", []) if isinstance(p, click.Option) and not p.is_flag]
    words = [word for _ in range(rng.randrange(1, 4)) for word in (rng.choice(options or ["-x"]), rng.choice(VALUES))]
    with contextlib.suppress(click.ClickException):
        command.make_context("x", [rng.choice(VALUES), *words])  # type: ignore[union-attr]  # parses, calls nothing


KINDS: dict[str, Reader] = {
    "image": read_image_file, "zip": read_zip, "manifest": read_manifest, "safetensors": read_safetensors,
    "checkpoint": read_checkpoint, "toml": read_toml_file, "command": read_command_line, "run": read_run_folder,
    "report": read_report_page, "model": read_model, "place": read_place,
    "http": read_http, "fleet": read_fleet,
}  # fmt: skip


CORPUS = ROOT / "tools/abuse/corpus.txt"
"""One input a line: kind, seed, number; each had another outcome than those before."""
Outcome = tuple[str | None, str]
"""What is wrong, None if nothing is; and a key of what came of it, for the corpus."""


def try_one(kind: str, seed: int, number: int, here: Path) -> Outcome:
    """What became of one input."""
    try:
        KINDS[kind](random.Random(f"{seed} {kind} {number}"), here)
    except EdgeSelError as error:
        message = str(error)
        key = re.sub(r"[^a-zA-Z ]+", "#", error.what)[:60]
        return None if message.isprintable() else f"a message that drives the terminal: {message!r}", key
    except MemoryError:
        return f"needs more than {MEMORY_BYTES / 1e6:.0f} MB\n{traceback.format_exc()}", "memory"
    except Exception:
        return traceback.format_exc(), "traceback"
    return None, "good"


def work(pipe: Connection, here: Path) -> None:
    """The child: reads what it is told to, until the pipe closes."""
    faulthandler.enable()
    for kind in KINDS:  # imports, and a first use of what grows only once
        try_one(kind, 0, -1, here)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
    pipe.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(try_one(*pipe.recv(), here))


class Child:
    """A process that reads one input after the other."""

    def __init__(self, here: Path) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=work, args=(theirs, here), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()

    def read(self, kind: str, seed: int, number: int) -> tuple[Outcome, bool]:
        """What became of it, and whether the child is still of use."""
        self.pipe.send((kind, seed, number))
        if not self.pipe.poll(LIMIT_S):
            self.process.kill()
            return (SLOW, "slow"), False
        try:
            answer = self.pipe.recv()
            return answer, answer[0] is None  # one that ran out of memory may do so again, whatever it reads
        except (EOFError, ConnectionResetError):
            self.process.join()
            return (f"the process died, status {self.process.exitcode}", "dead"), False


class Fuzzer:
    """Reads inputs, counts them, prints findings and remembers outcomes."""

    def __init__(self, here: Path) -> None:
        self._here, self._child = here, Child(here)
        self.counts: Counter[str] = Counter()
        self.findings = 0
        self.outcomes: dict[tuple[str, str], tuple[int, int]] = {}

    def read(self, kind: str, seed: int, number: int) -> None:
        """One input."""
        (wrong, key), useful = self._child.read(kind, seed, number)
        if wrong == SLOW:  # once more: the whole machine may have been paused
            self._child = Child(self._here)
            (wrong, key), useful = self._child.read(kind, seed, number)
        self.counts[kind] += 1
        self.outcomes.setdefault((kind, key), (seed, number))
        if wrong:
            self.findings += 1
            print(f"--kind {kind} --seed {seed} --repeat {number}: {wrong}", flush=True)
        if not useful:
            self._child.process.kill()
            self._child = Child(self._here)

    def close(self) -> None:
        """End the child."""
        self._child.process.kill()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kind", choices=list(KINDS))
    options.add_argument("--repeat", type=int, metavar="NUMBER")
    options.add_argument("--keep", action="store_true", help="add new outcomes to the corpus")
    options.add_argument("--corpus", action="store_true", help="read the corpus again, and nothing else")
    given = options.parse_args()
    kinds = [given.kind] if given.kind else list(KINDS)
    kept = [line.split() for line in CORPUS.read_text().splitlines()] if CORPUS.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder))
        if given.corpus or given.keep:
            for kind, seed, number in kept:
                if kind in kinds:
                    fuzzer.read(kind, int(seed), int(number))
        end, number = time.monotonic() + given.seconds, given.repeat or 0
        while time.monotonic() < end and not given.corpus:
            for kind in kinds:
                fuzzer.read(kind, given.seed, number)
            number += 1
            if given.repeat is not None:
                break
        fuzzer.close()
    if given.keep:
        lines = [f"{kind} {seed} {number}" for (kind, _), (seed, number) in fuzzer.outcomes.items()]
        CORPUS.write_text("\n".join(sorted({*lines, *map(" ".join, kept)})) + "\n")
    counts = ", ".join(f"{kind} {count}" for kind, count in fuzzer.counts.items())
    print(counts, f"inputs; {fuzzer.findings} findings")
    return 1 if fuzzer.findings else 0


if __name__ == "__main__":
    sys.exit(main())
