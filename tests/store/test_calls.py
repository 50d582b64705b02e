"""The audit database as people query it: the view's columns, the published query, and pages of the API."""

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbctl import wire
from kbctld.core.clock import rfc3339
from kbctld.core.grant import label_segments
from kbctld.store import queries
from kbctld.store.database import Database, mark_pending_unknown
from kbctld.store.journal import CallRow
from kbctld.store.kept import kept_of
from kbctld.store.queries import CallFilter, KeyFilter
from tests.store.support import NOW, call, journal_in, key_statement, opened, rows
from tests.support.loop import run

COLUMNS = (
    "call_id, ts, vault_key_id, parent_key_id, tenant, vendor, operation, method, endpoint, amount_usd, "
    "requested_usd, currency, amount_minor, status, outcome, replay_of, policy_check_result, reason, "
    "vendor_request_id, idempotency_key, agent_run_label, metadata, cap_usage_after_usd, latency_ms, "
    "upstream_ms, upstream, folded, duplicate_of"
).split(", ")
"""The contract; people's queries name these."""

PUBLISHED = (
    "SELECT ts, endpoint, amount_usd, policy_check_result FROM calls WHERE"
    " metadata->>'agent_run_id'='run_xyz' AND policy_check_result != 'allowed' ORDER BY ts DESC"
)


def record(folder: Path, keys: Iterable[tuple[str, Any]], calls: Iterable[CallRow]) -> None:
    async def main() -> None:
        async with journal_in(folder) as journal:
            await journal.change(keys)
            for row in calls:
                await journal.append(row)

    run(main())


def pages(folder: Path, wanted: CallFilter) -> list[wire.Call]:
    """All pages, put together."""

    async def main() -> list[wire.Call]:
        found: list[wire.Call] = []
        async with opened(folder) as database:
            cursor: int | None = wanted.before_no
            while True:
                page, cursor = await queries.calls(database.readers, replace(wanted, before_no=cursor))
                assert len(page) <= wanted.limit
                found += page
                if cursor is None:
                    return found

    return run(main())


FULL = {
    "key_no": 1,
    "vendor": "stripe",
    "operation": "payment_intents.create",
    "method": "POST",
    "endpoint": "/v1/payment_intents",
    "requested_nano": 12_500_000_000,
    "amount_nano": 12_500_000_001,
    "currency": "EUR",
    "amount_minor": 1250,
    "replay_of": None,
    "idempotency_key": "order-1",
    "usage_after_nano": 100_000_000_000,
    "outcome": "posted",
    "status": 200,
    "vendor_request_id": "req_1",
    "latency_us": 12_345,
    "upstream_us": 11_000,
    "upstream": "INSECURE http://127.0.0.1:9000",
}


def test_the_view_has_the_columns_of_the_contract_in_their_order(folder: Path) -> None:
    """Dollars, milliseconds and RFC 3339; what is not known is null."""
    key = key_statement(1, tenant="acme", label="billing/tenant:acme", metadata='{"tenant_id":"acme"}')
    record(folder, [key], [call(1, **FULL), call(2, policy_check_result="key_missing", outcome="refused")])
    full, bare = rows(folder, "SELECT * FROM calls ORDER BY ts")
    assert list(full) == COLUMNS
    assert full == {
        "call_id": "call_1",
        "ts": "2026-11-21T00:00:00.000Z",
        "vault_key_id": "vk_0000000001",
        "parent_key_id": None,
        "tenant": "acme",
        "vendor": "stripe",
        "operation": "payment_intents.create",
        "method": "POST",
        "endpoint": "/v1/payment_intents",
        "amount_usd": 12.500000001,
        "requested_usd": 12.5,
        "currency": "EUR",
        "amount_minor": 1250,
        "status": 200,
        "outcome": "posted",
        "replay_of": None,
        "policy_check_result": "allowed",
        "reason": None,
        "vendor_request_id": "req_1",
        "idempotency_key": "order-1",
        "agent_run_label": "billing/tenant:acme",
        "metadata": '{"tenant_id":"acme"}',
        "cap_usage_after_usd": 100,
        "latency_ms": 12.345,
        "upstream_ms": 11,
        "upstream": "INSECURE http://127.0.0.1:9000",
        "folded": 0,
        "duplicate_of": None,
    }
    assert {name for name, value in bare.items() if value is not None} == {
        "call_id",
        "ts",
        "amount_usd",
        "outcome",
        "policy_check_result",
        "metadata",
        "folded",
    }
    assert (bare["amount_usd"], bare["metadata"]) == (0, "{}")


def test_the_published_query_runs_as_written(folder: Path) -> None:
    """Newest first, the run's own refusals only."""
    key = key_statement(1, metadata='{"agent_run_id":"run_abc"}')
    mine = json.dumps({"agent_run_id": "run_xyz"})
    refused = {"policy_check_result": "cap_exhausted", "outcome": "refused", "endpoint": "/v1/refunds"}
    record(
        folder,
        [key],
        [
            call(1, key_no=1, metadata=mine, ts_ns=NOW + 10**9, **refused),
            call(2, key_no=1, metadata=mine, ts_ns=NOW + 3 * 10**9, **refused),
            call(3, key_no=1, metadata=mine),
            call(4, key_no=1, **refused),
        ],
    )
    assert rows(folder, PUBLISHED) == [
        {
            "ts": f"2026-11-21T00:00:0{second}.000Z",
            "endpoint": "/v1/refunds",
            "amount_usd": 0.0,
            "policy_check_result": "cap_exhausted",
        }
        for second in (3, 1)
    ]


def test_the_view_and_the_api_say_the_same(folder: Path) -> None:
    """Also the millisecond: whoever joins both by time finds the row."""
    key = key_statement(1, tenant="acme", label="tenant:acme", metadata='{"tenant_id":"acme"}')
    dice = random.Random(4)
    made = [
        call(n, ts_ns=NOW + dice.randrange(10**15), **{k: v for k, v in FULL.items() if dice.random() < 0.8})
        for n in range(200)
    ]
    record(folder, [key], made)
    view = {row["call_id"]: row for row in rows(folder, "SELECT * FROM calls")}
    for said in pages(folder, CallFilter(limit=50)):
        row = view[said.call_id]
        assert said.timestamp == row["ts"]
        assert said.metadata == json.loads(row["metadata"])
        for name in set(COLUMNS) - {"ts", "metadata", "call_id"}:
            value = getattr(said, name)
            assert (float(value) if isinstance(value, Decimal) else value) == row[name], name
        assert said.stripe_request_id == (row["vendor_request_id"] if row["vendor"] == "stripe" else None)


def test_a_call_s_own_metadata_stands_in_place_of_the_key_s(folder: Path) -> None:
    """It was overlaid by the key's before it was written; without any the key's own is shown."""
    key = key_statement(1, metadata='{"tenant_id":"acme"}')
    own = '{"order": "7", "tenant_id": "acme"}'
    record(folder, [key], [call(1, key_no=1), call(2, key_no=1, metadata=own)])
    shown = [json.loads(row["metadata"]) for row in rows(folder, "SELECT metadata FROM calls ORDER BY ts")]
    assert shown == [{"tenant_id": "acme"}, {"order": "7", "tenant_id": "acme"}]


def test_sums_of_the_view_are_spend(folder: Path) -> None:
    """A refusal and a retry count nothing, a hold counts what it holds."""
    calls = [
        call(1, key_no=1, outcome="posted", amount_nano=10**9),
        call(2, key_no=1, outcome="unknown", amount_nano=2 * 10**9),
        call(3, key_no=1, outcome="posted", amount_nano=0, replay_of="call_1", requested_nano=10**9),
        call(4, key_no=1, outcome="refused", policy_check_result="cap_exhausted", requested_nano=10**12),
    ]
    record(folder, [key_statement(1)], calls)
    assert rows(folder, "SELECT sum(amount_usd) AS spend FROM calls") == [{"spend": 3.0}]


# --- pages and filters ------------------------------------------------------------------------------------

KEYS = {1: "a/tenant:acme", 2: "a/tenant:acme2", 3: "b/tenant:acme/x"}


@given(
    limit=st.integers(1, 25),
    vendor=st.sampled_from([None, "stripe", "resend"]),
    denied=st.booleans(),
    unknown=st.booleans(),
    label=st.sampled_from([None, "tenant:acme", "a", "nobody's"]),
    key=st.none() | st.sampled_from(sorted(KEYS)),
    piece=st.sampled_from([1, 7, 1000]),
    few=st.sampled_from([0, 100]),
    first=st.none() | st.integers(0, 60),
    last=st.none() | st.integers(0, 60),
)
@settings(max_examples=60, deadline=None, database=None)
def test_filters_and_pages_give_what_a_loop_over_all_rows_gives(
    shelf: Path,
    limit: int,
    vendor: str | None,
    denied: bool,
    unknown: bool,
    label: str | None,
    key: int | None,
    piece: int,
    few: int,
    first: int | None,
    last: int | None,
) -> None:
    """Every row that fits, once, newest first, whatever the size of the page."""
    wanted = CallFilter(
        key_no=key,
        keys=None if label is None else KeyFilter(labels=(label,)),
        vendor=vendor,
        denied=denied,
        unknown=unknown,
        from_ns=None if first is None else NOW + first,
        to_ns=None if last is None else NOW + last,
        limit=limit,
    )
    expected = [
        row.call_id
        for row in reversed(SHELF)
        if (vendor is None or row.vendor == vendor)
        and (not denied or row.policy_check_result != "allowed")
        and (not unknown or row.outcome == "unknown")
        and (key is None or row.key_no == key)
        and (label is None or (row.key_no is not None and label in label_segments(KEYS[row.key_no])))
        and (first is None or row.ts_ns >= NOW + first)
        and (last is None or row.ts_ns < NOW + last)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queries, "_PIECE", piece)
        patch.setattr(queries, "_FEW_KEYS", few)
        assert [said.call_id for said in pages(shelf, wanted)] == expected


def shelved(number: int) -> CallRow:
    dice = random.Random(number)
    denied = dice.random() < 0.3
    return call(
        number,
        key_no=dice.choice([None, 1, 2, 3]) if denied else dice.choice([1, 2, 3]),
        vendor=dice.choice(["stripe", "resend"]),
        policy_check_result="cap_exhausted" if denied else "allowed",
        outcome="refused" if denied else dice.choice(["posted", "voided", "unknown"]),
    )


SHELF = [shelved(number) for number in range(60)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    keys = [key_statement(number, label=label) for number, label in KEYS.items()]
    segments = [
        ("INSERT INTO label_segment VALUES (?, ?)", (segment, number))
        for number, label in KEYS.items()
        for segment in label_segments(label)
    ]
    record(folder, [*keys, *segments], SHELF)
    (folder / "kbctl.db").chmod(0o600)
    return folder


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["tenant:acme"], {1, 3}),
        (["tenant:acme2"], {2}),
        (["a"], {1, 2}),
        (["a", "tenant:acme"], {1}),
        (["a/tenant:acme"], {1}),
        (["tenant:acme/a"], {1}),
        (["tenant:ac"], set()),
        (["enant:acme"], set()),
        (["%"], set()),
        (["*"], set()),
        ([""], set()),
        (["/"], set()),
        (["A"], set()),
    ],
)
def test_law_8_a_label_filter_takes_whole_segments(shelf: Path, labels: list[str], found: set[int]) -> None:
    """No part of one, no pattern, and an empty filter finds nothing rather than everything."""

    async def main() -> set[int]:
        async with opened(shelf) as database:
            return set(await queries.key_numbers(database.reader, KeyFilter(labels=tuple(labels))))

    assert run(main()) == found


def test_rows_that_arrive_between_two_pages_neither_hide_nor_repeat_any(folder: Path) -> None:
    """The cursor is a row's number, not a place in the list."""

    async def main() -> None:
        async with journal_in(folder) as journal:
            for number in range(10):
                await journal.append(call(number))
            seen, cursor = [], None
            for number in range(10, 100):
                page, cursor = await queries.calls(
                    journal.database.readers, CallFilter(limit=3, before_no=cursor)
                )
                seen += [row.call_id for row in page]
                if cursor is None:
                    break
                await journal.append(call(number))
            assert seen == [f"call_{number}" for number in range(9, -1, -1)]

    run(main())


async def remembered(database: Database, since_ns: int) -> list[dict[str, Any]]:
    """What the first use of key 1 reads back of its calls."""
    kept = await kept_of(database.reader, numbers=[1], known=lambda _number: False, calls_since_ns=since_ns)
    return kept.calls.get(1, [])


def test_F4_what_a_start_asks_does_not_read_the_whole_audit(folder: Path) -> None:
    """Open holds are few however long the audit is: each statement finds them by an index."""
    record(folder, [key_statement(1)], [])
    asked: list[str] = []

    async def main() -> list[str]:
        async with opened(folder) as database:
            for connection in (database.reader, database.writer):
                await connection.set_trace_callback(asked.append)
            await mark_pending_unknown(database)
            await queries.highest_ns(database.reader)
            await queries.unknown_totals(database.reader)
            await queries.keys_with_open_holds(database.reader)
            await remembered(database, NOW)
            plans = []
            for sql in [sql for sql in asked if " call" in sql]:
                async with database.reader.execute(f"EXPLAIN QUERY PLAN {sql}") as cursor:
                    plans += [str(row[3]) for row in await cursor.fetchall() if "call" in str(row[3])]
            for connection in (database.reader, database.writer):
                await connection.set_trace_callback(None)  # type: ignore[arg-type]
            return plans

    plans = run(main())
    assert len(plans) == 7, plans
    assert all("INDEX call_" in step for step in plans), plans


def test_an_open_hold_is_found_however_old_and_a_posted_one_while_it_may_be_retried(folder: Path) -> None:
    """Oldest first, the second of its key alone; what was refused, voided or a retry is not asked for."""
    kept = {"key_no": 1, "replay_digest": b"r"}
    record(
        folder,
        [key_statement(1), key_statement(2)],
        [
            call(1, outcome="unknown", **kept),
            call(2, outcome="posted", **kept),
            call(3, outcome="pending", key_no=1),
            call(4, outcome="posted", ts_ns=NOW + 100, **kept),
            call(5, outcome="posted", ts_ns=NOW + 100, key_no=1),
            call(6, outcome="voided", ts_ns=NOW + 100, **kept),
            call(7, outcome="posted", ts_ns=NOW + 100, replay_of="call_4", **kept),
            call(8, outcome="unknown", replay_of="call_4", **kept),
            call(9, outcome="refused", policy_check_result="cap_exhausted", **kept),
            call(10, outcome="posted", ts_ns=NOW + 100, key_no=2, replay_digest=b"r"),
        ],
    )

    async def main() -> list[list[str]]:
        async with opened(folder) as database:
            reader = database.reader
            assert await queries.keys_with_open_holds(reader) == [1]
            return [
                [row["call_id"] for row in await remembered(database, since)] for since in (NOW, NOW + 100)
            ]

    assert run(main()) == [["call_1", "call_2", "call_3", "call_4"], ["call_1", "call_3", "call_4"]]


def test_what_was_done_is_read_back_newest_first_kept_and_oldest_first_given(folder: Path) -> None:
    """Of a day at most, and of so many: not what was released, is open, or is nobody's duplicate."""
    record(
        folder,
        [key_statement(1)],
        [
            call(n, ts_ns=NOW + n, key_no=1, outcome=outcome, fingerprint=of, idempotency_key=f"k{n}")
            for n, (outcome, of) in enumerate(
                [
                    ("posted", b"a"),
                    ("voided", b"b"),
                    ("unknown", b"c"),
                    ("posted", None),
                    ("posted", b"d"),
                    ("posted", b"e"),
                ],
                start=1,
            )
        ],
    )

    async def main() -> list[list[str]]:
        async with opened(folder) as database:
            return [
                [row["call_id"] for row in await queries.done_since(database.reader, since_ns, most)]
                for since_ns, most in ((NOW, 9), (NOW + 2, 9), (NOW, 2))
            ]

    assert run(main()) == [["call_1", "call_5", "call_6"], ["call_5", "call_6"], ["call_5", "call_6"]]


def test_times_in_rows_are_utc_with_milliseconds() -> None:
    """Never later than the clock: rounded down, as the view does."""
    assert rfc3339(NOW + 999_999_999) == "2026-11-21T00:00:00.999Z"
