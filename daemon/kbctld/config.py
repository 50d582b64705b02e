"""``config.toml`` and the operator's own vendor files: read once, strictly, owner-only.

What must stay true: an unknown key, a wrong type or a value out of range stops the start and names file,
key and what would do; nothing in here widens anything by being left out or mistyped.
"""

import os
import stat
import tomllib
from decimal import Decimal
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import currency_converter
import msgspec
from msgspec import Meta, Struct

from kbctl.errors import Exit, KbctlError
from kbctl.paths import Home
from kbctld.control.door import SEGMENTS
from kbctld.core.money import Rates, rates_from
from kbctld.core.pace import Rate
from kbctld.core.tariff import PriceTable
from kbctld.core.vendor import Vendor, priced, read_vendor
from kbctld.core.vendor_file import (
    UNREADABLE_TOML,
    RateClass,
    RateTable,
    TokenDollars,
    VendorFileError,
    check_dollars,
    read_rates_of,
)
from kbctld.country import country_of
from kbctld.http1.server import Limits
from kbctld.prices import Prices
from kbctld.proxy.upstream import UpstreamLimits

DEFAULT_PORT = 4815

Seconds = Annotated[float, Meta(gt=0, le=3600)]


class SecretsConfig(Struct, forbid_unknown_fields=True):
    """Where real secrets are kept; left out: what first use chose."""

    backend: Literal["os-keyring", "systemd-credential", "passphrase", "keyfile"] | None = None


class LimitsConfig(Struct, forbid_unknown_fields=True):
    """Bounds towards agents."""

    head_s: Seconds = 10.0
    body_bytes: Annotated[int, Meta(ge=1024, le=1024**3)] = 10 * 1024 * 1024
    body_grace_s: Seconds = 10.0
    body_bytes_per_s: Annotated[int, Meta(ge=1, le=1024**3)] = 1024
    write_stall_s: Seconds = 60.0
    idle_s: Seconds = 300.0
    connections: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    in_flight_per_key: Annotated[int, Meta(ge=1, le=100_000)] = 256
    turn_s: Seconds = 10.0


class UpstreamConfig(Struct, forbid_unknown_fields=True):
    """Bounds towards vendors."""

    connect_s: Seconds = 5.0
    first_byte_s: Seconds | None = None
    """Wins over what vendor files say; left out, it is 80 for those that say nothing."""
    silence_s: Seconds = 60.0
    stream_silence_s: Seconds = 300.0
    idle_s: Seconds = 20.0
    connections: Annotated[int, Meta(ge=1, le=100_000)] = 256


class IdempotencyConfig(Struct, forbid_unknown_fields=True):
    """Whose idempotency keys a vendor's account tells apart."""

    namespace: Literal["account", "tenant"] = "account"
    """``tenant``: the same key of two tenants is two keys, also where they share a credential."""


class Config(Struct, forbid_unknown_fields=True):
    """All of ``config.toml``."""

    port: Annotated[int, Meta(ge=0, le=65535)] = DEFAULT_PORT
    default_vendors: Annotated[list[str], Meta(min_length=1)] | None = None
    ca_file: str | None = None
    """Roots to verify vendors against instead of the bundled ones, as where a company inspects TLS."""
    secrets: SecretsConfig = msgspec.field(default_factory=SecretsConfig)
    rates: dict[str, Decimal | int] = {}
    """US dollars for one unit of a currency; wins over the bundled ECB table."""
    limits: LimitsConfig = msgspec.field(default_factory=LimitsConfig)
    upstream: UpstreamConfig = msgspec.field(default_factory=UpstreamConfig)
    vendor_rates: dict[str, RateTable] = {}
    """What a vendor takes of one account; wins over the vendor file and holds wherever it is."""
    vendor_prices: dict[str, PriceTable] = {}
    """What a vendor takes for a mail, a segment, a minute; each wins over the vendor file's."""
    idempotency: dict[str, IdempotencyConfig] = {}
    """By vendor."""
    model_prices: dict[str, TokenDollars] = {}
    """What a model's tokens cost, by ``vendor/model``; wins over the vendor file and the bundled table."""

    def server_limits(self) -> Limits:
        limits = self.limits
        return Limits(
            head_s=limits.head_s,
            body_bytes=limits.body_bytes,
            body_grace_s=limits.body_grace_s,
            body_bytes_per_s=limits.body_bytes_per_s,
            write_stall_s=limits.write_stall_s,
            idle_s=limits.idle_s,
            connections=limits.connections,
        )

    def upstream_limits(self, vendor: Vendor) -> UpstreamLimits:
        limits = self.upstream
        own = vendor.file.timeouts.first_byte_s
        usual = UpstreamLimits()
        return UpstreamLimits(
            connect_s=limits.connect_s,
            first_byte_s=limits.first_byte_s or own or usual.first_byte_s,
            silence_s=limits.silence_s,
            stream_silence_s=limits.stream_silence_s,
            idle_s=limits.idle_s,
            connections=limits.connections,
        )


def read_config(home: Home) -> Config:
    """Read ``config.toml``; defaults where there is none.

    Raises:
        KbctlError: exit status 2, naming file, key and what it takes.
    """
    path = home.config
    if not path.exists() and not path.is_symlink():
        return Config()
    text = _owner_only(path)
    try:
        plain: dict[str, Any] = tomllib.loads(text, parse_float=Decimal)
    except UNREADABLE_TOML as error:
        raise _wrong(path, f"not TOML: {error}") from None
    try:
        # Seconds may be written 10 or 10.5; money and rates stay exact.
        config = msgspec.convert(_floats(plain), Config, builtin_types=(Decimal,))
    except msgspec.ValidationError as error:
        raise _wrong(path, _explain(str(error))) from None
    if config.ca_file is not None and not Path(config.ca_file).is_file():
        raise _wrong(path, f"`ca_file`: there is no file {config.ca_file}")
    return config


def read_vendors(home: Home, config: Config) -> dict[str, Vendor]:
    """The built-in vendor files and the operator's own.

    Raises:
        KbctlError: exit status 2, naming file, key and what it takes.
    """
    vendors = {}
    built_in = resources.files("kbctld") / "vendors"
    for file in sorted(built_in.iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".toml"):
            vendor = read_vendor(file.read_text(encoding="utf-8"), country_of)
            vendors[vendor.name] = vendor
    if home.vendors.is_dir():
        for path in sorted(home.vendors.glob("*.toml")):
            try:
                vendor = read_vendor(_owner_only(path), country_of)
            except VendorFileError as error:
                raise _wrong(path, str(error)) from None
            if vendor.name != path.stem:
                raise _wrong(path, f"`name` is {vendor.name}; it takes the file's own name, {path.stem}")
            if vendor.name in SEGMENTS:
                raise _wrong(path, f"`name`: /{vendor.name} is the operator API's; take another name")
            if vendor.name in vendors:
                raise _wrong(path, f"`name`: {vendor.name} is a built-in vendor; take another name")
            vendors[vendor.name] = vendor
    for name, prices in config.vendor_prices.items():
        if name not in vendors:
            known = ", ".join(sorted(vendors))
            raise _wrong(home.config, f"`vendor_prices` names {name!r}; it takes some of {known}")
        try:
            vendors[name] = priced(vendors[name], prices, f"vendor_prices.{name}")
        except VendorFileError as error:
            raise _wrong(home.config, str(error)) from None
    for name in config.default_vendors or ():
        if name not in vendors:
            known = ", ".join(sorted(vendors))
            raise _wrong(home.config, f"`default_vendors` names {name!r}; it takes some of {known}")
    return vendors


def read_rates(home: Home, config: Config) -> Rates:
    """The bundled ECB table, in US dollars, with the operator's own rates over it.

    Raises:
        KbctlError: exit status 2, for a rate that is none.
    """
    # The single-day file holds only what the ECB still quotes: a currency it dropped has no rate here.
    table = currency_converter.CurrencyConverter(currency_converter.SINGLE_DAY_CURRENCY_FILE, decimal=True)
    dated = max(bounds.last_date for bounds in table.bounds.values())
    per_euro = {
        code: Fraction(table.convert(Decimal(1), "EUR", code, date=dated)) for code in table.currencies
    }
    usd = {code: per_euro["USD"] / rate for code, rate in per_euro.items()}
    try:
        if any(code.upper() == "USD" for code in config.rates):
            raise ValueError("USD is what all others are counted in; it takes no rate")
        own = rates_from(dated.isoformat(), config.rates).usd_per_unit
        return Rates(dated.isoformat(), {**rates_from(dated.isoformat(), usd).usd_per_unit, **own})
    except ValueError as error:
        raise _wrong(home.config, f"`rates`: {error}") from None


def read_vendor_rates(
    home: Home, config: Config, vendors: dict[str, Vendor]
) -> dict[str, dict[RateClass, Rate]]:
    """The operator's own rates, by vendor.

    Raises:
        KbctlError: exit status 2, for a vendor that is none or a rate that is none.
    """
    found = {}
    for name, table in config.vendor_rates.items():
        if name not in vendors:
            known = ", ".join(sorted(vendors))
            raise _wrong(home.config, f"`vendor_rates` names {name!r}; it takes some of {known}")
        try:
            found[name] = read_rates_of(table, f"vendor_rates.{name}")
        except VendorFileError as error:
            raise _wrong(home.config, str(error)) from None
    return found


def read_namespaces(home: Home, config: Config, vendors: dict[str, Vendor]) -> frozenset[str]:
    """The vendors at whom every tenant has idempotency keys of its own.

    Raises:
        KbctlError: exit status 2, for a vendor that is none or that knows no such keys.
    """
    able = {name for name, vendor in vendors.items() if vendor.file.idempotency is not None}
    for name in config.idempotency:
        if name not in able:
            takes = ", ".join(sorted(able))
            raise _wrong(home.config, f"`idempotency` names {name!r}; it takes some of {takes}")
    return frozenset(name for name, entry in config.idempotency.items() if entry.namespace == "tenant")


def read_prices(home: Home, config: Config, vendors: dict[str, Vendor]) -> Prices:
    """The prices of language models, the operator's own among them.

    Raises:
        KbctlError: exit status 2, for a vendor that is none.
    """
    for name, figures in config.model_prices.items():
        vendor, _, model = name.partition("/")
        if vendor not in vendors or not model:
            known = ", ".join(sorted(vendors))
            raise _wrong(
                home.config, f"`model_prices` names {name!r}; it takes VENDOR/MODEL with one of {known}"
            )
        try:
            check_dollars(figures, f"model_prices.{name}")
        except VendorFileError as error:
            raise _wrong(home.config, str(error)) from None
    return Prices(config.model_prices)


def read_upstreams(texts: list[str], vendors: dict[str, Vendor]) -> dict[str, str]:
    """``--upstream VENDOR=URL``: a loopback mock or test double in place of a vendor's origin.

    Raises:
        KbctlError: exit status 2.
    """
    found = {}
    for text in texts:
        name, equals, url = text.partition("=")
        if not equals or name not in vendors:
            known = ", ".join(sorted(vendors))
            raise KbctlError(
                "upstream_malformed",
                f"--upstream takes VENDOR=URL with one of {known}, not {text!r}",
                "kbctl up --upstream stripe=http://127.0.0.1:9000",
                Exit.USAGE,
            )
        try:
            parts = urlsplit(url)
            plain = parts.path in ("", "/") and not (parts.query or parts.fragment or "@" in parts.netloc)
            local = parts.hostname in ("127.0.0.1", "localhost", "::1")
            fits = plain and local and parts.scheme in ("http", "https") and parts.port != 0
        except ValueError:
            fits = False
        if not fits:
            raise KbctlError(
                "upstream_not_loopback",
                f"--upstream takes an address on this machine without a path, not {url!r}",
                f"kbctl up --upstream {name}=http://127.0.0.1:9000",
                Exit.USAGE,
            )
        found[name] = url.rstrip("/")
    return found


def _owner_only(path: Path) -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (os.getuid(), 0) or stat.S_IMODE(status.st_mode) & 0o022:
                raise KbctlError(
                    "config_exposed",
                    f"{path} can be changed by others",
                    f"chmod 600 {path}",
                    Exit.USAGE,
                )
            if stat.S_IMODE(status.st_mode) & 0o044:
                raise KbctlError(
                    "config_exposed",
                    f"{path} can be read by others",
                    f"chmod 600 {path}",
                    Exit.USAGE,
                )
            return file.read().decode("utf-8")
    except OSError as error:
        raise _wrong(path, f"can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _wrong(path, "not UTF-8") from None


def _floats(plain: dict[str, Any]) -> dict[str, Any]:
    for section in ("limits", "upstream"):
        values = plain.get(section)
        if isinstance(values, dict):
            plain[section] = {
                name: float(value) if isinstance(value, Decimal) else value for name, value in values.items()
            }
    return plain


def _explain(text: str) -> str:
    if "unknown field" in text:
        return f"{text}; keys are {', '.join(Config.__struct_fields__)}, and those of their sections"
    if "$.idempotency" in text:
        return f"{text}; `[idempotency.stripe] namespace` takes account or tenant"
    if "$.secrets.backend" in text:
        return f"{text}; it takes os-keyring, systemd-credential, passphrase or keyfile"
    return text


def _wrong(path: Path, what: str) -> KbctlError:
    return KbctlError("config_invalid", f"{path}: {what}", f"$EDITOR {path}    # then kbctl up", Exit.USAGE)
