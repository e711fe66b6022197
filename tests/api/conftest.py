"""Runs share what onnxruntime has loaded, and exports what has been tried."""

import pytest


@pytest.fixture(scope="package", autouse=True)
def once_here(loads_once, reads_once):
    pass
