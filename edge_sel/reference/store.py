"""Results on disk: ``OUT/<system>/seed-<n>/`` with ``history.csv``, ``run.json`` and, while it runs, a checkpoint."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from edge_sel.files import write_durably
from edge_sel.reference.results import RUN, read_result

_CHECKPOINT, _PREVIOUS = "checkpoint.safetensors", "checkpoint-previous.safetensors"
_HISTORY = "history.csv"
Row = dict[str, Any]


class RunFolder:
    """The folder of one system and seed."""

    def __init__(self, out: Path, system: str, seed: int) -> None:
        self.path = out / system / f"seed-{seed}"

    def finished(self) -> dict[str, Any] | None:
        """What ``finish`` wrote; None if the run is not over."""
        return read_result(self.path)

    def save(self, tensors: Mapping[str, torch.Tensor], rows: Sequence[Row], identity: Mapping[str, Any]) -> None:
        """The state after an epoch, and its table."""
        # Clones, as safetensors refuses tensors that share memory.
        content = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        packed = save_tensors(content, {"rows": json.dumps(rows), "identity": json.dumps(identity, sort_keys=True)})
        if (self.path / _CHECKPOINT).exists():
            (self.path / _CHECKPOINT).replace(self.path / _PREVIOUS)
        write_durably(self.path / _CHECKPOINT, hashlib.sha256(packed).digest() + packed)
        self._write_table(rows)

    def load(self) -> tuple[dict[str, torch.Tensor], list[Row], dict[str, Any]] | None:
        """What ``save`` wrote last as (tensors, rows, identity); before that if it is damaged; None if both are."""
        for name in (_CHECKPOINT, _PREVIOUS):
            try:
                content = (self.path / name).read_bytes()
                if hashlib.sha256(content[32:]).digest() != content[:32]:
                    continue
                metadata = _metadata(content[32:])
                return load_tensors(content[32:]), json.loads(metadata["rows"]), json.loads(metadata["identity"])
            except (OSError, SafetensorError, KeyError, ValueError):
                continue
        return None

    def finish(self, rows: Sequence[Row], result: Mapping[str, Any]) -> None:
        """The run is over: its table and its result; the checkpoint goes."""
        self._write_table(rows)
        write_durably(self.path / RUN, json.dumps(result, indent=1).encode())
        for name in (_CHECKPOINT, _PREVIOUS):
            (self.path / name).unlink(missing_ok=True)

    def _write_table(self, rows: Sequence[Row]) -> None:
        text = io.StringIO()
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_durably(self.path / _HISTORY, text.getvalue().encode())


def _metadata(content: bytes) -> dict[str, str]:
    """The header's metadata, which ``safetensors.torch.load`` does not give."""
    length = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return found
