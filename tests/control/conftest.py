"""A private folder for every test, short enough for a UNIX socket."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder, and the daemon's umask."""
    before = os.umask(0o077)
    made = Path(tempfile.mkdtemp(prefix="kb-")).resolve()
    yield made
    shutil.rmtree(made)
    os.umask(before)
