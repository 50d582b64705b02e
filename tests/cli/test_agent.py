"""``derive`` and ``whoami``: what an agent asks for itself."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from kbctl import KbctlError, derive, whoami, wire
from kbctl.errors import Exit
from tests.cli.support import VAULT_KEY, PretendDaemon, issued, refusal, serving_tcp


@pytest.fixture
def proxy() -> PretendDaemon:
    return PretendDaemon()


@pytest.fixture
def url(proxy: PretendDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("KBCTL_PROXY_URL", raising=False)
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # must not be believed
    with serving_tcp(proxy) as place:
        yield place


def _self() -> wire.KeySelf:
    return wire.KeySelf(
        key_id="vk_1",
        status="active",
        vendors=["stripe"],
        allowed_endpoints=None,
        denied_endpoints=[],
        param_rules=[],
        daily_usd_cap=Decimal(5),
        daily_usd_left=Decimal("4.10"),
        total_usd_cap=None,
        total_usd_left=None,
        call_usd_cap=None,
        daily_requests=None,
        daily_requests_left=None,
        rate=None,
        rate_left=None,
        loop=None,
        expires_at=None,
        agent_run_label="",
        metadata={},
    )


def test_derive(proxy: PretendDaemon, url: str) -> None:
    """The parent key goes in the body; what is not said is as the parent has it."""
    proxy.on("POST /vault_keys", issued(), 201)

    child = derive(VAULT_KEY, url, cap=5, allow=["refunds.create"], ttl="10m")
    derive(VAULT_KEY, url)

    assert child.key_id == "vk_3f9c2a7d10"
    assert VAULT_KEY not in repr(child)
    assert proxy.asked[0].body == {
        "parent_vault_key": VAULT_KEY,
        "daily_usd_cap": 5,
        "allowed_endpoints": ["refunds.create"],
        "expires_in": "10m",
    }
    assert proxy.asked[1].body == {"parent_vault_key": VAULT_KEY}
    assert "authorization" not in proxy.asked[0].headers


def test_whoami(proxy: PretendDaemon, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the key itself, at the proxy that the environment names."""
    proxy.on("GET /vault/self", _self())
    monkeypatch.setenv("KBCTL_PROXY_URL", url)

    assert whoami(VAULT_KEY) == _self()
    assert proxy.only.headers["authorization"] == f"Bearer {VAULT_KEY}"


@pytest.mark.parametrize(
    ("http", "exit_status"), [(401, Exit.REFUSED), (403, Exit.REFUSED), (400, Exit.USAGE)]
)
def test_refused(proxy: PretendDaemon, url: str, http: int, exit_status: Exit) -> None:
    """The proxy's reason."""
    proxy.on("GET /vault/self", refusal("key_revoked", "this key was revoked", "ask the operator"), http)

    with pytest.raises(KbctlError) as refused:
        whoami(VAULT_KEY, url)

    assert (refused.value.code, refused.value.exit_status) == ("key_revoked", exit_status)


def test_redirects_are_not_followed(proxy: PretendDaemon, url: str) -> None:
    """A key is not carried elsewhere."""
    proxy.on("GET /vault/self", b"", 302, Location="/elsewhere")

    with pytest.raises(KbctlError, match="HTTP 302"):
        whoami(VAULT_KEY, url)
    assert len(proxy.asked) == 1


@pytest.mark.parametrize("said", [{"cap": 0.5}, {"parent": "vk_1"}, {"frob": 1}, {"allow": "x"}])
def test_derive_refuses_types(proxy: PretendDaemon, url: str, said: dict[str, Any]) -> None:
    """As ``issue`` does; there is one parent."""
    with pytest.raises(TypeError):
        derive(VAULT_KEY, url, **said)
    assert proxy.asked == []


@pytest.mark.parametrize("key", ["", "a b", "vault_key_\n", 5])
def test_no_key(proxy: PretendDaemon, url: str, key: Any) -> None:
    """Refused before anything is sent."""
    for ask in (whoami, derive):
        with pytest.raises(KbctlError) as refused:
            ask(key, url)
        assert refused.value.exit_status is Exit.USAGE
    assert proxy.asked == []


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:4815", "http://u:p@x"])
def test_no_proxy(url: str) -> None:
    """What is no origin."""
    with pytest.raises(KbctlError):
        whoami(VAULT_KEY, url)
