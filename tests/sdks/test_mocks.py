"""Unmodified SDKs, newest and old, through the daemon to mocks of other people: what passes and counts."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.support import SECRET
from tests.sdks.support import ACCOUNT, SDKS, Ports, Sdk, Street, street


def of(vendor: str) -> list[Sdk]:
    return [sdk for sdk in SDKS if sdk.vendor == vendor]


@pytest.fixture(scope="module")
def here(ports: Ports) -> Iterator[Street]:
    """A daemon before the mocks. No vault key has reached them at the end, and the real one every time."""
    with street(ports) as made:
        yield made
        for vendor, relay in made.relays.items():
            assert relay.arrived, vendor
            for each in relay.arrived:
                assert "vault_key" not in f"{each.path} {each.headers} {each.body!r}"
                assert each.secret == SECRET, each


@pytest.fixture
def said(here: Street) -> Any:
    """Makes a call that passes; what it said."""

    def call(sdk: Sdk, key: str, name: str = "pay", **more: Any) -> Any:
        got = here.call(sdk, key, name, **more)
        assert "said" in got, got
        assert got["slept"] == []
        return got["said"]

    return call


def rows_of(here: Street, key_id: str) -> list[tuple[Any, ...]]:
    """Operation, verdict, outcome and dollars of a key's calls, oldest first."""
    names = ("operation", "policy_check_result", "outcome", "amount_usd")
    rows = here.rows(key=key_id)
    return [tuple(row[name] for name in names) for row in reversed(rows)]


@pytest.mark.parametrize("sdk", of("stripe"), ids=str)
def test_charges_captures_and_refunds(here: Street, said: Any, sdk: Sdk) -> None:
    """A retry is replayed by the mock and counts once; a capture adds nothing; a decline counts nothing."""
    key = here.issue(vendors=["stripe"])
    vault_key, relay = key["vault_key"], here.relays["stripe"]
    arrived = len(relay.arrived)

    first, again = (said(sdk, vault_key, idempotency_key=key["key_id"]) for _ in range(2))
    assert (first["id"], first["replayed"], again["replayed"]) == (again["id"], None, "true")
    # The old one for Python writes False, which the mock takes for true.
    held = said(sdk, vault_key, amount=2000, capture="false" if sdk.language == "python" else False)
    captured = said(sdk, vault_key, "capture", of=held["id"])
    assert (held["captured"], captured["captured"], captured["amount"]) == (False, True, 2000)
    assert said(sdk, vault_key, "refund", charge=first["id"], amount=400) == 400
    assert said(sdk, vault_key, "fetch", of=first["id"])["amount_refunded"] == 400
    declined = here.call(sdk, vault_key, "pay", source="tok_chargeDeclined")
    assert declined["kind"] in ("CardError", "StripeCardError")

    assert rows_of(here, key["key_id"]) == [
        ("charges.create", "allowed", "posted", 10),
        ("charges.create", "allowed", "posted", 0),
        ("charges.create", "allowed", "posted", 20),
        ("charges.capture", "allowed", "posted", 0),
        ("refunds.create", "allowed", "posted", 4),
        ("charges.retrieve", "allowed", "posted", 0),
        ("charges.create", "allowed", "voided", 0),
    ]
    assert len(relay.arrived) - arrived == 7


@pytest.mark.parametrize("sdk", of("stripe"), ids=str)
def test_pages_of_refunds(here: Street, said: Any, sdk: Sdk) -> None:
    """The SDK asks for the next page as long as there is one; every page is a call of the key, and free.

    Of refunds, since this mock says of every list that it is theirs, and the one for Python goes by that.
    """
    key = here.issue(vendors=["stripe"])
    charge = said(sdk, key["vault_key"])["id"]
    amounts = [101, 102, 103, 104, 105]
    for amount in amounts:
        said(sdk, key["vault_key"], "refund", charge=charge, amount=amount)

    assert sorted(said(sdk, key["vault_key"], "list", of=charge)) == amounts
    assert rows_of(here, key["key_id"])[6:] == [("refunds.list", "allowed", "posted", 0)] * 3


@pytest.mark.parametrize("sdk", of("stripe"), ids=str)
def test_a_payment_intent(here: Street, said: Any, sdk: Sdk) -> None:
    """Made at another mock, which has no charges; counted when it is made."""
    key = here.issue(vendors=["stripe"], daily_usd_cap=12)
    assert said(sdk, key["vault_key"], "intent", amount=1000, currency="usd") == 1000
    refused = here.call(sdk, key["vault_key"], "intent", amount=1000, currency="usd")
    assert "cap_exhausted" in refused["text"]
    assert rows_of(here, key["key_id"]) == [
        ("payment_intents.create", "allowed", "posted", 10),
        ("payment_intents.create", "cap_exhausted", "refused", 0),
    ]


@pytest.mark.parametrize("sdk", of("twilio"), ids=str)
def test_texts_calls_and_checks(here: Street, said: Any, sdk: Sdk) -> None:
    """Counted by segment as the mock counts them, by minute and by check, on two hosts of Twilio's."""
    key = here.issue(vendors=["twilio"])
    vault_key, arrived = key["vault_key"], len(here.relays["twilio"].arrived)
    sent = said(sdk, vault_key, body="x" * 400)
    assert sent["segments"] == "3"
    assert said(sdk, vault_key, "fetch", of=sent["id"]) == "x" * 400
    assert said(sdk, vault_key, "call") == "+14155550100"
    assert said(sdk, vault_key, "verify") == ["pending", "approved"]

    rows = rows_of(here, key["key_id"])
    assert [row[:3] for row in rows] == [
        (operation, "allowed", "posted")
        for operation in (
            "messages.create",
            "messages.retrieve",
            "calls.create",
            "verify_services.list",
            "verifications.create",
            "verification_checks.create",
        )
    ]
    paid = [row[3] for row in rows]
    one = said(sdk, vault_key) and rows_of(here, key["key_id"])[-1][3]
    assert (paid[0], paid[1], paid[3]) == (pytest.approx(3 * one), 0, 0)
    assert min(paid[2], paid[4], paid[5]) > 0
    paths = [each.path for each in here.relays["twilio"].arrived[arrived:]]
    assert paths[0] == f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json"
    assert paths[3].startswith("/verify/v2/Services")


@pytest.mark.parametrize("sdk", of("twilio"), ids=str)
def test_pages_of_texts(here: Street, said: Any, sdk: Sdk) -> None:
    """The SDK follows ``next_page_uri`` through the proxy."""
    key = here.issue(vendors=["twilio"])
    marks = {f"{key['key_id']} {number}" for number in range(5)}
    for mark in marks:
        said(sdk, key["vault_key"], body=mark)

    listed = said(sdk, key["vault_key"], "list")

    assert marks <= set(listed)
    rows = rows_of(here, key["key_id"])[5:]
    assert len(rows) >= -(-len(listed) // 2) > 2
    assert set(rows) == {("messages.list", "allowed", "posted", 0)}


@pytest.mark.parametrize("sdk", of("twilio")[:1], ids=str)
def test_the_mocks_own_lists_agree_with_the_audit(here: Street, said: Any, sdk: Sdk) -> None:
    """Messages and calls are known there by their ids; one that went around is told."""
    vault_key = here.issue(vendors=["twilio"])["vault_key"]
    said(sdk, vault_key, body="for the record")
    said(sdk, vault_key, "call")

    def reconciled(status: int) -> dict[str, Any]:
        return dict(json.loads(here.kbctl("reconcile", "twilio", "--json", status=status)))

    time.sleep(3)  # what is younger may still be on its way into the list
    found = reconciled(0)
    assert (found["agree"] >= 2, found["differences"]) == (True, [])

    around = {"To": "+14155550100", "From": "+14155550111", "Body": "around"}
    path = f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json"
    relay = here.relays["twilio"].url
    made = httpx.post(f"{relay}{path}", data=around, auth=(ACCOUNT, SECRET), trust_env=False).json()
    time.sleep(3)
    (difference,) = reconciled(5)["differences"]
    assert (difference["what"], difference["object_id"]) == ("elsewhere", made["sid"])


@pytest.mark.parametrize("sdk", of("resend"), ids=str)
def test_mails(here: Street, said: Any, sdk: Sdk) -> None:
    """By recipient; a retry gets the first answer and counts once, another mail under its key fails."""
    key = here.issue(vendors=["resend"])
    vault_key = key["vault_key"]
    first, again = (said(sdk, vault_key, idempotency_key=key["key_id"]) for _ in range(2))
    assert first == again
    other = here.call(sdk, vault_key, "pay", idempotency_key=key["key_id"], subject="Another")
    assert other["code"] == "invalid_idempotent_request"
    assert said(sdk, vault_key, "batch") == 2
    assert said(sdk, vault_key, "fetch", of=first["id"]) == "Hi"
    expected = [
        ("emails.send", "allowed", "posted", 0.0009),
        ("emails.send", "allowed", "posted", 0),
        ("emails.send", "allowed", "unknown", 0.0009),  # a 409 may be said while the first is under way
        ("emails.send_batch", "allowed", "posted", 0.0027),
        ("emails.retrieve", "allowed", "posted", 0),
    ]
    if str(sdk) != "node resend old":  # it can't list
        assert said(sdk, vault_key, "list") > 2
        expected.append(("emails.list", "allowed", "posted", 0))
    assert rows_of(here, key["key_id"]) == expected


@pytest.mark.parametrize("sdk", [*of("openai"), *of("anthropic")], ids=str)
def test_language_models(here: Street, said: Any, sdk: Sdk) -> None:
    """Before a mock of our own, since nobody else's is small: test_llm_sdks.py has the rest of it."""
    key = here.issue(vendors=[sdk.vendor])
    assert said(sdk, key["vault_key"]) == "hello"
    (row,) = rows_of(here, key["key_id"])
    assert row[1:3] == ("allowed", "posted")
    assert row[3] > 0
