"""The sandbox as a process: killed under load it loses no counted cent; ended kindly it says nothing."""

from __future__ import annotations

import http.client
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from kbctld.sandbox import Sandbox
from tests.sandbox.support import SECRET, ask, process

HEADERS = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/x-www-form-urlencoded"}


class Agent(threading.Thread):
    """Pays until the vendor is gone; keeps what it sent and what was answered."""

    def __init__(self, url: str, name: str, enough: threading.Semaphore) -> None:
        super().__init__(name=name)
        self.answered: dict[str, str] = {}
        self.sent: list[str] = []
        self._url = urlsplit(url).netloc
        self._enough = enough

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._url, timeout=10)
        try:
            for number in range(1_000_000):
                key = f"{self.name}-{number}"
                self.sent.append(key)
                connection.request("POST", "/v1/payment_intents", BODY, HEADERS | {"Idempotency-Key": key})
                self.answered[key] = json.load(connection.getresponse())["id"]
                self._enough.release()
        except (OSError, http.client.HTTPException, ValueError):
            pass  # the kill
        finally:
            connection.close()


BODY = "amount=700&currency=usd&customer=cus_1&confirm=true"


@contextmanager
def agents(url: str, names: str, count: int, answers: int) -> Iterator[list[Agent]]:
    """Agents at work, with at least so many answers behind them; their names keep their retry keys apart."""
    enough = threading.Semaphore(0)
    team = [Agent(url, f"{names}{number}", enough) for number in range(count)]
    for agent in team:
        agent.start()
    try:
        for _ in range(answers):
            assert enough.acquire(timeout=10)
        yield team
    finally:
        for agent in team:
            agent.join()


def test_a_kill_under_load_loses_no_counted_cent(tmp_path: Path) -> None:
    path = tmp_path / "book"
    answered: dict[str, str] = {}
    sent: list[str] = []
    for life in range(2):
        with process("--book", path) as (child, url), agents(url, f"life{life}-", 6, 150) as team:
            child.send_signal(signal.SIGKILL)
            assert child.wait(10) == -signal.SIGKILL
        for agent in team:
            answered |= agent.answered
            sent += agent.sent
    sandbox = Sandbox(SECRET, book=path)
    book = sandbox.book()
    assert len(answered) * 700 <= book["moved_minor"]["usd"] <= len(sent) * 700
    assert book["moved_minor"] == book["authorised_minor"]
    booked = {entry["object"] for entry in sandbox.entries()}
    assert booked >= set(answered.values())
    # Every agent may ask again, answered or not: what was paid is replayed, and nothing is paid twice.
    for key in sent:
        again = ask(sandbox, "POST", "/v1/payment_intents", dict(parse_qsl(BODY)), key=key)
        assert again.json["id"] == answered.get(key, again.json["id"])
    assert sandbox.book()["moved_minor"] == {"usd": len(sent) * 700}
    sandbox.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_kind_end_is_clean_and_silent(tmp_path: Path, number: signal.Signals) -> None:
    with process("--book", tmp_path / "book") as (child, url):
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        connection.request("POST", "/v1/payment_intents", BODY, HEADERS)
        assert connection.getresponse().status == 200
        child.send_signal(number)  # with the connection open
        out, err = child.communicate(timeout=10)
        connection.close()
        assert (child.returncode, out, err) == (0, b"", b"")


def test_without_a_usable_secret_or_book_it_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "book").write_text("something else\n")
    for arguments, secret in (((), ""), ((), "vault_key_1"), (("--book", tmp_path / "book"), SECRET)):
        with process(*arguments, secret=secret) as (child, url):
            _, err = child.communicate(timeout=10)
            assert (url, child.returncode) == ("", 2)
            assert err.count(b"\n") == 1
            assert SECRET.encode() not in err
