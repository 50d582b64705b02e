"""What an agent may ask for itself, with nothing but its vault key: a smaller key, and what it may still do.

What must stay true: both go to the proxy port, never to the operator's socket; nothing of the environment but
``KBCTL_PROXY_URL`` steers where; and no error shows a key.

    from kbctl import derive, whoami

    child = derive(vault_key, cap=5, allow=["refunds.create"], ttl="10m")
    print(whoami(child.vault_key).daily_usd_left)
"""

import os
from typing import Final, TypeVar, Unpack

import httpx

from kbctl import calls, limits, remote, wire

T = TypeVar("T")

PROXY_URL: Final = "http://127.0.0.1:4815"
_TIMEOUT_S: Final = 30.0


def derive(
    parent_vault_key: str, proxy_url: str | None = None, **said: Unpack[limits.Said]
) -> wire.IssuedKey:
    """A child of this key, within its limits; what it spends counts for both.

    Args:
        parent_vault_key: the key that the agent holds.
        proxy_url: the proxy; ``KBCTL_PROXY_URL`` when left out, else ``http://127.0.0.1:4815``.
        said: the keywords of :meth:`kbctl.Client.issue`; what is left out is as the parent has it.
    """
    if "parent" in said:
        raise TypeError("derive() takes the parent as its first argument")
    parent = calls.header_safe(parent_vault_key, "key")
    request = limits.from_keywords({**said, "parent": parent}, "derive")
    return _ask(proxy_url, calls.derive(request))


def whoami(vault_key: str, proxy_url: str | None = None) -> wire.KeySelf:
    """What this key may still do."""
    return _ask(proxy_url, calls.whoami(vault_key))


def _ask(proxy_url: str | None, call: calls.Call[T]) -> T:
    url = remote.check_url(
        proxy_url or os.environ.get("KBCTL_PROXY_URL") or PROXY_URL,
        # An agent in a container reaches the proxy at the host's address; its key is capped for a reason.
        loopback_only=False,
    )
    with httpx.Client(verify=url.startswith("https:"), **remote.settings(url, _TIMEOUT_S)) as http:
        try:
            answer = http.request(**remote.request(call))
        except httpx.HTTPError as error:
            raise remote.failure(url, error) from None
        calls.check_answer(answer, call)
        return calls.read(answer, call)
