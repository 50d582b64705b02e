"""``audit``: the rows, for people and for programs."""

import csv
import io
import json
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from kbctl import wire
from tests.cli.conftest import Cli, Seen
from tests.cli.support import PretendDaemon, call, denied


def test_filters(cli: Cli, daemon: PretendDaemon) -> None:
    """Each option is one parameter; the newest 50 when nothing else is said."""
    daemon.on("GET /audit", [call()])

    cli("audit")
    cli(
        *(
            "audit",
            "--label",
            "tenant:acme",
            "--tenant",
            "acme",
            "--key",
            "vk_3",
            "--vendor",
            "stripe",
            "--denied",
        ),
        *(
            "--unknown",
            "--duplicates",
            "--from",
            "2026-11-20",
            "--to",
            "2026-11-21T09:30+01:00",
            "--limit",
            "7",
        ),
    )

    assert dict(daemon.asked[0].query) == {"limit": "50"}
    assert dict(daemon.asked[1].query) == {
        "label_contains": "tenant:acme",
        "tenant": "acme",
        "key": "vk_3",
        "vendor": "stripe",
        "denied": "true",
        "unknown": "true",
        "duplicates": "true",
        "from": "2026-11-20T00:00:00.000000Z",
        "to": "2026-11-21T08:30:00.000000Z",
        "limit": "7",
    }


def test_since(cli: Cli, daemon: PretendDaemon) -> None:
    """A duration becomes a time."""
    daemon.on("GET /audit", [])

    result = cli("audit", "--since", "1h")

    assert dict(daemon.only.query)["from"].endswith("Z")
    assert (result.stdout, result.stderr) == ("", "no calls match\n")


@pytest.mark.parametrize(
    ("args", "example"),
    [
        (("--since", "yesterday"), "--since 2h"),
        (("--from", "11/20"), "--from 2026-11-21T09:30Z"),
        (("--to", "2026-02-30"), "--to 2026-11-21T09:30Z"),
        (("--since", "1h", "--from", "2026-11-20"), "--since 1h"),
        (("--limit", "-1"), "--limit 0"),
        (("--json", "--jsonl"), "--json"),
        (("--follow", "--json"), "--follow"),
        (("--follow", "--to", "2026-11-21"), "--follow"),
    ],
)
def test_mistakes(cli: Cli, daemon: PretendDaemon, args: tuple[str, ...], example: str) -> None:
    """The value is named, a good one shown, nothing sent."""
    result = cli("audit", *args)

    assert (result.exit_code, result.stdout, daemon.asked) == (2, "", [])
    assert example in result.stderr


def test_rows(cli: Cli, daemon: PretendDaemon) -> None:
    """Allowed: the outcome. Refused: the code, how often, and why."""
    rows = [
        denied(folded=19),
        denied(requested_usd=None, policy_check_result="endpoint_not_allowed", reason="not this one"),
        call(outcome="unknown"),
        call(outcome="posted", replay_of="call_1"),
        call(outcome="posted", duplicate_of="call_1"),
        call(vault_key_id=None, tenant=None, method=None, endpoint=None, policy_check_result="key_missing"),
    ]
    daemon.on("GET /audit", rows)

    lines = cli("audit").stdout.splitlines()

    assert lines[0].split() == "UTC KEY TENANT CALL ASKED COUNTED RESULT REASON".split()
    for line, part in zip(
        lines[1:],
        [
            "$120.00    $0.00  cap_exhausted x20     daily cap of $500.00",
            "-    $0.00  endpoint_not_allowed  not this one",
            "$120.00  $120.00  unknown",
            "posted again",
            "posted duplicate?",
            "-              -       ? ?",
        ],
        strict=True,
    ):
        assert part in line


def test_programs_get_every_page(cli: Cli, daemon: PretendDaemon) -> None:
    """``--limit 0``: all rows, one array, one object a line, or one CSV."""
    for _ in range(3):
        daemon.on("GET /audit", [call(call_id="call_9")], Link='</audit?before=9>; rel="next"')
        daemon.on("GET /audit", [denied(call_id="call_8")])

    document, lines = cli("audit", "--limit", "0", "--json"), cli("audit", "--limit", "0", "--jsonl")
    # The last reply stays: no further page after it.
    table = cli("audit", "--limit", "0", "--csv")

    assert [row["call_id"] for row in json.loads(document.stdout)] == ["call_9", "call_8"]
    assert [json.loads(line)["call_id"] for line in lines.stdout.splitlines()] == ["call_9", "call_8"]
    rows = list(csv.DictReader(io.StringIO(table.stdout)))
    assert [(row["call_id"], row["amount_usd"]) for row in rows] == [("call_9", "120"), ("call_8", "0")]


def test_rows_as_received(cli: Cli, daemon: PretendDaemon) -> None:
    """Fields of a newer daemon and exact numbers survive."""
    body = b'[{"call_id":"x","newer":0.10,"big":123456789.123456789}]'
    daemon.on("GET /audit", body)

    assert cli("audit", "--json").stdout == body.decode() + "\n"
    assert cli("audit", "--jsonl").stdout == body.decode()[1:-1] + "\n"


EVIL = "\x1b]0;owned\x07\x9b2J\u202e=cmd"


@pytest.mark.parametrize("form", [(), ("--json",), ("--jsonl",), ("--csv",)])
def test_agents_cannot_steer_the_terminal(cli: Cli, daemon: PretendDaemon, form: tuple[str, ...]) -> None:
    """Escapes, one-character controls, direction marks and line breaks in every field an agent chooses."""
    daemon.on(
        "GET /audit",
        [
            denied(
                agent_run_label=EVIL,
                endpoint=f"/v1/{EVIL}\nforged row",
                reason=EVIL,
                idempotency_key=EVIL,
                metadata={EVIL: EVIL},
            )
        ],
    )

    result = cli("audit", *form)

    assert result.exit_code == 0
    assert not set(result.stdout) & set("\x1b\x07\x9b\u202e\r")
    if form != ("--json",):
        assert len(result.stdout.splitlines()) == (1 if form == ("--jsonl",) else 2)
    if form in (("--json",), ("--jsonl",)):
        parsed = json.loads(result.stdout)
        assert (parsed[0] if isinstance(parsed, list) else parsed)["reason"] == EVIL


def test_csv_starts_no_formula(cli: Cli, daemon: PretendDaemon) -> None:
    """A spreadsheet would run a cell that begins so."""
    daemon.on("GET /audit", [call(idempotency_key="=HYPERLINK(1)", reason="@SUM(1)", agent_run_label="+1")])

    (row,) = csv.DictReader(io.StringIO(cli("audit", "--csv").stdout))

    assert (row["idempotency_key"], row["reason"], row["agent_run_label"]) == (
        "'=HYPERLINK(1)",
        "'@SUM(1)",
        "'+1",
    )


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_at_a_terminal(terminal: Callable[..., Seen], daemon: PretendDaemon, columns: int) -> None:
    """Whole results, ids and amounts at any width; a long path is folded, not lost."""
    path = "/v1/payment_intents/pi_3MtwBwLkdIwHu7ix28a3tqPa/confirm"
    daemon.on("GET /audit", [denied(endpoint=path, policy_check_result="endpoint_not_allowed")])

    seen = terminal("audit", columns=columns, color=True)

    for whole in ("vk_3f9c2a7d10", "$120.00", "endpoint_not_allowed"):
        assert whole in seen.plain
    if columns >= 80:
        assert max(map(len, seen.plain.splitlines())) <= columns


def _until_ctrl_c(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    left = iter(range(rounds - 1))

    def sleep(_: float) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)


def test_follow(cli: Cli, daemon: PretendDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oldest first, each row once, asking from the newest time seen on; Ctrl-C ends it."""
    at = "2026-11-20T09:30:00.000002Z"
    old, first, second = call(call_id="a"), denied(call_id="b", timestamp=at), call(call_id="c", timestamp=at)
    daemon.on("GET /audit", [first, old])
    daemon.on("GET /audit", [second, first])
    daemon.on("GET /audit", [second, first])
    _until_ctrl_c(monkeypatch, 3)

    result = cli("audit", "--follow", "--jsonl", "--tenant", "acme")

    assert [json.loads(line)["call_id"] for line in result.stdout.splitlines()] == ["a", "b", "c"]
    assert result.exit_code == 130
    assert [dict(asked.query) for asked in daemon.asked] == [
        {"tenant": "acme", "limit": "50"},
        {"tenant": "acme", "limit": "1000", "from": at},
        {"tenant": "acme", "limit": "1000", "from": at},
    ]


def test_follow_in_words(cli: Cli, daemon: PretendDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line a row, with its reason."""
    daemon.on("GET /audit", [denied()])
    _until_ctrl_c(monkeypatch, 1)

    (line,) = cli("audit", "-f").stdout.splitlines()

    for part in (
        "vk_3f9c2a7d10",
        "POST /v1/payment_intents",
        "asked $120.00",
        "cap_exhausted",
        "daily cap of",
    ):
        assert part in line


def test_an_unreadable_row(cli: Cli, daemon: PretendDaemon) -> None:
    """Said, not raised."""
    body: list[dict[str, Any]] = [{"call_id": 5}]
    daemon.on("GET /audit", wire.encode(body))

    result = cli("audit")

    assert result.exit_code == 1
    assert "could not be read" in result.stderr


# --- one call ---------------------------------------------------------------------------------------


def test_explain_tells_a_call_in_words(cli: Cli, daemon: PretendDaemon) -> None:
    """Who, what, the verdict and the money; the same as JSON for programs."""
    daemon.on("GET /calls/call_1", call())

    told = " ".join(cli("explain", "call_1").stdout.split())
    machine = json.loads(cli("explain", "call_1", "--json").stdout)

    for part in (
        "call_1 posted",
        "2026-11-20 09:30:00",
        "12 ms (11 ms of it the vendor's)",
        "vk_3f9c2a7d10, tenant acme",
        "POST /v1/payment_intents (stripe: payment_intents.create)",
        "asked for $120.00 (stated: 12,000 usd, in minor units)",
        "counts $120.00 against the cap",
        "HTTP 200",
        "vendor id req_1",
    ):
        assert part in told
    assert machine["call_id"] == "call_1"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"outcome": "unknown", "status": 504, "latency_ms": None, "upstream_ms": None},
            ["stays held", "kbctl resolve call_1 --spent 120", "kbctl resolve call_1 --void"],
        ),
        ({"outcome": "unknown", "replay_of": "call_0", "currency": None}, ["kbctl explain call_0, for"]),
        (
            {"outcome": "refused", "policy_check_result": "cap_exhausted", "reason": "no room", "folded": 4},
            ["because no room", "5 refusals", "kbctl show vk_3f9c2a7d10"],
        ),
        ({"outcome": "refused", "vault_key_id": None, "requested_usd": None}, ["who nobody's key"]),
    ],
)
def test_explain_says_what_can_be_done(
    cli: Cli, daemon: PretendDaemon, changes: dict[str, Any], parts: list[str]
) -> None:
    """Nothing where nothing can."""
    daemon.on("GET /calls/call_1", call(**changes))

    told = " ".join(cli("explain", "call_1").stdout.split())

    for part in parts:
        assert part in told
    assert ("kbctl resolve" in told) == (changes["outcome"] == "unknown" and "replay_of" not in changes)


def test_resolve(cli: Cli, daemon: PretendDaemon) -> None:
    """What the vendor took, exactly as typed, or nothing."""
    daemon.on("POST /calls/call_1/resolve", call())

    spent = cli("resolve", "call_1", "--spent", "12.50", "--note", "dashboard")
    void = cli("resolve", "call_1", "--void", "--json")

    assert (spent.exit_code, void.exit_code) == (0, 0)
    assert daemon.asked[0].body == {"spent_usd": Decimal("12.50"), "note": "dashboard"}
    assert daemon.asked[1].body == {"spent_usd": None}
    assert "call_1" in spent.stdout
    assert json.loads(void.stdout)["call_id"] == "call_1"


@pytest.mark.parametrize("args", [(), ("--spent", "5", "--void"), ("--spent", "five"), ("--spent", "0")])
def test_a_resolution_is_said_in_one_way(cli: Cli, daemon: PretendDaemon, args: tuple[str, ...]) -> None:
    """Money is freed by no accident."""
    result = cli("resolve", "call_1", *args)

    assert result.exit_code == 2
    assert not daemon.asked
