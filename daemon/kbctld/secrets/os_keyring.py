"""The OS keyring as a place for secrets: Secret Service on Linux, Keychain on macOS.

What must stay true: every call is a helper process with a deadline, killed when it passes, so a stuck
keyring costs the caller a few seconds and the event loop nothing; the secret crosses to the helper by pipe;
"there is no such secret" is said only by a keyring that was searched. Locked, absent, stuck and lying are
different errors, because each has a different remedy.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from kbctl.errors import Exit, KbctlError
from kbctld.secrets.keyring_helper import scrubbed
from kbctld.secrets.secret import Secret, checked

SERVICE = "kbctl"

# An unlocked keyring answers in 20 ms and Python starts in 100: 5 s is a keyring that hangs.
DEADLINE_S = 5.0

# A home with many credentials reads them all at start. Helpers that share a core would eat each other's
# deadline, so the rest wait their turn, and a turn starts with its own deadline.
HELPERS_AT_ONCE = 2

HELPER = Path(__file__).with_name("keyring_helper.py")

_OTHERWISE = 'set `secrets.backend = "keyfile"` in config.toml'
_UNLOCK = (
    "unlock the login keychain" if sys.platform == "darwin" else "unlock it (logging in to the desktop does)"
)


class OsKeyring:
    """The OS keyring, one item per credential under the service ``kbctl``."""

    kind = "os-keyring"
    description = "OS keyring (Keychain)" if sys.platform == "darwin" else "OS keyring (Secret Service)"

    def __init__(self, namespace: str = "", *, deadline_s: float = DEADLINE_S) -> None:
        """
        Args:
            namespace: keeps the items of a home folder other than the default one apart.
            deadline_s: after this, a call fails with ``keyring_timeout``.
        """
        # A folder name need not be UTF-8, a keyring's user name must be.
        self._namespace = namespace.encode("utf-8", "backslashreplace").decode()
        self._deadline_s = deadline_s
        self._turns = asyncio.Semaphore(HELPERS_AT_ONCE)

    async def read(self, name: str) -> Secret | None:
        """The secret, or None when the keyring holds none of that name."""
        reply = await self._ask("get", self._username(name))
        match reply.get("secret", ""):
            case None:
                return None
            case str() as text if text:
                return Secret(text)
            case _:
                raise _failure("wrong", "it gave no readable secret")

    async def write(self, name: str, secret: Secret) -> None:
        """Store or replace; returns when the keyring has given the same secret back."""
        await self._ask("set", self._username(name), secret)

    async def remove(self, name: str) -> None:
        """Remove; a name that is not there is no error."""
        await self._ask("delete", self._username(name))

    async def probe(self) -> None:
        """Store, read, compare and delete random bytes, or raise what stands in the way."""
        await self._ask("probe", self._username("probe"))

    def _username(self, name: str) -> str:
        return f"{name} @ {self._namespace}" if self._namespace else name

    async def _ask(self, op: str, username: str, secret: Secret | None = None) -> dict[str, object]:
        request = {"op": op, "service": SERVICE, "username": username}
        if secret is not None:
            request["secret"] = checked(secret)
        async with self._turns:
            answer = await self._run(json.dumps(request).encode())
        try:
            reply = json.loads(answer)
            status = str(reply["status"])
        except (ValueError, KeyError, TypeError):
            # `from None`: a decoding error carries the text that it could not decode.
            raise _failure("failed", "its helper gave no answer") from None
        if status != "ok":
            raise _failure(status, str(reply.get("detail", "")))
        return dict(reply)

    async def _run(self, request: bytes) -> bytes:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-E",  # no PYTHONPATH, no PYTHONSTARTUP
                "-P",  # and neither the helper's folder nor ours on the path of imports
                str(HELPER),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=scrubbed(os.environ),
                cwd="/",
                start_new_session=True,  # a process group of its own, so that killing it leaves nothing
            )
        except OSError as error:
            raise _failure("failed", f"its helper does not start: {error.strerror}") from None
        try:
            async with asyncio.timeout(self._deadline_s):
                answer, _ = await process.communicate(request)
        except TimeoutError:
            raise KbctlError(
                "keyring_timeout",
                f"the OS keyring did not answer within {self._deadline_s:g} s",
                f"close its open dialogs or restart it and try again, or {_OTHERWISE}",
                Exit.REFUSED,
            ) from None
        finally:
            if process.returncode is None:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it ended in this very moment
                await process.wait()
        return answer


def _failure(status: str, detail: str) -> KbctlError:
    """The error for a status of the helper."""
    match status:
        case "absent":
            return KbctlError(
                "keyring_absent", f"there is no OS keyring here: {detail}", _OTHERWISE, Exit.REFUSED
            )
        case "uncreated":
            return KbctlError(
                "keyring_uncreated",
                f"the OS keyring is not set up: {detail}",
                f"create a default keyring in the desktop's password manager and try again, or {_OTHERWISE}",
                Exit.REFUSED,
            )
        case "locked":
            return KbctlError(
                "keyring_locked",
                "the OS keyring is locked",
                f"{_UNLOCK} and try again, or {_OTHERWISE}",
                Exit.REFUSED,
            )
        case "wrong":
            return KbctlError(
                "keyring_wrong_answer",
                f"the OS keyring does not keep secrets: {detail}",
                f"remove the items of `{SERVICE}` in it and set the credential again, or {_OTHERWISE}",
                Exit.INTEGRITY,
            )
        case _:
            return KbctlError(
                "keyring_failed",
                f"the OS keyring failed: {detail}",
                f"restart it, or {_OTHERWISE}",
                Exit.REFUSED,
            )
