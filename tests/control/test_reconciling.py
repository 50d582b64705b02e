"""POST /vendors/{name}/reconcile: which time is compared, and how differences are told."""

import json
from pathlib import Path
from typing import Any

import pytest

from kbctld.core.vendor import read_vendor
from tests.control.support import Desk, desk_in
from tests.e2e.scene import MAIL
from tests.support.loop import run

PLAIN = read_vendor(MAIL.replace('"mail"', '"plain"'))
"""A vendor whose file says nothing of a list."""


async def reconciled(desk: Desk, name: str = "stripe", query: str = "") -> tuple[int, dict[str, Any]]:
    answer = await desk.sees("POST", f"/vendors/{name}/reconcile{query}")
    return answer.status, json.loads(answer.body)


def test_the_last_day_of_the_usual_account_when_nothing_is_said(folder: Path) -> None:
    """Each difference with both sides of it, oldest first; an amount that can't be told is none."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            status, found = await reconciled(desk)
            assert status == 200
            assert (found["vendor"], found["credential"], found["agree"]) == ("stripe", "stripe", 7)
            assert (found["elsewhere_usd"], found["absent_usd"]) == (2.5, 1)
            lines = {
                (each["what"], each["call_id"], each["object_id"]): each for each in found["differences"]
            }
            assert set(lines) == {
                ("elsewhere", None, "re_1"),
                ("elsewhere", None, "re_2"),
                ("absent", "call_1", None),
                ("differs", "call_2", "re_1"),
            }
            assert lines["elsewhere", None, "re_2"]["vendor_usd"] is None
            both = lines["differs", "call_2", "re_1"]
            assert (both["here_usd"], both["vendor_usd"], both["request_id"]) == (1, 2.5, "req_1")

    run(main())


@pytest.mark.parametrize(
    ("name", "query", "status", "code"),
    [
        ("acme", "", 404, "vendor_unknown"),
        ("plain", "", 409, "record_unknown"),
        ("stripe", "?from=2001-01-01T00:00:00Z", 400, "invalid_request"),
        ("stripe", "?to=2001-01-01T00:00:00Z", 400, "invalid_request"),
        ("stripe", "?credential=stripe:none", 409, "credential_unavailable"),
    ],
)
def test_what_can_not_be_compared(folder: Path, name: str, query: str, status: int, code: str) -> None:
    """A vendor that lists nothing, a time it no longer lists, an account that is not there."""

    async def main() -> None:
        async with desk_in(folder) as desk:
            desk.vault.vendors = {**desk.vault.vendors, "plain": PLAIN}
            answered, said = await reconciled(desk, name, query)
            assert (answered, said["error"]["code"]) == (status, code)
            assert said["error"]["remedy"].startswith("kbctl ")

    run(main())
