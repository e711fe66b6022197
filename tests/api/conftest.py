"""Runs share what onnxruntime has loaded, and exports what has been tried and exported."""

import pytest


@pytest.fixture(scope="package", autouse=True)
def once_here(exports_once, loads_once, reads_once):
    pass
