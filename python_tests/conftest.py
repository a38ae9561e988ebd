"""What every test shares: a seed, a place to stand, and property tests that repeat exactly."""

import os
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The tests use tiny products: on busy cores torch's threads wait for each other far longer than
# they compute. Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-full", action="store_true", help="2,000 random cases instead of 200")
    parser.addoption("--screenshots", metavar="DIR", help="keep pictures of pages in this folder")


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> range:
    """The seeds of a fuzz test."""
    return range(2000 if request.config.getoption("--fuzz-full") else 200)


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Away from the checkout: a Python started by a test must import the installed package."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A number that depends on the test's name and on nothing else."""
    return zlib.crc32(request.node.name.encode())
