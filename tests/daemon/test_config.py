"""config.toml and own vendor files: read strictly; what is wrong names file, key and what would do."""

import os
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from kbctl.errors import Exit, KbctlError
from kbctl.paths import Home
from kbctld.config import (
    Config,
    read_config,
    read_namespaces,
    read_rates,
    read_upstreams,
    read_vendor_rates,
    read_vendors,
)
from kbctld.core.pace import read_rate

VENDOR = """
schema = 1
name = "mail"
title = "Mail"
docs = "https://example.com"
origin = "https://api.example.com"
body = "form"
error_shape = "stripe"
request_id_header = "X-Request-Id"
roots = ["/v1/"]
auth = { scheme = "bearer" }
[[operation]]
name = "mails.send"
match = "POST /v1/mails/{id}"
cost = { kind = "free" }
"""


def place(folder: Path, name: str, text: str | bytes) -> Home:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Home(folder)


def read(home: Home) -> None:
    """All that a start reads."""
    config = read_config(home)
    vendors = read_vendors(home, config)
    read_vendor_rates(home, config, vendors)
    read_namespaces(home, config, vendors)
    read_rates(home, config)


def wrong(home: Home) -> KbctlError:
    with pytest.raises(KbctlError) as caught:
        read(home)
    assert caught.value.exit_status is Exit.USAGE
    assert caught.value.remedy
    return caught.value


WRONG_CONFIGS: list[tuple[str | bytes, str]] = [
    ("port = ", "not TOML"),
    ("port = 1\nport = 2", "not TOML"),
    ("port = 1e99999999999999999999", "not TOML"),
    ("port = " + "9" * 5000, "not TOML"),
    ("port = " + "[" * 10_000, "not TOML"),
    (b"\xff\xfe", "not UTF-8"),
    ("prot = 1", "port, default_vendors, ca_file, secrets, rates, limits, upstream"),
    ("port = -1", "`int` >= 0 - at `$.port`"),
    ("port = 65536", "`int` <= 65535 - at `$.port`"),
    ('port = "4815"', "`int`, got `str` - at `$.port`"),
    ("port = 4815.0", "`$.port`"),
    ("port = true", "`$.port`"),
    ("default_vendors = []", "`$.default_vendors`"),
    ('default_vendors = "stripe"', "`$.default_vendors`"),
    ('default_vendors = ["strype"]', "'strype'; it takes some of "),
    ('ca_file = ""', "`ca_file`"),
    ('ca_file = "/nowhere/roots.pem"', "`ca_file`"),
    ("secrets = 1", "`$.secrets`"),
    ('[secrets]\nbackend = "plain"', "it takes os-keyring, systemd-credential, passphrase or keyfile"),
    ('[secrets]\nbackend = ""', "it takes os-keyring, systemd-credential, passphrase or keyfile"),
    ('[secrets]\nbackend = "memory"', "it takes os-keyring, systemd-credential, passphrase or keyfile"),
    ('[secrets]\npassphrase = "x"', "unknown field `passphrase`"),
    ("[limits]\nhead_s = 0", "`$.limits.head_s`"),
    ("[limits]\nhead_s = -1.5", "`$.limits.head_s`"),
    ("[limits]\nhead_s = 3601", "`$.limits.head_s`"),
    ("[limits]\nhead_s = nan", "`$.limits.head_s`"),
    ("[limits]\nhead_s = inf", "`$.limits.head_s`"),
    ("[limits]\nbody_bytes = 1023", "`$.limits.body_bytes`"),
    ("[limits]\nbody_bytes = 1073741825", "`$.limits.body_bytes`"),
    ("[limits]\nin_flight_per_key = 0", "`$.limits.in_flight_per_key`"),
    ("[limits]\nconnections = 1.5", "`$.limits.connections`"),
    ("[limits]\nmaximum = 1", "unknown field `maximum`"),
    ("[upstream]\nconnect_s = 0.0", "`$.upstream.connect_s`"),
    ("[upstream]\nsilence_s = false", "`$.upstream.silence_s`"),
    ("[upstream]\nproxy = 1", "unknown field `proxy`"),
    ("[rates]\nEURO = 1.1", "`rates`: 'EURO' is not a three-letter currency code"),
    ("[rates]\nEUR = 0", "the rate of EUR"),
    ("[rates]\nEUR = -1.1", "the rate of EUR"),
    ("[rates]\nEUR = nan", "the rate of EUR"),
    ("[rates]\nEUR = inf", "the rate of EUR"),
    ("[rates]\nEUR = 1e9", "the rate of EUR"),
    ('[rates]\nEUR = "1.1"', "`$.rates[...]`"),
    ("[rates]\nUSD = 0.5", "`rates`: USD is what all others are counted in"),
    ("[rates]\nusd = 1", "`rates`: USD is what all others are counted in"),
    ('[vendor_rates.strype]\nread = "1/s"', "`vendor_rates` names 'strype'; it takes some of "),
    ('[vendor_rates.stripe]\nread = "25"', "`vendor_rates.stripe.read`: '25' is no rate"),
    ('[vendor_rates.stripe]\nwrite = "0/s"', "`vendor_rates.stripe.write`: '0/s' is no rate"),
    ('[vendor_rates.stripe]\ndelete = "1/s"', "unknown field `delete`"),
    ("[vendor_rates.stripe]\nread = 25", "`$.vendor_rates[...].read`"),
    ('vendor_rates = "25/s"', "`$.vendor_rates`"),
    ('[idempotency.strype]\nnamespace = "tenant"', "`idempotency` names 'strype'; it takes some of resend"),
    ('[idempotency.twilio]\nnamespace = "tenant"', "`idempotency` names 'twilio'; it takes some of resend"),
    ('[idempotency.stripe]\nnamespace = "key"', "`[idempotency.stripe] namespace` takes account or tenant"),
    ('[idempotency.stripe]\nname = "tenant"', "unknown field `name`"),
    ('[vendor_prices.strype]\nper_mail_usd = "1"', "`vendor_prices` names 'strype'; it takes some of "),
    ('[vendor_prices.stripe]\nper_mail_usd = "1"', "nothing of stripe is sold by count"),
    ('[vendor_prices.resend]\nper_mail_usd = "0"', "`vendor_prices.resend.per_mail_usd` takes US dollars"),
    ('[vendor_prices.resend]\nper_mail_usd = "1e-9"', "`vendor_prices.resend.per_mail_usd` takes US dollars"),
    ("[vendor_prices.resend]\nper_mail_usd = 0.0004", "`$.vendor_prices[...].per_mail_usd`"),
    ('[vendor_prices.resend]\nper_male_usd = "1"', "unknown field `per_male_usd`"),
    ('[vendor_prices.resend.per_segment_usd]\nus = "1"', "takes countries such as US"),
    ('[vendor_prices.resend.per_segment_usd]\nUS = "1"', "takes `other` too"),
]


@pytest.mark.parametrize(
    ("text", "says"), WRONG_CONFIGS, ids=[str(number) for number in range(len(WRONG_CONFIGS))]
)
def test_a_wrong_config_names_the_file_the_key_and_what_it_takes(
    folder: Path, text: str | bytes, says: str
) -> None:
    """Never a default in its place."""
    error = wrong(place(folder, "config.toml", text))
    assert error.code == "config_invalid"
    assert error.message.startswith(f"{folder / 'config.toml'}: ")
    assert says in error.message


WRONG_VENDORS = [
    ("mail.toml", "", "schema"),
    ("mail.toml", "name", "not TOML"),
    ("mail.toml", "schema = 1e99999999999999999999", "not TOML"),
    ("mail.toml", "schema = " + "[" * 10_000, "not TOML"),
    ("mail.toml", VENDOR.replace("schema = 1", "schema = 2"), "`$.schema`; it takes 1"),
    ("mail.toml", VENDOR + "colour = 1", "unknown field `colour`"),
    ("mail.toml", VENDOR.replace('"mail"', '"Mail"'), "`name`"),
    ("mail.toml", VENDOR.replace('"mail"', '"stripe"'), "takes the file's own name, mail"),
    ("post.toml", VENDOR, "`name` is mail; it takes the file's own name, post"),
    ("stripe.toml", VENDOR.replace('"mail"', '"stripe"'), "stripe is a built-in vendor"),
    ("mail.toml", VENDOR.replace("https://api", "http://api"), "`origin`"),
    ("mail.toml", VENDOR.replace("api.example.com", "user@api.example.com"), "`origin`"),
    ("mail.toml", VENDOR.replace("api.example.com", "api.example.com/v1"), "`origin`"),
    ("mail.toml", VENDOR.replace('"bearer"', '"magic"'), "it takes bearer"),
    ("mail.toml", VENDOR.replace('"form"', '"xml"'), "it takes form"),
    (
        "mail.toml",
        VENDOR.replace('"free"', '"cheap"'),
        "takes free, amount, increase, lookup",
    ),
    ("mail.toml", VENDOR.replace("POST /v1", "POST /v9"), "`match` starts with none of /v1/"),
    ("mail.toml", VENDOR.replace("POST /v1", "SEND /v1"), "`match` takes METHOD /path"),
    ("mail.toml", VENDOR.replace("{id}", "x{id}"), "a parameter takes a whole segment"),
    ("mail.toml", VENDOR.replace('["/v1/"]', '["/v1"]'), "`roots`"),
    ("mail.toml", VENDOR.replace("roots", 'forward_headers = ["host"]\nroots'), "`forward_headers`"),
]


@pytest.mark.parametrize(
    ("file", "text", "says"), WRONG_VENDORS, ids=[str(number) for number in range(len(WRONG_VENDORS))]
)
def test_a_wrong_vendor_file_names_the_file_and_the_key(
    folder: Path, file: str, text: str, says: str
) -> None:
    """The same for the operator's own vendors; none of them replaces a built-in one."""
    error = wrong(place(folder, f"vendors/{file}", text))
    assert error.message.startswith(f"{folder / 'vendors' / file}: ")
    assert says in error.message


def test_without_a_config_everything_is_as_documented(folder: Path) -> None:
    """No file, and a file with nothing in it, are the same."""
    assert read_config(Home(folder)) == Config()
    assert read_config(place(folder, "config.toml", "# nothing\n")) == Config()
    assert Config().port == 4815
    stripe = read_vendors(Home(folder), Config())["stripe"]
    limits, upstream = Config().server_limits(), Config().upstream_limits(stripe)
    assert (limits.head_s, limits.body_bytes, limits.body_bytes_per_s) == (10, 10 * 1024 * 1024, 1024)
    assert (limits.connections, Config().limits.in_flight_per_key) == (1024, 256)
    assert (upstream.connect_s, upstream.first_byte_s, upstream.silence_s) == (5, 80, 60)
    assert upstream.stream_silence_s == 300


def test_a_vendor_may_take_longer_for_its_first_byte_unless_the_operator_says_otherwise(folder: Path) -> None:
    vendors = read_vendors(Home(folder), Config())
    first = {name: Config().upstream_limits(vendor).first_byte_s for name, vendor in vendors.items()}
    assert first == {"stripe": 80, "twilio": 80, "resend": 80, "openai": 600, "anthropic": 600}
    own = read_config(place(folder, "config.toml", "[upstream]\nfirst_byte_s = 5\nstream_silence_s = 7\n"))
    limits = own.upstream_limits(vendors["openai"])
    assert (limits.first_byte_s, limits.stream_silence_s) == (5, 7)


def test_what_is_set_is_what_counts(folder: Path) -> None:
    """Seconds with and without a point; rates exact to the last digit, over the bundled table."""
    home = place(
        folder,
        "config.toml",
        'port = 0\ndefault_vendors = ["stripe"]\n[limits]\nhead_s = 2\nidle_s = 0.5\n'
        "[rates]\nEUR = 1.23456789012345678\nbtc = 100000\n",
    )
    config = read_config(home)
    assert (config.port, config.default_vendors) == (0, ["stripe"])
    assert (config.server_limits().head_s, config.server_limits().idle_s) == (2.0, 0.5)
    rates = read_rates(home, config)
    assert Fraction(*rates.usd_per_unit["EUR"]) == Fraction(Decimal("1.23456789012345678"))
    assert rates.usd_per_unit["BTC"] == (100_000, 1)
    assert rates.usd_per_unit["USD"] == (1, 1)
    assert "GBP" in rates.usd_per_unit


def test_rates_of_vendors_are_read_by_class(folder: Path) -> None:
    """What is left out is the vendor file's."""
    home = place(folder, "config.toml", '[vendor_rates.stripe]\nwrite = "25/s"\n')
    config = read_config(home)
    vendors = read_vendors(home, config)
    assert read_vendor_rates(home, config, vendors) == {"stripe": {"write": read_rate("25/s")}}
    assert read_vendor_rates(home, Config(), vendors) == {}
    assert vendors["stripe"].rates == {"read": read_rate("100/s"), "write": read_rate("100/s")}


def test_idempotency_keys_are_kept_apart_where_it_is_said(folder: Path) -> None:
    """By vendor; nowhere when nothing is said."""
    text = '[idempotency.stripe]\nnamespace = "tenant"\n[idempotency.resend]\nnamespace = "account"\n'
    home = place(folder, "config.toml", text)
    config = read_config(home)
    vendors = read_vendors(home, config)
    assert read_namespaces(home, config, vendors) == {"stripe"}
    assert read_namespaces(home, Config(), vendors) == frozenset()


def test_prices_of_vendors_are_replaced_one_by_one(folder: Path) -> None:
    """In nano-USD; what is left out is the vendor file's."""
    home = place(folder, "config.toml", '[vendor_prices.resend]\nper_mail_usd = "0.0004"\n')
    assert read_vendors(home, read_config(home))["resend"].tariff.mail == 400_000
    assert read_vendors(home, Config())["resend"].tariff.mail == 900_000


def test_an_own_vendor_stands_beside_the_built_in_ones(folder: Path) -> None:
    """And may be a default."""
    home = place(folder, "vendors/mail.toml", VENDOR)
    place(folder, "config.toml", 'default_vendors = ["mail", "stripe"]')
    place(folder, "vendors/README.md", "not a vendor")
    vendors = read_vendors(home, read_config(home))
    assert {"mail", "stripe"} <= set(vendors)
    assert vendors["mail"].origin == "https://api.example.com"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
@pytest.mark.parametrize("name", ["config.toml", "vendors/mail.toml"])
def test_a_file_that_others_can_read_or_change_is_refused(folder: Path, name: str, mode: int) -> None:
    """The remedy mends it."""
    home = place(folder, name, VENDOR if "/" in name else "")
    (folder / name).chmod(mode)
    error = wrong(home)
    assert error.code == "config_exposed"
    assert error.remedy == f"chmod 600 {folder / name}"
    (folder / name).chmod(0o600)
    read(home)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_refused(folder: Path) -> None:
    """Who owns it can change it."""
    home = place(folder, "config.toml", "")
    os.chown(folder / "config.toml", 65534, 65534)
    assert wrong(home).code == "config_exposed"


def test_a_link_to_nowhere_is_not_taken_for_no_config(folder: Path) -> None:
    """The disk with the real one may not be mounted: defaults would be wider than what was written."""
    (folder / "config.toml").symlink_to(folder / "elsewhere.toml")
    assert "can't be read" in wrong(Home(folder)).message


def test_a_folder_in_the_place_of_a_file_is_refused(folder: Path) -> None:
    """Not a crash."""
    (folder / "config.toml").mkdir()
    assert "can't be read" in wrong(Home(folder)).message


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
        ("http://localhost:1", "http://localhost:1"),
        ("http://[::1]:9000", "http://[::1]:9000"),
        ("https://127.0.0.1:9000", "https://127.0.0.1:9000"),
    ],
)
def test_an_upstream_on_this_machine_is_taken(folder: Path, url: str, origin: str) -> None:
    """Plain or TLS, with or without the final slash."""
    vendors = read_vendors(Home(folder), Config())
    assert read_upstreams([f"stripe={url}"], vendors) == {"stripe": origin}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "stripe",
        "=http://127.0.0.1:9000",
        "strype=http://127.0.0.1:9000",
        "stripe=",
        "stripe=127.0.0.1:9000",
        "stripe=http://",
        "stripe=http://[::1",
        "stripe=http://127.0.0.1:0",
        "stripe=http://127.0.0.1:99999",
        "stripe=http://127.0.0.1:x",
        "stripe=http://127.0.0.1:9000/path",
        "stripe=http://127.0.0.1:9000?q=1",
        "stripe=http://127.0.0.1:9000#f",
        "stripe=http://user@127.0.0.1:9000",
        "stripe=http://:pw@127.0.0.1:9000",
        "stripe=http://127.0.0.1@evil.example",
        "stripe=http://127.0.0.1.evil.example",
        "stripe=http://evil.example",
        "stripe=https://10.0.0.1:9000",
        "stripe=http://0.0.0.0:9000",
        "stripe=http://169.254.169.254",
        "stripe=ftp://127.0.0.1:9000",
        "stripe=unix:///tmp/x",
    ],
)
def test_any_other_upstream_is_refused(folder: Path, text: str) -> None:
    """The real secret goes to its vendor or to this machine, and nowhere else."""
    vendors = read_vendors(Home(folder), Config())
    with pytest.raises(KbctlError) as caught:
        read_upstreams([text], vendors)
    assert caught.value.exit_status is Exit.USAGE
    assert caught.value.remedy.startswith("kbctl up --upstream ")
