"""Fixtures of the tests of SDKs."""

from collections.abc import Iterator

import pytest

from tests.sdks.support import Ports, mocks


@pytest.fixture(scope="session")
def ports() -> Iterator[Ports]:
    """The mocks that nobody here wrote."""
    with mocks() as behind:
        yield behind
