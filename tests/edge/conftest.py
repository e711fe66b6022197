"""The computed device, fresh for each test."""

import pytest

from tests.edge.world import World


@pytest.fixture
def world():
    return World()
