"""Make the built-in pack: pretrain on the clean digits, calibrate, export. Needs edge-sel[server].

    python tools/make_builtin_pack.py

Only the ``pretrain`` part of the digits is used; the default run fine-tunes on ``field`` and tests on ``test``.
"""

from __future__ import annotations

import tempfile
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from edge_sel.data.builtin import load_digits
from edge_sel.server.export import export_pack
from edge_sel.server.pretrain import PretrainOptions, pretrain
from edge_sel.server.source.torch_model import from_checkpoint

OUT = Path(__file__).parents[1] / "edge_sel" / "pack" / "assets" / "digits.edgepack"


def main() -> None:
    images = load_digits("pretrain")
    options = PretrainOptions(
        model="resnet-c-small", epochs=30, batch_size=64, learning_rate=0.1, flip=False, crop_padding=1,
        validation_fraction=0.1, precision="fp32", device="cpu", seed=0, robust=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "digits.safetensors"
        pretrain(images, checkpoint, options, on_epoch=print)
        calibration = images.subset(np.arange(len(images)))
        OUT.parent.mkdir(parents=True, exist_ok=True)
        export_pack(from_checkpoint(checkpoint), calibration, OUT, now=datetime.now(timezone.utc), note=print)
    print(f"wrote {OUT}: {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
