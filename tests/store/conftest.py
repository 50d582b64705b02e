"""A private folder for every test, as the daemon would have made it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, and the daemon's umask."""
    before = os.umask(0o077)
    yield tmp_path
    os.umask(before)
