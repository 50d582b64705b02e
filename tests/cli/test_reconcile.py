"""``reconcile``: where a vendor's own list and our rows differ."""

import json
from collections.abc import Callable

import pytest

from kbctl.errors import Exit
from tests.cli.conftest import Cli, Seen
from tests.cli.support import PretendDaemon, difference, reconciliation

AROUND = difference(what="elsewhere", call_id=None, outcome=None, here_usd=None, here_minor=None)
ALONE = difference(what="absent", outcome="unknown", object_id=None, vendor_usd=None, vendor_minor=None)


def test_that_all_agree_is_one_line_and_exit_0(cli: Cli, daemon: PretendDaemon) -> None:
    """A window and an account if they are said."""
    daemon.on("POST /vendors/stripe/reconcile", reconciliation())

    said = cli("reconcile", "stripe")
    cli("reconcile", "stripe", "--from", "2026-11-20", "--to", "2026-11-21", "--credential", "stripe:acme")

    assert said.stdout == ("1,204 calls of stripe agree from 2026-11-20 00:00:00Z to 2026-11-21 00:00:00Z\n")
    assert daemon.asked[0].query == ()
    assert dict(daemon.asked[1].query) == {
        "credential": "stripe:acme",
        "from": "2026-11-20T00:00:00.000000Z",
        "to": "2026-11-21T00:00:00.000000Z",
    }


def test_differences_are_a_table_with_what_to_do_and_exit_5(cli: Cli, daemon: PretendDaemon) -> None:
    """Each with both amounts; as JSON as the daemon wrote it."""
    daemon.on("POST /vendors/stripe/reconcile", reconciliation(AROUND, ALONE, difference()))

    said = cli("reconcile", "stripe")
    shown = cli("reconcile", "stripe", "--json")
    document = json.loads(shown.stdout)

    assert said.exit_code == shown.exit_code == Exit.INTEGRITY

    head, around, alone, differs, *rest = said.stdout.splitlines()
    assert head.split() == "UTC RECORD MADE HERE THERE CALL OBJECT".split()
    assert around.split()[2:] == "not here refund.created - $25.50 - re_1".split()
    assert alone.split()[2:] == "here alone refund.created $20.00 held - call_7Qm2Zc4Rk9TtB1xA -".split()
    assert differs.split()[2:] == "differs refund.created $20.00 $25.50 call_7Qm2Zc4Rk9TtB1xA re_1".split()
    text = "\n".join(rest)
    assert "1,204 agree, 3 differ" in text
    assert "$77.00 with the real key around kbctl" in text
    assert "kbctl credential set stripe" in text
    assert "$20.00 that stripe does not list" in text
    assert document["differences"][1]["what"] == "absent"


def test_advice_is_given_for_what_there_is(cli: Cli, daemon: PretendDaemon) -> None:
    """No word on keys where only an amount differs; a newer daemon's word is shown as it is."""
    daemon.on("POST /vendors/stripe/reconcile", reconciliation(difference(), difference(what="new")))

    said = cli("reconcile", "stripe").stdout

    assert "credential" not in said
    assert "explain" not in said
    assert "new" in said


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_at_a_terminal(terminal: Callable[..., Seen], daemon: PretendDaemon, columns: int) -> None:
    """Amounts are whole; what does not fit goes."""
    daemon.on("POST /vendors/stripe/reconcile", reconciliation(AROUND, ALONE))

    seen = terminal("reconcile", "stripe", columns=columns, color=True)

    assert "$20.00 held" in seen.plain
    assert "$25.50" in seen.plain
    assert seen.exit_code == Exit.INTEGRITY
