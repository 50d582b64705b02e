"""Every refusal that an SDK can meet: in each of them, newest and old, its right class, the code in its text,
one request and no sleep."""

import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kbctl.launch import is_locked
from kbctl.paths import Home
from kbctld.core.refusal import STATUS, Code
from kbctld.core.vault_key import mint
from tests.e2e.scene import until
from tests.sdks.support import CONFIG, SDKS, VENDORS, Sdk, Street, has_node, is_here, street

PATIENT = CONFIG.replace("first_byte_s = 0.5", "first_byte_s = 200").replace(
    "[limits]", "[limits]\nturn_s = 200"
)

TINY = 0.000001
UPLOADING = ("stripe", "openai", "anthropic")


@dataclass(frozen=True)
class Case:
    """A call that is refused.

    Attributes:
        terms: of the key it is made with.
        call: which call.
        more: what the call has beside.
        before: how many calls pass first.
        only: the vendors for which there is such a call.
    """

    code: Code
    terms: dict[str, Any] = field(default_factory=dict)
    call: str = "pay"
    more: dict[str, Any] = field(default_factory=dict)
    before: int = 0
    only: tuple[str, ...] = ()


CASES = [
    Case(Code.KEY_MISSING),
    Case(Code.KEY_UNKNOWN),
    Case(Code.KEY_REVOKED),
    Case(Code.KEY_EXPIRED),
    Case(Code.VENDOR_NOT_ALLOWED),
    Case(Code.ENDPOINT_NOT_ALLOWED, {"allowed_endpoints": ["GET /v1/nothing"]}),
    Case(Code.ACCOUNT_NOT_ALLOWED, more={"stripe_account": "acct_1"}, only=("stripe",)),
    Case(Code.ACCOUNT_NOT_ALLOWED, more={"sid": "AC" + "7" * 32}, only=("twilio",)),
    Case(Code.BODY_TOO_LARGE, call="long"),
    Case(
        Code.UNSUPPORTED_BODY,
        {"param_rules": ["purpose == x"]},
        "upload",
        only=UPLOADING,
    ),
    Case(Code.PARAM_NOT_ALLOWED, {"param_rules": ["nothing == 1"]}),
    Case(Code.AMOUNT_UNKNOWN, call="unpriced"),
    Case(Code.AMOUNT_UNKNOWN, call="upload", only=UPLOADING),
    Case(Code.CALL_CAP_EXCEEDED, {"call_usd_cap": TINY}),
    Case(Code.SUSPECTED_DUPLICATE, {"duplicates": "refuse"}, before=1, only=("stripe", "twilio", "resend")),
    Case(Code.RATE_LIMITED, {"rate": "1/h"}, before=1),
    Case(Code.REQUEST_BUDGET_EXHAUSTED, {"daily_requests": 1}, before=1),
    Case(Code.LOOP_DETECTED, {"loop": "1/1h"}, before=1),
    Case(Code.CAP_EXHAUSTED, {"daily_usd_cap": TINY}),
    Case(Code.TOTAL_CAP_EXHAUSTED, {"total_usd_cap": TINY}),
    Case(Code.CREDENTIAL_UNAVAILABLE),
    Case(Code.UPSTREAM_UNREACHABLE),
    Case(Code.UPSTREAM_TIMEOUT),
    Case(Code.UPSTREAM_INVALID),
    Case(Code.UPSTREAM_REDIRECT),
    Case(Code.SECRET_REFLECTED),
]

SENT = {
    Code.UPSTREAM_UNREACHABLE,
    Code.UPSTREAM_TIMEOUT,
    Code.UPSTREAM_INVALID,
    Code.UPSTREAM_REDIRECT,
    Code.SECRET_REFLECTED,
}
"""Of calls that the vendor has seen."""

LLM = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    413: "APIStatusError",
    415: "APIStatusError",
    429: "RateLimitError",
    502: "InternalServerError",
    503: "InternalServerError",
    504: "InternalServerError",
}
CLASSES: dict[tuple[str, str], dict[int, str]] = {
    ("python", "stripe"): {
        400: "InvalidRequestError",
        401: "AuthenticationError",
        403: "PermissionError",
        429: "RateLimitError",
    }
    | dict.fromkeys((413, 415, 502, 503, 504), "APIError"),
    ("node", "stripe"): {
        400: "StripeInvalidRequestError",
        401: "StripeAuthenticationError",
        403: "StripePermissionError",
        429: "StripeRateLimitError",
    }
    | dict.fromkeys((413, 415, 502, 503, 504), "StripeAPIError"),
    ("python", "twilio"): dict.fromkeys(LLM, "TwilioRestException"),
    ("node", "twilio"): dict.fromkeys(LLM, "RestException"),
    ("python", "resend"): dict.fromkeys(LLM, "ResendError"),
    ("node", "resend"): dict.fromkeys(LLM, "error"),
    ("python", "openai"): LLM,
    ("python", "anthropic"): LLM,
}
"""What an SDK raises, by status."""

OTHERS = {
    "node stripe old": {413: "StripeInvalidRequestError"},  # it goes by the error's type, not by the status
    "python anthropic": {
        413: "ContentTooLargeError",
        503: "ServiceUnavailableError",
        504: "GatewayTimeoutError",
    },
    "python anthropic old": {413: "RequestTooLargeError"},
}


def class_of(sdk: Sdk, code: Code) -> str:
    usual = CLASSES[sdk.language, sdk.vendor]
    return OTHERS.get(str(sdk), usual).get(STATUS[code], usual[STATUS[code]])


@pytest.fixture(scope="module")
def here(request: pytest.FixtureRequest) -> Iterator[Street]:
    """A daemon before the mocks; before answers of our own where there is no Node."""
    with street(request.getfixturevalue("ports") if has_node() else {}) as made:
        yield made


@pytest.fixture(scope="module")
def of_a_lost_credential(here: Street) -> dict[str, str]:
    """By vendor, a key whose credential was removed."""
    keys = {}
    for vendor in VENDORS:
        here.set_credential(f"{vendor}:gone")
        keys[vendor] = here.key_for(vendor, credential=f"{vendor}:gone")
        here.done("DELETE", f"/credentials/{vendor}:gone")
    return keys


@pytest.fixture(scope="module")
def expired(here: Street) -> dict[str, str]:
    """By vendor, a key whose time is over."""
    keys = {vendor: here.key_for(vendor, expires_in="1s") for vendor in VENDORS}
    time.sleep(1.01)
    return keys


def key_of(here: Street, case: Case, vendor: str) -> str:
    """A key with which this call is refused so."""
    if case.code is Code.KEY_MISSING:
        return "sk_test_not_ours"
    if case.code is Code.KEY_UNKNOWN:
        return mint(bytes(32))
    if case.code is Code.VENDOR_NOT_ALLOWED:
        return here.key_for("resend" if vendor == "stripe" else "stripe")
    key = here.issue(vendors=[vendor], **case.terms)
    if case.code is Code.KEY_REVOKED:
        here.done("DELETE", f"/vault/keys/{key['key_id']}")
    return str(key["vault_key"])


def test_there_is_a_case_for_every_refusal_that_an_sdk_can_meet() -> None:
    """The rest needs a full disk, a page in a browser, or bytes that no SDK sends."""
    others = {
        Code.MALFORMED_REQUEST,
        Code.AMBIGUOUS_REQUEST,
        Code.ORIGIN_NOT_ALLOWED,
        Code.HEAD_TOO_LARGE,
        Code.AUDIT_UNAVAILABLE,
        Code.SHUTTING_DOWN,  # below
        Code.OVERLOADED,  # a thousand connections, and the one refusal that may be tried again
    }
    assert {case.code for case in CASES} | others == set(Code)


@pytest.mark.parametrize("sdk", SDKS, ids=str)
def test_every_refusal(
    here: Street, of_a_lost_credential: dict[str, str], expired: dict[str, str], sdk: Sdk
) -> None:
    """Class, code, requests, rows and what was slept, of each."""
    relay = here.relays[sdk.vendor]
    expected, told = {}, {}
    for case in CASES:
        if case.only and sdk.vendor not in case.only:
            continue
        if case.call == "upload" and (sdk.language, sdk.old) == ("node", True):
            continue  # it uploads to files.stripe.com, whatever host it is given
        if case.code is Code.CREDENTIAL_UNAVAILABLE:
            key = of_a_lost_credential[sdk.vendor]
        elif case.code is Code.KEY_EXPIRED:
            key = expired[sdk.vendor]
        else:
            key = key_of(here, case, sdk.vendor)
        for _ in range(case.before):
            assert "said" in here.call(sdk, key), case
        sent = case.code in SENT
        before, arrived = here.newest(), len(relay.arrived)
        relay.fault = case.code if sent else ""

        got = here.call(sdk, key, case.call, **case.more)

        relay.fault = ""
        rows = here.newest(before[0]["call_id"] if before else "")
        name = f"{case.code} {case.call}"
        expected[name] = {
            "kind": class_of(sdk, case.code),
            "in its text": True,
            "verdicts": ["allowed" if sent else case.code],
            "arrived": int(sent),
            "slept": [],
        }
        told[name] = {
            "kind": got.get("kind"),
            "in its text": case.code in got.get("text", ""),
            "verdicts": [row["policy_check_result"] for row in rows],
            "arrived": len(relay.arrived) - arrived,
            "slept": got["slept"],
        }
        assert got.get("code") in (case.code, None), got
    assert told == expected


READS = {
    "stripe": "v1/charges",
    "twilio": f"2010-04-01/Accounts/AC{'0' * 32}/Calls.json",
    "resend": "emails",
    "openai": "v1/models",
    "anthropic": "v1/models",
}


def test_a_daemon_that_stops() -> None:
    """Every SDK waits behind another call of its key while the daemon stops: one request, its right class."""
    sdks = [sdk for sdk in SDKS if is_here(sdk)]
    with street({}, PATIENT) as here, ThreadPoolExecutor(len(sdks)) as threads:
        for sdk in sdks:
            here.holder(sdk).ask("no such call", "k", here.url)  # so many programs take their time to start
        assert all("kind" in here.holder(sdk).answer() for sdk in sdks)
        for relay in here.relays.values():
            relay.may_answer.clear()
        keys = {sdk: here.key_for(sdk.vendor) for sdk in sdks}
        for sdk, key in keys.items():
            threads.submit(
                here.unasked, "GET", f"/{sdk.vendor}/{READS[sdk.vendor]}", Authorization=f"Bearer {key}"
            )
        until(lambda: connections(here.port) == len(sdks))
        for sdk, key in keys.items():
            here.holder(sdk).ask("pay", key, here.url)
        until(lambda: connections(here.port) == 2 * len(sdks))
        time.sleep(0.3)  # what is connected has said what it wants

        here.done("POST", "/shutdown")
        until(lambda: refuses_connections(here.port))
        for relay in here.relays.values():
            relay.may_answer.set()
        told = {str(sdk): here.holder(sdk).answer() for sdk in sdks}

        assert {name: (got.get("kind"), got["slept"]) for name, got in told.items()} == {
            str(sdk): (class_of(sdk, Code.SHUTTING_DOWN), []) for sdk in sdks
        }
        assert [got["text"] for got in told.values() if "shutting_down" not in got["text"]] == []
        until(lambda: not is_locked(Home(here.kbctl.home)))
        here.up()
        verdicts = Counter(row["policy_check_result"] for row in here.rows())
        assert verdicts == {"allowed": len(sdks), "shutting_down": len(sdks)}


def connections(port: int) -> int:
    """How many are open to a local port."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[1].endswith(f":{port:04X}") and line[3] == "01" for line in lines)


def refuses_connections(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0
