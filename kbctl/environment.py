"""What an agent's process is given in place of real keys: variables of its environment.

What must stay true: every variable that leads an SDK of a vendor to the proxy is set for each vendor that the
key reaches, and no real key of such a vendor stays beside it. Other vendors' variables are not touched.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kbctl.errors import KbctlError

if TYPE_CHECKING:
    from kbctl import wire
    from kbctl.client import Client

STANDS_FOR_ACCOUNT: Final = "AC" + "0" * 32
"""Instead of the account SID of a credential that does not say its own."""

SHIM: Final = Path(__file__).parent / "shim"

_LOCAL: Final = ("127.0.0.1", "localhost")

_VENDORS: Final[dict[str, Callable[[str, str, str], dict[str, str]]]] = {
    "stripe": lambda key, url, _: {
        "STRIPE_API_KEY": key,
        "STRIPE_SECRET_KEY": key,
        "STRIPE_BASE_URL": f"{url}/stripe",
    },
    "twilio": lambda key, _, account: {"TWILIO_ACCOUNT_SID": account, "TWILIO_AUTH_TOKEN": key},
    "resend": lambda key, url, _: {
        "RESEND_API_KEY": key,
        "RESEND_API_URL": f"{url}/resend",  # what the SDK for Python reads
        "RESEND_BASE_URL": f"{url}/resend",  # what the one for Node reads
    },
    "openai": lambda key, url, _: {"OPENAI_API_KEY": key, "OPENAI_BASE_URL": f"{url}/openai/v1"},
    "anthropic": lambda key, url, _: {"ANTHROPIC_API_KEY": key, "ANTHROPIC_BASE_URL": f"{url}/anthropic"},
}

# Real keys whatever they are called. Clerk and Paystack write theirs as Stripe does; Azure has an OpenAI.
_REAL: Final = {
    "stripe": re.compile(r"[sr]k_(live|test)_[0-9A-Za-z]"),
    "resend": re.compile(r"re_[0-9A-Za-z]{6,}_[0-9A-Za-z]{16,}"),
    "openai": re.compile(r"sk-(proj|svcacct|admin)-"),
    "anthropic": re.compile(r"sk-ant-"),
}
_OTHERS: Final = ("AZURE", "CLERK", "PAYSTACK")
_SECRET_NAME: Final = re.compile(r"KEY|SECRET|TOKEN|PASSWORD")
# Of a vendor, called a key or a secret, and yet nothing that a call can be made with.
_HARMLESS_NAME: Final = re.compile(r"WEBHOOK|PUBLISHABLE|PUBLIC|SIGNING")
_HARMLESS_VALUE: Final = re.compile(r"vault_key_|pk_(live|test)_|whsec_")
_OPERATOR_TOKEN: Final = "kbctl_tok_"  # noqa: S105  # how one begins, not one


def lines(key: "wire.IssuedKey", account_sid: str, before: Mapping[str, str]) -> dict[str, str]:
    """The variables for this key.

    Args:
        key: with the vault key itself.
        account_sid: whose Twilio account; ``twilio_account`` tells.
        before: the environment that they are added to.
    """
    found: dict[str, str] = {}
    for vendor, variables in _VENDORS.items():
        if vendor in key.vendors:
            found |= variables(key.vault_key, key.proxy_url, account_sid)
    found["KBCTL_KEY_ID"] = key.key_id
    found["KBCTL_PROXY_URL"] = key.proxy_url
    return found | _no_proxy(before)


def twilio_account(client: "Client", key: "wire.Key") -> str:
    """The account SID of the credential that a key reaches Twilio with; it is no secret."""
    if "twilio" not in key.vendors:
        return STANDS_FOR_ACCOUNT
    try:
        ours = {each.name: each for each in client.credentials() if each.vendor == "twilio"}
    except KbctlError:
        return STANDS_FOR_ACCOUNT  # right as well; a key that was just issued must not be lost over it
    chosen = ours.get(key.credential or "") or ours.get("twilio")
    return (chosen.fields.get("account_sid") if chosen else None) or STANDS_FOR_ACCOUNT


def real_keys(vendors: list[str], set_by_us: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """The names of variables that hold a real key of one of these vendors, or an operator's token."""
    return sorted(
        name for name, value in before.items() if name not in set_by_us and _is_real(name, value, vendors)
    )


def _is_real(name: str, value: str, vendors: list[str]) -> bool:
    if value.startswith(_OPERATOR_TOKEN):
        return True
    if not value or name.startswith(_OTHERS) or _HARMLESS_VALUE.match(value):
        return False
    words = name.upper().split("_")
    for vendor in vendors:
        named = vendor.upper() in words and _SECRET_NAME.search(name.upper())
        if named and not _HARMLESS_NAME.search(name.upper()):
            return True
        if vendor in _REAL and _REAL[vendor].match(value):
            return True
    return False


def with_shim(before: Mapping[str, str]) -> dict[str, str]:
    """The variables that load our shim into Python and Node, before what is loaded already."""
    folder, script = str(SHIM), str(SHIM / "register.cjs")
    if re.search(r"[\s\"\\]", script):
        script = '"' + script.replace("\\", "\\\\").replace('"', '\\"') + '"'
    paths = [path for path in before.get("PYTHONPATH", "").split(":") if path and path != folder]
    require = f"--require {script}"
    more = before.get("NODE_OPTIONS", "").replace(require, "").strip()
    return {"PYTHONPATH": ":".join([folder, *paths]), "NODE_OPTIONS": f"{require} {more}".strip()}


def _no_proxy(before: Mapping[str, str]) -> dict[str, str]:
    """``NO_PROXY`` with what stood there; also in lower case where it stands so, because that one wins."""
    standing = [name for name in ("NO_PROXY", "no_proxy") if before.get(name)]
    hosts = [host.strip() for name in standing for host in before[name].split(",")]
    # An asterisk means everything only where it stands alone.
    merged = "*" if "*" in hosts else ",".join(dict.fromkeys([*_LOCAL, *filter(None, hosts)]))
    return dict.fromkeys(["NO_PROXY", *standing], merged)
