"""What is counted, by which rule, and that the file brings all of it back."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kbctld.sandbox import BookDamagedError, BookInUseError, Sandbox
from tests.sandbox.support import SECRET, ask, pay


def figures(sandbox: Sandbox) -> tuple[int, int, int]:
    """Authorised, moved, declined, in US cents."""
    book = sandbox.book()
    authorised, moved, declined = (
        book[f"{name}_minor"].get("usd", 0) for name in ("authorised", "moved", "declined")
    )
    return authorised, moved, declined


def intent_of(sandbox: Sandbox, amount: int, **params: str) -> str:
    reply = ask(sandbox, "POST", "/v1/payment_intents", {"amount": amount, "currency": "usd"} | params)
    return f"/v1/payment_intents/{reply.json['id']}"


def test_a_payment_intent_counts_at_creation_and_moves_at_confirmation(sandbox: Sandbox) -> None:
    path = intent_of(sandbox, 1000)
    assert figures(sandbox) == (1000, 0, 0)
    ask(sandbox, "POST", f"{path}/confirm", {"payment_method": "pm_card_visa"})
    assert figures(sandbox) == (1000, 1000, 0)


def test_only_what_exceeds_the_counted_amount_is_counted_again(sandbox: Sandbox) -> None:
    path = intent_of(sandbox, 1000, capture_method="manual", customer="cus_1")
    for amount, authorised in ((600, 1000), (900, 1000), (1200, 1200), (1000, 1200)):
        ask(sandbox, "POST", path, {"amount": amount})
        assert figures(sandbox) == (authorised, 0, 0)
    ask(sandbox, "POST", f"{path}/confirm", {"amount_to_confirm": 1300})
    assert figures(sandbox) == (1300, 0, 0)
    ask(sandbox, "POST", f"{path}/increment_authorization", {"amount": 1500})
    assert figures(sandbox) == (1500, 0, 0)
    ask(sandbox, "POST", f"{path}/capture", {"amount_to_capture": 400, "final_capture": "false"})
    assert figures(sandbox) == (1500, 400, 0)
    ask(sandbox, "POST", f"{path}/capture")
    assert figures(sandbox) == (1500, 1500, 0)
    assert ask(sandbox, "POST", f"{path}/capture").error[1] == "payment_intent_unexpected_state"


def test_another_currency_is_all_excess(sandbox: Sandbox) -> None:
    path = intent_of(sandbox, 1000)
    ask(sandbox, "POST", path, {"currency": "eur"})
    assert sandbox.book()["authorised_minor"] == {"usd": 1000, "eur": 1000}


def test_a_declined_intent_stays_authorised_and_is_told_apart(sandbox: Sandbox) -> None:
    declined = pay(sandbox, 800, payment_method="pm_card_chargeDeclined")
    assert declined.status == 402
    assert figures(sandbox) == (800, 0, 800)
    path = f"/v1/payment_intents/{declined.json['error']['payment_intent']['id']}"
    assert ask(sandbox, "POST", f"{path}/confirm", {"payment_method": "pm_card_visa"}).status == 200
    assert figures(sandbox) == (800, 800, 800)


def test_releasing_an_authorization_moves_nothing_and_frees_nothing(sandbox: Sandbox) -> None:
    path = intent_of(sandbox, 1000, capture_method="manual", customer="cus_1", confirm="true")
    charge = ask(sandbox, "GET", path).json["latest_charge"]
    assert ask(sandbox, "POST", "/v1/refunds", {"charge": charge}).status == 400
    ask(sandbox, "POST", f"{path}/cancel")
    assert figures(sandbox) == (1000, 0, 0)
    assert ask(sandbox, "POST", "/v1/refunds", {"charge": charge}).error[1] == "charge_already_refunded"


@pytest.mark.parametrize("path", ["/v1/charges/{}/refund", "/v1/charges/{}/refunds"])
def test_the_older_ways_to_refund_count_too(sandbox: Sandbox, path: str) -> None:
    charge = ask(
        sandbox, "POST", "/v1/charges", {"amount": 500, "currency": "usd", "source": "tok_visa"}
    ).json
    assert ask(sandbox, "POST", path.format(charge["id"]), {"amount": 200}).status == 200
    assert figures(sandbox) == (700, 700, 0)


def test_a_partly_captured_charge_refunds_no_more_than_it_took(sandbox: Sandbox) -> None:
    charge = ask(
        sandbox,
        "POST",
        "/v1/charges",
        {"amount": 500, "currency": "usd", "source": "tok_visa", "capture": "False"},
    ).json
    ask(sandbox, "POST", f"/v1/charges/{charge['id']}/capture", {"amount": 300})
    assert ask(sandbox, "POST", "/v1/refunds", {"charge": charge["id"], "amount": 301}).status == 400
    assert ask(sandbox, "POST", "/v1/refunds", {"charge": charge["id"]}).json["amount"] == 300


def test_an_entry_names_who_asked(sandbox: Sandbox) -> None:
    params = {"amount": 500, "currency": "usd", "source": "tok_visa", "metadata[run]": "7"}
    answered = ask(sandbox, "POST", "/v1/charges", params, key="order-7", stripe_account="acct_1")
    entry = sandbox.entries()[0]
    assert entry.pop("time") > 0
    assert entry == {
        "seq": 1,
        "object": answered.json["id"],
        "kind": "charges.create",
        "amount_minor": 500,
        "currency": "usd",
        "authorised_minor": 500,
        "moved_minor": 500,
        "request_id": answered.headers["Request-Id"],
        "declined": False,
        "idempotency_key": "order-7",
        "account": "acct_1",
        "metadata": {"run": "7"},
    }
    assert sandbox.entries(after=1) == []


def test_calls_and_requests_are_counted_whatever_came_of_them(sandbox: Sandbox) -> None:
    pay(sandbox, 500)
    pay(sandbox, 1)
    ask(sandbox, "GET", "/v1/nothing")
    ask(sandbox, "GET", "/v1/balance", secret="sk_test_other")
    book = ask(sandbox, "GET", "/_sandbox/book", secret="").json
    assert book == sandbox.book()
    assert book["requests"] == 4
    assert book["calls"] == {"payment_intents.create": 2, "unrecognized": 1, "unauthorized": 1}
    assert ask(sandbox, "GET", "/_sandbox/else").status == 404


def test_a_restart_continues_objects_figures_and_sequence(tmp_path: Path) -> None:
    before = Sandbox(SECRET, book=tmp_path / "book")
    intent = pay(before, 500).json
    ask(before, "POST", f"/v1/payment_intents/{intent['id']}", {"metadata[a]": "1"})
    pay(before, 300, payment_method="pm_card_chargeDeclined")
    pay(before, 1)
    path = intent_of(before, 1000)
    before.close()
    after = Sandbox(SECRET, book=tmp_path / "book")
    assert after.entries() == before.entries()
    assert figures(after) == figures(before) == (1800, 500, 300)
    assert ask(after, "GET", f"/v1/payment_intents/{intent['id']}").json["metadata"] == {"a": "1"}
    lists = [ask(sandbox, "GET", "/v1/payment_intents").json for sandbox in (before, after)]
    assert lists[0] == lists[1]
    ask(after, "POST", path, {"amount": 1100})
    assert figures(after) == (1900, 500, 300)
    assert [entry["seq"] for entry in after.entries()] == [1, 2, 3, 4]
    after.close()


def test_a_half_written_last_line_is_dropped_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "book"
    sandbox = Sandbox(SECRET, book=path)
    pay(sandbox, 500)
    whole = path.read_bytes()
    pay(sandbox, 700)
    sandbox.close()
    both = path.read_bytes()
    for cut in (len(whole), len(whole) + 1, len(whole) + 2, len(whole) + 40, len(both) - 1):
        path.write_bytes(both[:cut])
        reloaded = Sandbox(SECRET, book=path)
        assert figures(reloaded) == (500, 500, 0)
        pay(reloaded, 100)  # the next line does not follow the torn one
        reloaded.close()
        again = Sandbox(SECRET, book=path)
        assert figures(again) == (600, 600, 0)
        again.close()


@pytest.mark.parametrize("text", [b"not a book\n", b"not a book", b'{"other":1}\n', b"\n"])
def test_a_file_that_is_no_book_is_refused_and_left_alone(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "book"
    path.write_bytes(text)
    with pytest.raises(BookDamagedError):
        Sandbox(SECRET, book=path)
    assert path.read_bytes() == text


def test_one_book_has_one_writer(tmp_path: Path) -> None:
    sandbox = Sandbox(SECRET, book=tmp_path / "book")
    with pytest.raises(BookInUseError):
        Sandbox(SECRET, book=tmp_path / "book")
    sandbox.close()
    Sandbox(SECRET, book=tmp_path / "book").close()


def test_the_book_is_for_its_owner_only(tmp_path: Path) -> None:
    Sandbox(SECRET, book=tmp_path / "book").close()
    assert (tmp_path / "book").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_is_a_500_that_moved_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "book"
    sandbox = Sandbox(SECRET, book=path)
    pay(sandbox, 500)
    real, calls = os.write, 0

    def full(fd: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[:20])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert pay(sandbox, 700).status == 500
    assert figures(sandbox) == (500, 500, 0)
    assert pay(sandbox, 100).status == 200
    sandbox.close()
    reloaded = Sandbox(SECRET, book=path)
    assert figures(reloaded) == (600, 600, 0)
    reloaded.close()


def test_a_closed_sandbox_moves_nothing(tmp_path: Path) -> None:
    sandbox = Sandbox(SECRET, book=tmp_path / "book")
    sandbox.close()
    assert pay(sandbox, 500).status == 500
    assert figures(sandbox) == (0, 0, 0)
