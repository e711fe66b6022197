"""Named tensors that stay where a session computes: in this process's memory, or on a GPU."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.engines.native import ort


class Values:
    """On the processor, arrays that a session reads and writes in place; on a GPU, copies that stay there.

    Args:
        arrays: their first values; on the processor these very arrays are used.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, arrays: Arrays, device: str) -> None:
        self._arrays = arrays if device == "cpu" else None
        self.ort = {name: ort.OrtValue.ortvalue_from_numpy(value, device, 0) for name, value in arrays.items()}

    def read(self, name: str) -> np.ndarray:
        """A copy."""
        value: np.ndarray = self.ort[name].numpy() if self._arrays is None else self._arrays[name].copy()
        return value

    def write(self, values: Mapping[str, np.ndarray]) -> None:
        """Replace the content of all of them."""
        for name, value in self.ort.items():
            if self._arrays is None:
                value.update_inplace(np.ascontiguousarray(values[name], np.float32))
            else:
                self._arrays[name][...] = values[name]
