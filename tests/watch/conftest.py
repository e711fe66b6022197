"""A home for the built-in digits, and pictures of digits as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_sel.data.builtin import load_digits, load_relit
from edge_sel.engines.ort import OrtEngine
from edge_sel.watch.arrivals import FolderArrivals
from edge_sel.watch.home import Home, make_home, open_home
from edge_sel.watch.learner import Learner
from edge_sel.watch.watcher import Options, Surroundings, Watcher

PACK = Path(__file__).parents[2] / "edge_sel" / "pack" / "assets" / "digits.edgepack"


class Clock:
    """Seconds that pass when somebody asks."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        self.now_s += 0.01
        return self.now_s


def write_digits(folder: Path, count: int, start: int = 0, *, relit: bool = True) -> list[tuple[Path, str]]:
    """So many digits as PNG files with their classes; of the field, or as the server has them."""
    images = load_relit("field") if relit else load_digits("test")
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for row in range(start, start + count):
        path = folder / f"{'field' if relit else 'clean'}-{row:04d}.png"
        Image.fromarray(images.read(np.array([row]))[0]).save(path)
        made.append((path, images.classes[images.labels[row]]))
    return made


@pytest.fixture
def home(tmp_path: Path) -> Home:
    make_home(tmp_path / "home", PACK)
    return open_home(tmp_path / "home")


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that has kept 150 digits of the field, and CLASSES.json with the class of each by its number; to be copied."""
    folder = tmp_path_factory.mktemp("watched")
    names = {str(path): name for path, name in write_digits(folder / "camera", 150)}
    make_home(folder / "home", PACK)
    made = open_home(folder / "home")
    around = Surroundings(Clock(), lambda: 1.0)
    watcher = Watcher(Learner(made, OrtEngine(1)), Options(rate=1.0, learn=False), around, np.random.default_rng(0))
    watcher.run(FolderArrivals(folder / "camera", made.records).once())
    kept = {image.number for image in made.records.kept()}
    truth = {line[0]: names[line[1]] for line in made.records.lines() if line[0] in kept}
    made.close()
    (folder / "CLASSES.json").write_text(json.dumps(truth))
    return folder


@pytest.fixture
def learner(home: Home) -> Learner:
    return Learner(home, OrtEngine(1), Clock())


@pytest.fixture
def watch(home: Home, learner: Learner) -> Callable[..., Watcher]:
    """Looks at what is in a folder now; the watcher, for what it knows."""

    def look(folder: Path, events: list[dict] | None = None, **options: object) -> Watcher:
        clock = Clock()
        around = Surroundings(clock, lambda: 1.0, tell=(events if events is not None else []).append)
        given = Options(**{"rate": 1.0, "learn": False, **options})
        watcher = Watcher(learner, given, around, np.random.default_rng(0))
        watcher.run(FolderArrivals(folder, home.records, (home.folder,)).once())
        return watcher

    return look
