"""Laws 3 and 12 end to end: silence keeps the hold, and a retry is not a second charge."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.support import SECRET, Kbctl, PretendStripe, post, pretend_stripe


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[PretendStripe]:
    """A pretend Stripe that misbehaves when the request's metadata asks it to."""
    with pretend_stripe(tmp_path, faults=True) as server:
        yield server


@pytest.fixture
def served(home: Kbctl, faulty: PretendStripe) -> Kbctl:
    """A daemon in front of it."""
    home("up", "--port", "0", "--upstream", f"stripe={faulty.url}")
    home("credential", "set", "stripe", stdin=SECRET + "\n")
    return home


def port_of(kbctl: Kbctl) -> int:
    return int(kbctl.json("status")["proxy_url"].rpartition(":")[2])


def test_law_3_silence_keeps_the_hold_over_restarts_and_its_retry_resolves_it(
    served: Kbctl, faulty: PretendStripe
) -> None:
    """The vendor moved the money and hung up: held, also after a restart, and spent once a retry tells."""
    key = served("issue", "--cap", "50").strip()
    body = "amount=3000&currency=usd&metadata[sandbox_fault]=reset-after"

    status, answer = asyncio.run(post(port_of(served), "/v1/payment_intents", key, body, "order-1"))
    assert (status, answer["error"]["code"]) == (502, "upstream_unreachable")
    assert faulty.authorised_cents() == 3000
    first = served.json("audit", "--unknown")[0]
    assert (first["outcome"], first["amount_usd"], first["policy_check_result"]) == ("unknown", 30, "allowed")

    served("down")
    served("up", "--port", "0", "--upstream", f"stripe={faulty.url}")
    port = port_of(served)
    shown = served.json("show", key)
    # Held, or posted by what stands in the vendor's own list by now: never free.
    assert shown["spent_usd"] + shown["held_usd"] == 30
    status, answer = asyncio.run(
        post(port, "/v1/payment_intents", key, "amount=2001&currency=usd", "order-2")
    )
    assert (status, answer["error"]["code"]) == (429, "cap_exhausted")

    status, _ = asyncio.run(post(port, "/v1/payment_intents", key, body, "order-1"))
    assert status == 200
    assert faulty.authorised_cents() == 3000
    shown = served.json("show", key)
    assert (shown["spent_usd"], shown["held_usd"]) == (30, 0)
    retry, _, original = [row for row in served.json("audit") if row["method"] == "POST"]
    assert (retry["replay_of"], retry["amount_usd"]) == (first["call_id"], 0)
    assert (original["outcome"], original["amount_usd"]) == ("posted", 30)


def test_law_12_fifty_retries_at_once_are_one_charge(served: Kbctl, faulty: PretendStripe) -> None:
    """The same idempotency key, fifty times in parallel: one hold, one spend, whatever the vendor answers."""
    key = served("issue", "--cap", "50").strip()
    port = port_of(served)

    async def storm() -> list[int]:
        posts = (
            post(port, "/v1/payment_intents", key, "amount=3000&currency=usd", "once") for _ in range(50)
        )
        return [status for status, _ in await asyncio.gather(*posts)]

    statuses = asyncio.run(storm())

    assert set(statuses) <= {200, 409}
    assert faulty.authorised_cents() == 3000
    shown = served.json("show", key)
    assert (shown["spent_usd"], shown["held_usd"]) == (30, 0)
    status, answer = asyncio.run(post(port, "/v1/payment_intents", key, "amount=1000&currency=usd", "once"))
    assert (status, answer["error"]["type"]) == (
        400,
        "idempotency_error",
    )  # another request: the vendor's word
    assert served.json("show", key)["held_usd"] == 0


def test_a_definite_refusal_by_the_vendor_releases_the_hold(served: Kbctl) -> None:
    """A declined card of a charge moves nothing, and the whole cap is there again."""
    key = served("issue", "--cap", "50").strip()
    body = "amount=5000&currency=usd&source=tok_chargeDeclined"

    status, answer = asyncio.run(post(port_of(served), "/v1/charges", key, body, "d-1"))

    assert (status, answer["error"]["code"]) == (402, "card_declined")
    shown = served.json("show", key)
    assert (shown["spent_usd"], shown["held_usd"]) == (0, 0)
    assert served.json("audit")[0]["outcome"] == "voided"


def test_law_3_a_declined_intent_stays_counted_and_counts_once(served: Kbctl, faulty: PretendStripe) -> None:
    """It is there, and can be confirmed again with its client secret: as the pretend Stripe counts it too."""
    key = served("issue", "--cap", "50").strip()
    body = "amount=5000&currency=usd&confirm=true&payment_method=pm_card_chargeDeclined"
    port = port_of(served)

    status, answer = asyncio.run(post(port, "/v1/payment_intents", key, body, "d-1"))
    intent = answer["error"]["payment_intent"]["id"]
    again = asyncio.run(
        post(port, f"/v1/payment_intents/{intent}/confirm", key, "payment_method=pm_card_visa")
    )

    assert (status, answer["error"]["code"]) == (402, "card_declined")
    assert (again[0], again[1]["status"]) == (200, "succeeded")
    assert served.json("show", key)["spent_usd"] == 50
    assert faulty.authorised_cents() == 5000


def test_a_vendor_that_is_down_holds_nothing(served: Kbctl, faulty: PretendStripe) -> None:
    """Nothing was sent, so nothing is held, and the answer says so in the vendor's shape."""
    key = served("issue", "--cap", "50").strip()
    port = port_of(served)
    faulty.process.terminate()
    faulty.process.wait(20)

    status, answer = asyncio.run(post(port, "/v1/payment_intents", key, "amount=5000&currency=usd"))

    assert (status, answer["error"]["type"]) == (502, "api_error")
    assert answer["error"]["message"].startswith("upstream_unreachable: stripe: connection refused")
    row = served.json("audit")[0]
    assert (row["outcome"], row["policy_check_result"], row["status"]) == ("voided", "allowed", 502)
    assert served.json("show", key)["held_usd"] == 0


def test_an_intent_counts_when_made_and_later_steps_only_what_they_add(
    served: Kbctl, faulty: PretendStripe
) -> None:
    """Create $10, raise to $30, confirm: $30. A refund of it counts on its own, in the intent's currency."""
    key = served("issue", "--cap", "100").strip()
    port = port_of(served)

    def call(path: str, body: str) -> dict[str, object]:
        status, answer = asyncio.run(post(port, path, key, body))
        assert status == 200, answer
        return answer

    intent = call(
        "/v1/payment_intents", "amount=1000&currency=usd&customer=cus_1&payment_method=pm_card_visa"
    )
    call(f"/v1/payment_intents/{intent['id']}", "amount=3000")
    call(f"/v1/payment_intents/{intent['id']}/confirm", "")
    assert served.json("show", key)["spent_usd"] == 30
    call("/v1/refunds", f"payment_intent={intent['id']}&amount=500")
    assert served.json("show", key)["spent_usd"] == 35
    served("down")
    served("up", "--port", "0", "--upstream", f"stripe={faulty.url}")
    port = port_of(served)
    call("/v1/refunds", f"payment_intent={intent['id']}&amount=700")
    assert served.json("show", key)["spent_usd"] == 42
    status, answer = asyncio.run(post(port, "/v1/payment_intents/pi_unknown/confirm", key, ""))
    assert (status, answer["error"]["code"]) == (400, "amount_unknown")
