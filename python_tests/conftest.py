"""What every test shares: a seed from the test's name, and property tests that repeat exactly."""

import zlib

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A number that depends on the test's name and on nothing else."""
    return zlib.crc32(request.node.name.encode())
