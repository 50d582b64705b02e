"""Fixtures of the end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.support import SECRET, Kbctl, PretendStripe, new_home, pretend_stripe


@pytest.fixture
def home() -> Iterator[Kbctl]:
    """An empty home and its command line."""
    with new_home() as kbctl:
        yield kbctl


@pytest.fixture
def stripe_server(tmp_path: Path) -> Iterator[PretendStripe]:
    """A pretend Stripe that counts, in a process of its own."""
    with pretend_stripe(tmp_path) as server:
        yield server


@pytest.fixture
def served(home: Kbctl, stripe_server: PretendStripe) -> Kbctl:
    """A daemon in front of that pretend Stripe, with its credential set."""
    home("up", "--port", "0", "--upstream", f"stripe={stripe_server.url}")
    home("credential", "set", "stripe", stdin=SECRET + "\n")
    return home
