"""Types of arrays that several rooms hand to one another."""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]
"""Arrays by name, such as all weights of a model."""

Range = tuple[float, float]
"""Least and greatest value of an array."""
