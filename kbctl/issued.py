"""An issued key as a resource: held for a block, revoked when the block ends, however it ends.

What must stay true: leaving the block revokes, also by an exception and under cancellation; an exception of
the block is never replaced by one of the revocation, which is noted on it instead; no representation shows
the key.
"""

from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Protocol, Self, cast

from kbctl import wire
from kbctl.errors import KbctlError


class _Client(Protocol):
    def revoke(self, ref: str) -> wire.RevokeReply: ...


class _AsyncClient(Protocol):
    async def revoke(self, ref: str) -> wire.RevokeReply: ...


class IssuedKey(wire.IssuedKey, dict=True):
    """What ``Client.issue`` gives: a :class:`kbctl.wire.IssuedKey` that ``with`` revokes at its end."""

    # Not annotated, so that it is no field of the message.
    _client = cast("_Client | None", None)

    def issued_by(self, client: _Client) -> Self:
        """Remember who can revoke it."""
        self._client = client
        return self

    def revoke(self) -> wire.RevokeReply:
        """End it at once; a second time is fine."""
        if self._client is None:
            raise TypeError("this key was not issued by a client")
        return self._client.revoke(self.key_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.revoke()
        except Exception as failure:
            if error is None:
                raise
            _note(error, self.key_id, failure)


class AsyncIssuedKey(wire.IssuedKey, dict=True):
    """The same for asyncio: ``async with``."""

    _client = cast("_AsyncClient | None", None)

    def issued_by(self, client: _AsyncClient) -> Self:
        """Remember who can revoke it."""
        self._client = client
        return self

    async def revoke(self) -> wire.RevokeReply:
        """End it at once; a second time is fine."""
        if self._client is None:
            raise TypeError("this key was not issued by a client")
        return await self._client.revoke(self.key_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import anyio

        try:
            # A cancelled task group cancels every await in it, this one too, and the key would live on.
            with anyio.CancelScope(shield=True):
                await self.revoke()
        except Exception as failure:
            if error is None:
                raise
            _note(error, self.key_id, failure)


class Issuing:
    """``AsyncClient.issue(...)`` before it is awaited: ``await`` gives the key, ``async with`` holds it."""

    def __init__(self, ask: Callable[[], Awaitable[AsyncIssuedKey]]) -> None:
        self._ask = ask
        self._key: AsyncIssuedKey | None = None

    def __await__(self) -> Generator[Any, None, AsyncIssuedKey]:
        return self._ask().__await__()

    async def __aenter__(self) -> AsyncIssuedKey:
        self._key = await self._ask()
        return self._key

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._key is not None:
            await self._key.__aexit__(kind, error, trace)


def _note(error: BaseException, key_id: str, failure: Exception) -> None:
    why = failure.message if isinstance(failure, KbctlError) else type(failure).__name__
    error.add_note(f"kbctl: {key_id} could not be revoked: {why}; try: kbctl revoke {key_id}")
