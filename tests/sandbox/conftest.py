"""Fixtures: a pretend Stripe in memory, one on a socket, and the real SDK pointed at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import stripe

from kbctld.sandbox import RunningSandbox, Sandbox
from tests.sandbox.support import SECRET, served


@pytest.fixture
def sandbox() -> Sandbox:
    return Sandbox(SECRET)


@pytest.fixture
def running() -> Iterator[RunningSandbox]:
    with served(Sandbox(SECRET, faults=True)) as running:
        yield running


@pytest.fixture
def client(running: RunningSandbox) -> Iterator[stripe.StripeClient]:
    transport = stripe.RequestsClient()
    yield stripe.StripeClient(
        SECRET, base_addresses={"api": running.url}, max_network_retries=0, http_client=transport
    )
    transport.close()  # type: ignore[no-untyped-call]  # the SDK leaves it so
