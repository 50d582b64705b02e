"""``spend``, ``changes``, ``sql``, ``vendor list``."""

import csv
import io
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from kbctl import wire
from kbctl.paths import Home
from tests.cli.conftest import Cli, Seen
from tests.cli.support import (
    PretendDaemon,
    change,
    findings,
    price,
    prices,
    rates,
    refusal,
    spent,
    vendor,
    vendor_detail,
)

# --- spend ----------------------------------------------------------------------------------------


def test_spend(cli: Cli, daemon: PretendDaemon) -> None:
    """By key unless it is said otherwise; a window if one is said."""
    rows = [spent(), spent(key="vk_2", cap_usd=None, held_usd=Decimal(0))]
    daemon.on("GET /spend", rows)

    head, first, second = cli("spend").stdout.splitlines()
    cli("spend", "--by", "tenant", "--from", "2026-11-20", "--to", "2026-11-21")
    cli("spend", "--by", "day", "--since", "7d")

    assert head.split() == "KEY SPENT HELD CAP CALLS REFUSED".split()
    assert first.split() == "vk_3f9c2a7d10 $360.00 $120.00 $500.00 1,234 7".split()
    assert second.split() == "vk_2 $360.00 $0.00 none 1,234 7".split()
    assert daemon.asked[0].query == (("by", "key"),)
    assert dict(daemon.asked[1].query) == {
        "by": "tenant",
        "from": "2026-11-20T00:00:00.000000Z",
        "to": "2026-11-21T00:00:00.000000Z",
    }
    assert dict(daemon.asked[2].query).keys() == {"by", "from"}


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("by", ["key", "label"])
def test_spend_at_a_terminal(
    terminal: Callable[..., Seen], daemon: PretendDaemon, by: str, columns: int
) -> None:
    """A bar against the cap; a long label is folded, amounts are whole."""
    name = "vk_3f9c2a7d10" if by == "key" else "tenant:a-very-long-tenant/run:" + "x" * 40
    daemon.on("GET /spend", [spent(key=name)])

    seen = terminal("spend", "--by", by, columns=columns, color=True)

    assert "█████▒▒░" in seen.plain
    for whole in ("$360.00", "$120.00", "$500.00"):
        assert whole in seen.plain
    assert max(map(len, seen.plain.splitlines())) <= columns


def test_spend_in_ascii(cli: Cli, terminal: Callable[..., Seen], daemon: PretendDaemon) -> None:
    """Nothing spent, all spent, and no bar where nobody reads it."""
    daemon.on("GET /spend", [spent(spent_usd=Decimal(0), held_usd=Decimal(0)), spent(spent_usd=Decimal(600))])

    assert "░░░░░░░░" in terminal("spend").stdout
    assert "░" not in cli("spend").stdout


def test_spend_for_programs(cli: Cli, daemon: PretendDaemon) -> None:
    """As received, or as CSV."""
    daemon.on("GET /spend", [spent(key="=1+1")])

    (row,) = csv.DictReader(io.StringIO(cli("spend", "--csv").stdout))

    assert cli("spend", "--json").stdout == wire.encode([spent(key="=1+1")]).decode() + "\n"
    assert (row["key"], row["spent_usd"], row["calls"]) == ("'=1+1", "360", "1234")


def test_nothing_spent(cli: Cli, daemon: PretendDaemon) -> None:
    """Said beside the answer."""
    daemon.on("GET /spend", [])

    result = cli("spend")

    assert (result.exit_code, result.stdout) == (0, "")
    assert "nothing was spent" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("spend", "--by", "mood"),
        ("spend", "--since", "yesterday"),
        ("spend", "--since", "1h", "--from", "2026-11-20"),
        ("spend", "--from", "2026-11-21", "--to", "2026-11-20"),
        ("spend", "--json", "--csv"),
        ("changes", "--limit", "-1"),
        ("changes", "--json", "--jsonl"),
        ("changes", "--from", "11/20"),
        ("sql", ""),
        ("sql", " \n"),
        ("sql", "SELECT 1", "--json", "--csv"),
        ("sql",),
    ],
)
def test_mistakes(cli: Cli, daemon: PretendDaemon, args: tuple[str, ...]) -> None:
    """A usage error with a remedy, nothing sent."""
    result = cli(*args)

    assert (result.exit_code, result.stdout, daemon.asked) == (2, "", [])
    assert "\n  try: " in result.stderr or json.loads(result.stderr)["error"]["remedy"]


# --- changes --------------------------------------------------------------------------------------


def test_changes(cli: Cli, daemon: PretendDaemon) -> None:
    """Who, what, to what, and how; the newest 50."""
    daemon.on("GET /changes", [change(), change(actor="tok_1", details={}, subject="\x1b[2J")])

    lines = cli("changes", "--subject", "vk_3", "--since", "1d").stdout.splitlines()

    assert lines[0].split() == "UTC WHO WHAT OF DETAILS".split()
    assert "uid 1000  key.revoke  vk_3f9c2a7d10  in_flight=2, usd=240.10" in lines[1]
    assert "\x1b" not in lines[2]
    asked = dict(daemon.only.query)
    assert (asked["subject"], asked["limit"], set(asked)) == ("vk_3", "50", {"subject", "limit", "from"})


def test_changes_for_programs(cli: Cli, daemon: PretendDaemon) -> None:
    """All pages, in every form."""
    for _ in range(3):
        daemon.on("GET /changes", [change()], Link='</changes?before=9>; rel="next"')
        daemon.on("GET /changes", [change(subject="vk_2")])
    everything = ("changes", "--limit", "0")

    document, lines, table = (cli(*everything, form) for form in ("--json", "--jsonl", "--csv"))

    both = ["vk_3f9c2a7d10", "vk_2"]
    assert [row["subject"] for row in json.loads(document.stdout)] == both
    assert [json.loads(line)["subject"] for line in lines.stdout.splitlines()] == both
    rows = list(csv.DictReader(io.StringIO(table.stdout)))
    assert [row["subject"] for row in rows] == both
    assert json.loads(rows[0]["details"]) == {"in_flight": 2, "usd": 240.1}


def test_no_changes(cli: Cli, daemon: PretendDaemon) -> None:
    """Said beside the answer."""
    daemon.on("GET /changes", [])

    assert (cli("changes").stdout, cli("changes").stderr) == ("", "no changes match\n")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_changes_at_a_terminal(terminal: Callable[..., Seen], daemon: PretendDaemon, columns: int) -> None:
    """Details fold, or give way."""
    daemon.on("GET /changes", [change(details={"reason": "x" * 100})])

    seen = terminal("changes", columns=columns, color=True)

    assert "vk_3f9c2a7d10" in seen.plain
    assert max(map(len, seen.plain.splitlines())) <= columns


# --- sql ------------------------------------------------------------------------------------------

REPLY = (
    b'{"columns":["tenant","sum","sum"],'
    b'"rows":[["acme",123456789.123456789,1],[null,0.10,null],["=1\\u001b[2J",2,3]]}'
)


def test_sql(cli: Cli, daemon: PretendDaemon) -> None:
    """A table: numbers exact and to the right, NULL said."""
    daemon.on("POST /sql", REPLY)

    lines = cli("sql", "SELECT 1").stdout.splitlines()

    assert daemon.only.body == {"query": "SELECT 1"}
    assert [line.split() for line in lines] == [
        ["tenant", "sum", "sum"],
        ["acme", "123456789.123456789", "1"],
        ["null", "0.10", "null"],
        ["=1\\x1b[2J", "2", "3"],
    ]


def test_sql_from_stdin(cli: Cli, daemon: PretendDaemon) -> None:
    """``-`` reads the query; an empty one is none."""
    daemon.on("POST /sql", REPLY)

    assert cli("sql", "-", input="SELECT\n1").exit_code == 0
    assert daemon.only.body == {"query": "SELECT\n1"}
    assert cli("sql", "-", input="").exit_code == 2
    assert cli("sql", "-", input="x" * 300_000).exit_code == 2


def test_sql_for_programs(cli: Cli, daemon: PretendDaemon) -> None:
    """Objects with every column, numbers as they came."""
    daemon.on("POST /sql", REPLY)

    document, lines, table = (cli("sql", "SELECT 1", form).stdout for form in ("--json", "--jsonl", "--csv"))

    assert document.startswith('[{"tenant":"acme","sum":123456789.123456789,"sum_2":1},')
    assert json.loads(document)[1] == {"tenant": None, "sum": 0.1, "sum_2": None}
    assert [json.loads(line) for line in lines.splitlines()] == json.loads(document)
    assert table.splitlines() == [
        "tenant,sum,sum",
        "acme,123456789.123456789,1",
        ",0.10,",
        "'=1\\x1b[2J,2,3",
    ]


def test_sql_without_rows(cli: Cli, daemon: PretendDaemon) -> None:
    """An empty table is empty; an empty array is one."""
    daemon.on("POST /sql", wire.SqlReply(columns=["a"], rows=[]))

    assert (cli("sql", "SELECT 1").stdout, cli("sql", "SELECT 1").stderr) == ("", "no rows\n")
    assert cli("sql", "SELECT 1", "--json").stdout == "[]\n"
    assert cli("sql", "SELECT 1", "--csv").stdout == "a\n"


def test_sql_refused(cli: Cli, daemon: PretendDaemon) -> None:
    """The daemon's reason."""
    daemon.on("POST /sql", refusal("sql_not_allowed", "only SELECT is", "kbctl sql --help"), 400)

    result = cli("sql", "DELETE FROM calls", "--json")

    assert (result.exit_code, result.stdout) == (2, "")
    assert json.loads(result.stderr)["error"]["code"] == "sql_not_allowed"


@pytest.mark.parametrize("columns", [60, 200])
def test_sql_wider_than_the_terminal(
    terminal: Callable[..., Seen], daemon: PretendDaemon, columns: int
) -> None:
    """A block for each row where a table does not fit."""
    names = [f"column_{at}" for at in range(10)]
    daemon.on("POST /sql", wire.SqlReply(columns=names, rows=[[f"value {at}" for at in range(10)]] * 2))

    seen = terminal("sql", "SELECT 1", columns=columns, color=True)

    assert max(map(len, seen.plain.splitlines())) <= columns
    assert ("row 2" in seen.plain) == (columns == 60)
    assert seen.plain.count("value 9") == 2


# --- vendors --------------------------------------------------------------------------------------


def test_vendors(cli: Cli, daemon: PretendDaemon) -> None:
    """Which there are, and which have a credential."""
    found = wire.VendorList(vendors=[vendor(), vendor(name="twilio", credentials=[])])
    daemon.on("GET /vendors", found)

    head, first, second = cli("vendor", "list").stdout.splitlines()

    assert head.split() == "VENDOR TITLE ORIGIN OPERATIONS CREDENTIALS".split()
    assert first.split() == "stripe Stripe https://api.stripe.com 120 stripe, stripe:eu".split()
    assert second.split()[-1] == "none"
    assert cli("vendor", "list", "--json").stdout == wire.encode(found).decode() + "\n"


def test_vendors_at_a_narrow_terminal(terminal: Callable[..., Seen], daemon: PretendDaemon) -> None:
    """Names stay whole."""
    daemon.on("GET /vendors", wire.VendorList(vendors=[vendor(), vendor(name="twilio", credentials=[])]))

    seen = terminal("vendor", "list", columns=60, color=True)

    assert "twilio" in seen.plain
    assert max(map(len, seen.plain.splitlines())) <= 60


def test_vendor_show(cli: Cli, daemon: PretendDaemon) -> None:
    """Each operation with its cost; what is privileged is marked."""
    daemon.on("GET /vendors/stripe", vendor_detail())

    lines = cli("vendor", "show", "stripe").stdout.splitlines()

    assert lines[0] == "stripe  Stripe"
    assert "  credentials  none" in lines
    assert lines[-2].split("  ")[0] == "payment_intents.create"
    assert "amount in currency" in lines[-2]
    assert lines[-1].endswith("privileged stamps")
    assert cli("vendor", "show", "stripe", "--json").stdout == wire.encode(vendor_detail()).decode() + "\n"


def test_vendor_show_at_a_narrow_terminal(terminal: Callable[..., Seen], daemon: PretendDaemon) -> None:
    """Names stay whole."""
    daemon.on("GET /vendors/stripe", vendor_detail())

    seen = terminal("vendor", "show", "stripe", columns=80, color=True)

    assert "payment_intents.create" in seen.plain
    assert "privileged" in seen.plain
    assert max(map(len, seen.plain.splitlines())) <= 80


def test_vendor_check(cli: Cli, daemon: PretendDaemon, tmp_path: Path) -> None:
    """Nothing wrong is 0, a mistake is 2 and told as compilers do."""
    file = tmp_path / "acme.toml"
    file.write_text("schema = 1")
    wrong = wire.VendorFinding(line=3, key="title", message="`title`: expected `str`")
    missing = wire.VendorFinding(line=None, key="name", message="the key `name` is missing")
    for answer in (findings(), findings(missing, wrong)):
        daemon.on("POST /vendors/check", answer)

    good, bad = cli("vendor", "check", str(file)), cli("vendor", "check", str(file))

    assert (good.exit_code, good.stdout) == (0, f"{file}: good; 12 operations, 4 examples came true\n")
    assert bad.exit_code == 2
    assert bad.stdout == f"{file}: the key `name` is missing\n{file}:3: `title`: expected `str`\n"
    assert daemon.asked[0].body == {"text": "schema = 1"}


def test_vendor_check_of_no_file(cli: Cli, home: Home) -> None:
    """Said before anything is asked."""
    result = cli("vendor", "check", "/no/such/file")

    assert result.exit_code == 2
    assert "try: kbctl vendor check acme.toml" in result.stderr


# --- prices ----------------------------------------------------------------------------------------


def test_vendor_prices(cli: Cli, daemon: PretendDaemon) -> None:
    """A line each, with its day and source; what is yours and what is old is marked, and said at the end."""
    found = prices(
        price(),
        price(of="a segment to DE", usd=Decimal("0.12"), source="config.toml", dated="", yours=True),
        price(of="a minute to US", per="begun minute", dated="2026-01-02", stale=True),
    )
    daemon.on("GET /vendors/twilio/prices", found)

    result = cli("vendor", "prices", "twilio")

    head, columns, first, second, third, *_ = result.stdout.splitlines()
    assert head == "twilio"
    assert columns.split() == ["PRICE", "OF", "USD", "PER", "DATED", "SOURCE", "NOTES"]
    assert first.split()[4:] == ["0.0145", "segment", "2026-11-21", found.prices[0].source]
    assert second.split()[-3:] == ["-", "config.toml", "yours"]
    assert third.split()[-1] == "old"
    assert "1 figure marked old" in result.stderr
    assert cli("vendor", "prices", "twilio", "--json").stdout == wire.encode(found).decode() + "\n"


def test_vendor_prices_of_all_with_the_rates(cli: Cli, daemon: PretendDaemon) -> None:
    """Each vendor that has a list; one document for machines."""
    daemon.on("GET /vendors", wire.VendorList(vendors=[vendor(), vendor(name="twilio")]))
    daemon.on("GET /vendors/stripe/prices", prices(vendor="stripe"))
    daemon.on("GET /vendors/twilio/prices", prices(price()))
    daemon.on("GET /rates", rates(stale=True))

    result = cli("vendor", "prices")

    assert [line for line in result.stdout.splitlines() if line and " " not in line] == ["twilio"]
    assert "exchange rates" in result.stdout
    assert "JPY" in result.stdout
    assert "1 figure marked old" in result.stderr
    said = json.loads(cli("vendor", "prices", "--json").stdout)
    assert [each["vendor"] for each in said["vendors"]] == ["stripe", "twilio"]
    assert said["rates"][0] == {
        "currency": "JPY",
        "usd": 0.0067,
        "minor_digits": 0,
        "source": "European Central Bank",
        "dated": "2026-10-30",
        "yours": False,
        "stale": True,
    }


def test_vendor_prices_of_one_model(cli: Cli, daemon: PretendDaemon) -> None:
    """The model goes into the query; without a vendor it names nothing."""
    daemon.on("GET /vendors/openai/prices", prices(price(of="gpt-5: input"), vendor="openai"))
    assert "gpt-5: input" in cli("vendor", "prices", "openai", "--model", "gpt-5").stdout
    assert daemon.only.query == (("model", "gpt-5"),)
    result = cli("vendor", "prices", "--model", "gpt-5")
    assert result.exit_code == 2
    assert "try: kbctl vendor prices openai --model gpt-4o-mini" in result.stderr


def test_a_vendor_without_a_price_list_says_so(cli: Cli, daemon: PretendDaemon) -> None:
    """Its requests state what they cost."""
    daemon.on("GET /vendors/stripe/prices", prices(vendor="stripe"))
    result = cli("vendor", "prices", "stripe")
    assert (result.stdout, "stripe has no price list" in result.stderr) == ("", True)
