"""The folder in which a reader of the documentation stands: some images, a pack, a model.

python -m tests.docs.folder DIR
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from edge_sel.data.builtin import load_digits, load_relit
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.outputs.model_files import write_model
from edge_sel.pack.reader import builtin_pack
from tests.cli.shell import PACK, ROOT

PROGRAM = '#!/bin/sh\nPYTHONPATH="{root}" exec "{python}" {module}"$@"\n'


def make_folder(folder: Path) -> None:
    """What docs/contributing.md lists, and ``edge-sel`` and ``python`` in its ``bin``."""
    field, test = load_relit("field"), load_relit("test")
    _write(field, folder / "images", 20)
    _write(test, folder / "test", 10)
    _write(load_digits("pretrain"), folder / "train", 20)
    _write(test, folder / "unlabelled", 1, flat=True)
    shutil.copy(PACK, folder / "model.edgepack")
    pack = builtin_pack()
    write_model(folder / "net.onnx", pack, pack.weights(), pack.manifest.model.classes)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in pack.manifest.model.classes))
    shutil.copy(next((folder / "unlabelled").iterdir()), folder / "frame.jpg")
    (folder / "bin").mkdir()
    for name, module in (("edge-sel", "-m edge_sel "), ("python", "")):
        program = folder / "bin" / name
        program.write_text(PROGRAM.format(root=ROOT, python=sys.executable, module=module))
        program.chmod(0o755)


def _write(images: ImageSet, folder: Path, each: int, flat: bool = False) -> None:
    """The first ``each`` images of every class, as JPEGs of 28 × 28 pixels."""
    for label, name in enumerate(images.classes):
        for row in np.flatnonzero(images.labels == label)[:each]:
            path = folder / f"{row}.jpg" if flat else folder / name / f"{row}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.read(np.array([row]))[0]).resize((28, 28)).save(path, quality=95)


if __name__ == "__main__":
    make_folder(Path(sys.argv[1]))
