"""The operator API over httpx: a daemon's TCP port, the asyncio client, and what an agent asks for itself.

What must stay true: nothing of the environment (proxies, netrc) steers a request, no answer redirects it, and
no secret goes in plain text to another machine. What the command line needs is in :mod:`kbctl.local`.
"""

import ipaddress
from collections.abc import Iterator
from typing import Any

import httpx

from kbctl import calls, wire
from kbctl.calls import Call
from kbctl.errors import Exit, KbctlError


class Remote:
    """The daemon at an origin.

    Args:
        origin: such as ``http://127.0.0.1:4815``.
        http: what asks there.
    """

    def __init__(self, origin: str, http: httpx.Client) -> None:
        self._origin = origin
        self._http = http

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def ask(self, call: Call[Any]) -> httpx.Response:
        """The whole answer; whether it is a refusal has not been looked at.

        Raises:
            KbctlError: there was none.
        """
        try:
            return self._http.request(**request(call))
        except httpx.HTTPError as error:
            raise failure(self._origin, error) from None

    def pieces(self, call: Call[Any]) -> Iterator[bytes]:
        """The body of an answer that is none of a refusal, each piece as it comes.

        Raises:
            KbctlError: it is a refusal, or it broke off.
        """
        try:
            with self._http.stream(**request(call)) as answer:
                if not answer.is_success:
                    answer.read()
                calls.check_answer(answer, call)
                yield from answer.iter_bytes()
        except httpx.RemoteProtocolError:
            raise calls.cut_off() from None
        except httpx.HTTPError as error:
            raise failure(self._origin, error) from None


def settings(base_url: str, timeout: float) -> dict[str, Any]:
    """How every client of ours behaves: nothing of the environment steers it, and no answer redirects it."""
    return {"base_url": base_url, "trust_env": False, "timeout": timeout, "follow_redirects": False}


def request(call: Call[Any]) -> dict[str, Any]:
    """The arguments of httpx."""
    made: dict[str, Any] = {"method": call.method, "url": call.path, "headers": {}}
    if call.query:
        made["params"] = call.query
    if call.body is not None:
        made["content"] = wire.encode(call.body)
        made["headers"]["content-type"] = "application/json"
    if call.bearer is not None:
        made["headers"]["authorization"] = f"Bearer {calls.header_safe(call.bearer, 'key')}"
    return made


def check_url(url: str, *, loopback_only: bool) -> str:
    """An origin that may be sent a secret.

    Raises:
        KbctlError: not an http(s) origin, or plain http to another machine where that is not wanted.
    """
    example = "http://127.0.0.1:4815"
    try:
        parsed = httpx.URL(url)
        port = parsed.port if parsed.port is not None else 80
    except (httpx.InvalidURL, TypeError, ValueError):
        raise KbctlError("bad_value", f"{url!r} is not a URL", example, Exit.USAGE) from None
    extra = parsed.userinfo or parsed.query or parsed.fragment or parsed.path not in ("", "/")
    if parsed.scheme not in ("http", "https") or not parsed.host or extra or not 1 <= port <= 65535:
        # Not repeated: a URL can hold a password.
        raise KbctlError(
            "bad_value", "a kbctl URL is http or https, a host and a port, no more", example, Exit.USAGE
        )
    if loopback_only and parsed.scheme == "http" and not _is_loopback(parsed.host):
        raise KbctlError(
            "bad_value",
            f"a token may not go over plain http to another machine, and {parsed.host} is one",
            f"https://{parsed.host}",
            Exit.USAGE,
        )
    return str(parsed).rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def failure(place: str, error: BaseException) -> KbctlError:
    """What a failed exchange means for the person."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and not calls.is_forbidden(error):
        if "://" not in place:
            return calls.not_running()
        return KbctlError("daemon_unreachable", f"nothing answers at {place}", "kbctl up", Exit.UNREACHABLE)
    if isinstance(error, httpx.TimeoutException):
        return calls.too_late()
    return calls.unreachable(place, error)
