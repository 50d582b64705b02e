"""The list of an account held against its rows: whose rows count, and what ends in an error with a remedy."""

from pathlib import Path

import pytest

from kbctl.errors import KbctlError
from kbctld.core.ledger import NS_PER_S
from kbctld.core.record import Compared
from kbctld.proxy import reconciling
from kbctld.proxy.reconciling import reconcile
from tests.proxy.test_settling import KEY, event, listed
from tests.support.loop import run
from tests.support.vendor import answer
from tests.support.world import SECRET, World, open_world

EMPTY = answer(b'{"data":[],"has_more":false}')


async def reconciled(world: World, credential: str = "stripe") -> Compared:
    """The last hour."""
    now_ns = world.vault.now_ns() + NS_PER_S
    vendor = world.plane.vendors["stripe"]
    return await reconcile(world.plane, vendor, credential, now_ns - 3600 * NS_PER_S, now_ns)


def kinds(world: World) -> int:
    record = world.plane.vendors["stripe"].file.record
    assert record is not None
    return len(record.kinds)


def test_every_kind_is_read_and_each_page_has_a_row(tmp_path: Path) -> None:
    """In a turn of the house's own; what an agent did stands in both, by the key that it sent."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            await world.ask(world.request("POST", "/stripe/v1/payment_intents", KEY))
            world.vendor.answers += [listed(event(world)), *[EMPTY] * (kinds(world) - 1)]
            assert await reconciled(world) == Compared(agree=1)
            asked = world.vendor.arrived[1:]
            assert len({arrived.target for arrived in asked}) == len(asked) == kinds(world)
            assert {arrived.all(b"authorization")[0] for arrived in asked} == {b"Bearer " + SECRET.encode()}
            rows = (await world.rows())[1:]
            assert {(row["reason"], row["amount_nano"], row["key_no"]) for row in rows} == {
                ("kbctl reconciled stripe", 0, None)
            }
            assert world.plane.idle

    run(main())


def test_rows_of_another_account_are_not_this_ones(tmp_path: Path) -> None:
    """A key's credential says whose account it spends from; without one of this vendor, the usual one."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            file = world.plane.vendors["stripe"]
            await world.credentials.set("stripe:acme", file, SECRET, world.vault.now_ns(), "tester")
            _, key = await world.issue(credential="stripe:acme")
            await world.ask(world.request("POST", "/stripe/v1/payment_intents", KEY, key=key))
            await world.ask()
            for name in ("stripe:acme", "stripe"):
                world.vendor.answers += [EMPTY] * kinds(world)
                found = await reconciled(world, name)
                assert len(found.absent) == 1
                assert (found.absent[0].key == "order-1") is (name == "stripe:acme")

    run(main())


@pytest.mark.parametrize(
    ("raw", "code"),
    [(answer(b"{}", 500), "record_unavailable"), (answer(b"x"), "record_unavailable"), (b"", "")],
)
def test_what_can_not_be_read_is_an_error_with_a_remedy(tmp_path: Path, raw: bytes, code: str) -> None:
    """Half a comparison would call money stolen that is not."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            world.vendor.answers += [EMPTY, raw]
            with pytest.raises(KbctlError) as failed:
                await reconciled(world, "stripe" if code else "stripe:none")
            assert failed.value.code == (code or "credential_unavailable")
            assert failed.value.remedy.startswith("kbctl ")

    run(main())


def test_a_list_that_is_too_long_asks_for_a_shorter_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries, rows and seconds are bounded."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            await world.ask()
            await world.ask()
            for bound, value in (("_LISTED", 1), ("_ROWS", 1), ("_PATIENCE_S", 0.0)):
                two = [{**event(world, f"k-{n}"), "id": f"evt_{n}"} for n in range(2)]
                world.vendor.answers.clear()
                world.vendor.answers += [listed(*two if bound == "_LISTED" else ())] + [EMPTY] * kinds(world)
                before = getattr(reconciling, bound)
                monkeypatch.setattr(reconciling, bound, value)
                with pytest.raises(KbctlError) as failed:
                    await reconciled(world)
                monkeypatch.setattr(reconciling, bound, before)
                assert failed.value.code == "record_too_long"
                assert failed.value.remedy == "kbctl reconcile stripe --since 1h"

    run(main())
