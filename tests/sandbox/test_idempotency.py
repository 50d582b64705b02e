"""An idempotency key replays its first result: which results, for whom, how long."""

from __future__ import annotations

from pathlib import Path

from kbctld.sandbox import Sandbox
from tests.sandbox.support import SECRET, Reply, ask

GOOD = {"amount": "500", "currency": "usd", "confirm": "true", "customer": "cus_1"}


def create(sandbox: Sandbox, key: str = "k", params: dict[str, str] | None = None, **headers: str) -> Reply:
    return ask(sandbox, "POST", "/v1/payment_intents", GOOD | (params or {}), key=key, **headers)


def is_replay(reply: Reply) -> bool:
    return reply.headers.get("Idempotent-Replayed") == "true"


def test_a_decline_is_replayed(sandbox: Sandbox) -> None:
    declined = create(sandbox, params={"payment_method": "pm_card_chargeDeclined"})
    again = create(sandbox, params={"payment_method": "pm_card_chargeDeclined"})
    assert (declined.status, is_replay(declined), is_replay(again)) == (402, False, True)
    assert again.json == declined.json
    assert sandbox.book()["entries"] == 1


def test_a_refusal_by_state_is_replayed_and_a_missing_object_is_not(sandbox: Sandbox) -> None:
    charge = create(sandbox).json["latest_charge"]
    ask(sandbox, "POST", "/v1/refunds", {"charge": charge})
    refund = {"charge": charge}
    assert not is_replay(ask(sandbox, "POST", "/v1/refunds", refund, key="r"))
    assert is_replay(ask(sandbox, "POST", "/v1/refunds", refund, key="r"))
    assert ask(sandbox, "POST", "/v1/refunds", {"charge": "ch_0"}, key="m").status == 404
    assert not is_replay(ask(sandbox, "POST", "/v1/refunds", {"charge": "ch_0"}, key="m"))


def test_a_500_is_replayed() -> None:
    sandbox = Sandbox(SECRET, faults=True)
    fault = {"metadata[sandbox_fault]": "500-after"}
    assert create(sandbox, params=fault).status == 500
    again = create(sandbox, params=fault)
    assert (again.status, is_replay(again)) == (500, True)
    assert sandbox.book()["moved_minor"] == {"usd": 500}


def test_other_parameters_or_another_path_are_an_idempotency_error(sandbox: Sandbox) -> None:
    create(sandbox)
    for refused in (
        create(sandbox, params={"amount": "501"}),
        ask(sandbox, "POST", "/v1/charges", GOOD, key="k"),
    ):
        assert refused.status == 400
        assert refused.json["error"]["type"] == "idempotency_error"
    assert sandbox.book()["moved_minor"] == {"usd": 500}


def test_a_key_belongs_to_an_account_and_accounts_do_not_see_each_other(sandbox: Sandbox) -> None:
    ours, theirs = create(sandbox), create(sandbox, stripe_account="acct_1")
    assert ours.json["id"] != theirs.json["id"]
    assert ask(sandbox, "GET", f"/v1/payment_intents/{theirs.json['id']}").status == 404


def test_a_key_is_forgotten_after_a_day_and_not_before() -> None:
    now = [1_000_000.0]
    sandbox = Sandbox(SECRET, clock=lambda: now[0])
    first = create(sandbox).json["id"]
    now[0] += 86_399
    assert create(sandbox).json["id"] == first
    create(sandbox, key="other")
    now[0] += 1
    second = create(sandbox).json["id"]
    assert second != first
    now[0] += 86_399
    assert is_replay(create(sandbox))
    assert not is_replay(create(sandbox, key="other"))


def test_a_key_survives_a_restart(tmp_path: Path) -> None:
    before = Sandbox(SECRET, book=tmp_path / "book")
    first = create(before)
    before.close()
    after = Sandbox(SECRET, book=tmp_path / "book")
    again = create(after)
    assert again.json == first.json
    assert is_replay(again)
    assert again.headers["Original-Request"] == first.headers["Request-Id"]
    after.close()


def test_a_key_has_at_most_255_characters(sandbox: Sandbox) -> None:
    assert create(sandbox, key="k" * 255).status == 200
    assert create(sandbox, key="k" * 256).status == 400
    assert create(sandbox, key="").status == 400


def test_a_get_ignores_the_key(sandbox: Sandbox) -> None:
    for _ in range(2):
        assert not is_replay(ask(sandbox, "GET", "/v1/balance", key="k"))
