"""Every test that takes ``xp`` runs on NumPy and on torch."""

import array_api_compat.torch
import numpy as np
import pytest


# Session scope: hypothesis refuses fixtures that would have to be rebuilt for every example.
@pytest.fixture(scope="session", params=["numpy", "torch"])
def xp(request):
    """An array namespace."""
    return {"numpy": np, "torch": array_api_compat.torch}[request.param]
