"""Results as JSON and CSV files: what is not known is null or an empty cell, never zero and never NaN."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_sel.files import write_durably


def finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented JSON; NaN becomes null."""
    write_durably(path, (json.dumps(finite(content), indent=1) + "\n").encode())


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """CSV with the columns of the first row; None and NaN are empty cells."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([{key: "" if _unknown(value) else value for key, value in row.items()} for row in rows])
    write_durably(path, text.getvalue().encode())


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
