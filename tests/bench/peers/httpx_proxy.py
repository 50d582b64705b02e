"""What one would write: an ASGI app on httpx that swaps the key. uvicorn runs it."""

import json
import os
from typing import Any

import httpx

_KEYS: dict[str, str] = json.loads(os.environ["KEYS"])
_UPSTREAM = os.environ["UPSTREAM"]
_HOPS = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer"}

# The usual limit of 100 connections would fail calls at 256 at once.
_client = httpx.AsyncClient(
    verify=False,
    timeout=30,
    limits=httpx.Limits(max_connections=1000, max_keepalive_connections=1000),
    trust_env=False,
)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Forward one request."""
    if scope["type"] == "lifespan":
        await _live(receive, send)
        return
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = {name: value for name, value in scope["headers"] if name not in _HOPS and name != b"host"}
    secret = _KEYS.get(headers.get(b"authorization", b"").decode("latin-1"))
    if secret is None:
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        return
    headers[b"authorization"] = secret.encode()
    request = _client.build_request(
        scope["method"], _UPSTREAM + scope["path"], headers=list(headers.items()), content=body
    )
    answer = await _client.send(request, stream=True)
    try:
        kept = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in _HOPS]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
        async for piece in answer.aiter_raw():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        await answer.aclose()


async def _live(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            await _client.aclose()
            return
