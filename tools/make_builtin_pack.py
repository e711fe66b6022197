"""Make the built-in pack: pretrain on the clean digits, calibrate, export. Needs edge-sel[server].

    python tools/make_builtin_pack.py [--keep-weights]

With ``--keep-weights`` the pack that is there gets the graphs of today's compiler and keeps its weights. Only the
``pretrain`` part of the digits is used; the default run fine-tunes on ``field`` and tests on ``test``.
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from edge_sel.data.builtin import load_digits
from edge_sel.data.dataset import ImageSet
from edge_sel.data.split import stratified_split
from edge_sel.models.registry import build
from edge_sel.pack.reader import open_pack
from edge_sel.server.export import export_pack
from edge_sel.server.pretrain import PretrainOptions, pretrain
from edge_sel.server.source.base import Source, WarmupInfo
from edge_sel.server.source.torch_model import from_checkpoint, from_module

OUT = Path(__file__).parents[1] / "edge_sel" / "pack" / "assets" / "digits.edgepack"


OPTIONS = PretrainOptions(
    model="resnet-c-small", epochs=30, batch_size=64, learning_rate=0.1, flip=False, crop_padding=1,
    validation_fraction=0.1, precision="fp32", device="cpu", seed=0, robust=False,
)  # fmt: skip


def trained(images: ImageSet) -> Source:
    """Train it from the beginning."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "digits.safetensors"
        pretrain(images, checkpoint, OPTIONS, on_epoch=print)
        return from_checkpoint(checkpoint)


def kept(images: ImageSet) -> Source:
    """The weights of the pack that is there."""
    pack = open_pack(OUT)
    spec = pack.manifest.model
    model = build(OPTIONS.model, len(spec.classes), spec.image_size)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in pack.weights().items()}, strict=False)
    _, held = stratified_split(images.labels, OPTIONS.validation_fraction, np.random.default_rng(OPTIONS.seed))
    training = dict(pack.manifest.provenance["training"])
    held_out = tuple(images.ids[row] for row in held)
    info = WarmupInfo(OPTIONS.model, spec.classes, spec.image_size, spec.mean, spec.std, training, held_out)
    return from_module(model.eval(), info)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep-weights", action="store_true", help="New graphs for the weights that are there.")
    images = load_digits("pretrain")
    source = kept(images) if parser.parse_args().keep_weights else trained(images)
    calibration = images.subset(np.arange(len(images)))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    export_pack(source, calibration, OUT, now=datetime.now(timezone.utc), note=print)
    print(f"wrote {OUT}: {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
