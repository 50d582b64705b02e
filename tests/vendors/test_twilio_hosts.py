"""Twilio's hosts: every one that its SDK knows is in the fixed list, under its own address."""

import importlib
import pkgutil
from typing import Any

from kbctld.core.hosts import Hosts
from tests.vendors.test_vendor_files import VENDORS

(TWILIO,) = (vendor for vendor in VENDORS if vendor.name == "twilio")
DOCUMENTED = 38
"""In Twilio's OpenAPI documents of 2026-04; its SDK has two more since, and one less."""


def origins() -> set[str]:
    """The base URLs of all product domains in the installed SDK."""
    sdk: Any = importlib.import_module("twilio.rest")
    domain: Any = importlib.import_module("twilio.base.domain").Domain
    client = sdk.Client("AC" + "0" * 32, "x")
    found = set()
    for module in pkgutil.iter_modules(sdk.__path__):
        for member in vars(importlib.import_module(f"twilio.rest.{module.name}")).values():
            if isinstance(member, type) and issubclass(member, domain):
                found.add(member(client).base_url)
    return found


def test_every_host_of_the_sdk_can_be_reached() -> None:
    """By the label that it has there."""
    table = TWILIO.file.hosts
    assert table is not None
    hosts = Hosts(table, TWILIO.roots)
    known = {hosts.origin(label) for label in table.labels}
    assert len(origins()) >= DOCUMENTED
    assert origins() - known == set()
    assert len(known) == len(table.labels) >= DOCUMENTED
    assert known - origins() <= {"https://assistants.twilio.com"}


def test_a_missing_host_would_be_found() -> None:
    """The list of the SDK holds what agents use most."""
    assert {f"https://{label}.twilio.com" for label in ("api", "verify", "lookups", "voice")} <= origins()
