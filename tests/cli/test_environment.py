"""What an agent's process is given, and what is taken from it."""

import json

import pytest

from kbctl import environment
from tests.cli.support import PROXY, VAULT_KEY, issued

ALL = ["stripe", "twilio", "resend", "openai", "anthropic"]


def test_exactly_these_for_every_vendor() -> None:
    """The fixed list."""
    account = "AC" + "1" * 32

    assert environment.lines(issued(vendors=ALL), account, {}) == {
        "STRIPE_API_KEY": VAULT_KEY,
        "STRIPE_SECRET_KEY": VAULT_KEY,
        "STRIPE_BASE_URL": f"{PROXY}/stripe",
        "TWILIO_ACCOUNT_SID": account,
        "TWILIO_AUTH_TOKEN": VAULT_KEY,
        "RESEND_API_KEY": VAULT_KEY,
        "RESEND_API_URL": f"{PROXY}/resend",
        "RESEND_BASE_URL": f"{PROXY}/resend",
        "OPENAI_API_KEY": VAULT_KEY,
        "OPENAI_BASE_URL": f"{PROXY}/openai/v1",
        "ANTHROPIC_API_KEY": VAULT_KEY,
        "ANTHROPIC_BASE_URL": f"{PROXY}/anthropic",
        "KBCTL_KEY_ID": "vk_3f9c2a7d10",
        "KBCTL_PROXY_URL": PROXY,
        "NO_PROXY": "127.0.0.1,localhost",
    }


def test_only_what_the_key_reaches() -> None:
    """A vendor of somebody's own has no variables that an SDK would read."""
    found = environment.lines(issued(vendors=["resend", "mine"]), "AC", {})

    assert [name for name in found if not name.startswith("RESEND")] == [
        "KBCTL_KEY_ID",
        "KBCTL_PROXY_URL",
        "NO_PROXY",
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"NO_PROXY": "a.test, b.test"}, {"NO_PROXY": "127.0.0.1,localhost,a.test,b.test"}),
        ({"NO_PROXY": "localhost"}, {"NO_PROXY": "127.0.0.1,localhost"}),
        ({"NO_PROXY": "*"}, {"NO_PROXY": "*"}),
        (
            {"no_proxy": "a.test"},
            {"NO_PROXY": "127.0.0.1,localhost,a.test", "no_proxy": "127.0.0.1,localhost,a.test"},
        ),
        ({"NO_PROXY": ""}, {"NO_PROXY": "127.0.0.1,localhost"}),
    ],
)
def test_no_proxy_keeps_what_stood_there(before: dict[str, str], after: dict[str, str]) -> None:
    """In both spellings, because programs read one or the other."""
    found = environment.lines(issued(), "AC", before)

    assert {name: value for name, value in found.items() if name.lower() == "no_proxy"} == after


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("STRIPE_LIVE_KEY", "anything", True),
        ("MY_STRIPE_SECRET", "anything", True),
        ("BILLING", "sk_live_abc", True),
        ("BILLING", "rk_test_abc", True),
        ("BILLING", "sk-ant-api03-x", True),
        ("TWILIO_API_SECRET", "x", True),
        ("ANTHROPIC_AUTH_TOKEN", "x", True),
        ("OPERATOR", "kbctl_tok_abc", True),
        ("STRIPE_WEBHOOK_SECRET", "whsec_1", False),
        ("STRIPE_PUBLISHABLE_KEY", "pk_live_1", False),
        ("STRIPE_PRICE_ID", "price_1", False),
        ("STRIPE_KEY", "", False),
        ("BILLING_STRIPE_KEY", "vault_key_abc", False),
        ("CLERK_SECRET_KEY", "sk_live_abc", False),
        ("AZURE_OPENAI_API_KEY", "abc", False),
        ("DATABASE_TOKEN", "abc", False),
        ("RESENDER_KEY", "abc", False),
    ],
)
def test_real_keys_are_found(name: str, value: str, taken: bool) -> None:
    """By name and by look; what a call can't be made with stays."""
    assert environment.real_keys(ALL, {}, {name: value}) == ([name] if taken else [])


def test_other_vendors_keys_stay() -> None:
    """A run of Stripe's does not break what speaks to OpenAI."""
    before = {"OPENAI_API_KEY": "sk-proj-x", "STRIPE_API_KEY": "sk_live_x", "STRIPE_KEY": "sk_live_x"}

    assert environment.real_keys(["stripe"], {"STRIPE_API_KEY": VAULT_KEY}, before) == ["STRIPE_KEY"]


def test_the_shim_goes_in_front_once() -> None:
    """And what was there stays behind it, also in a run within a run."""
    first = environment.with_shim({"PYTHONPATH": "/a::/b", "NODE_OPTIONS": "--max-old-space-size=99"})
    folder = str(environment.SHIM)

    assert first["PYTHONPATH"] == f"{folder}:/a:/b"
    assert first["NODE_OPTIONS"] == f"--require {folder}/register.cjs --max-old-space-size=99"
    assert environment.with_shim(first) == first
    assert environment.with_shim({})["PYTHONPATH"] == folder
    assert json.dumps(first)
