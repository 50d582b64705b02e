"""Signing how far the audit has come.

What must stay true: the private key lives in the secret store and in this memory, and nowhere else; the end
of the chain that is signed is the one this process has written and committed, never one that it has only
read; a store that does not answer delays checkpoints, and nothing else.
"""

import asyncio
import base64
import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kbctl.checkpoint import BadCheckpointError, Checkpoint, public_key, read_checkpoint, signature
from kbctl.errors import Exit, KbctlError
from kbctld.durable import sync
from kbctld.secrets.secret import Secret
from kbctld.secrets.store import SecretStore
from kbctld.store.database import Database

log = logging.getLogger("kbctld.audit")

ITEM = "kbctl.audit-key"
"""Its name in the secret store; no credential can have a name with a point in front of any colon."""

EVERY_S = 600.0
EVERY_EVENTS = 20_000
_LOOK_S = 5.0
_RETRY_S = 30.0
_KEPT_BYTES_MAX = 64 * 1024 * 1024


class Checkpoints:
    """Makes and keeps them.

    Args:
        store: where the key is kept.
        database: whose chain is signed.
        path: the file of those that were made, one a line, only ever appended to.
        made: told of the public half of a key that was made now.

    Attributes:
        key: the public half, as text; None until the store has answered.
        problem: why there is none.
    """

    def __init__(
        self, store: SecretStore, database: Database, path: Path, made: Callable[[str], None]
    ) -> None:
        self.key: str | None = None
        self.problem = "the secret store has not answered yet"
        self.path = path
        self._store = store
        self._database = database
        self._made = made
        self._private: Ed25519PrivateKey | None = None
        self._task: asyncio.Task[None] | None = None
        self._written = -1
        self._written_at = 0.0

    def begin(self) -> None:
        """Read the key, then make a checkpoint now and then."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """One last checkpoint of what was written."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._write_if(due=True)

    # --- making ---------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read the key, or make it on first use.

        Raises:
            KbctlError: the store does not answer.
        """
        kept = await self._store.read(ITEM)
        if kept is None:
            private = Ed25519PrivateKey.generate()
            await self._store.write(ITEM, Secret(base64.b64encode(private.private_bytes_raw()).decode()))
            self._made(public_key(private))
        else:
            try:
                private = Ed25519PrivateKey.from_private_bytes(base64.b64decode(kept.reveal(), validate=True))
            except ValueError:
                raise KbctlError(
                    "audit_key_damaged",
                    f"the item {ITEM} of the secret store is no key",
                    f"remove {ITEM} from the secret store, then kbctl down && kbctl up",
                    Exit.INTEGRITY,
                ) from None
        self._private, self.key = private, public_key(private)

    def now(self) -> Checkpoint:
        """How far the audit has come, signed.

        Raises:
            KbctlError: there is no key to sign with now.
        """
        tip = self._database.tip
        return self.at(tip.no, tip.calls, tip.link)

    def at(self, events: int, calls: int, link: bytes) -> Checkpoint:
        """A checkpoint of an end that was seen to be good."""
        private, key = self._signing()
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        unsigned = Checkpoint(self._database.tip.database_id, events, calls, moment, link, key)
        return unsigned.signed(private)

    def sign(self, message: bytes) -> str:
        """The signature of something else that leaves here, such as an exported file."""
        return signature(self._signing()[0], message)

    def keep(self, checkpoint: Checkpoint) -> None:
        """Append one to the file."""
        _append(self.path, checkpoint.line)
        self._written, self._written_at = checkpoint.events, time.monotonic()

    def _signing(self) -> tuple[Ed25519PrivateKey, str]:
        if self._private is None or self.key is None:
            raise KbctlError(
                "audit_key_unavailable",
                f"there is no key to sign with: {self.problem}",
                "kbctl status",
                Exit.REFUSED,
            )
        return self._private, self.key

    # --- keeping --------------------------------------------------------------------------------

    def kept(self) -> list[Checkpoint]:
        """Those of the file that are by our key and of this database, oldest first."""
        return [each for each in _read(self.path) if self._ours(each)]

    def newest(self) -> Checkpoint | None:
        """The last line of the file, whoever signed it."""
        found = _read(self.path, last=True)
        return found[-1] if found else None

    def verified(self) -> Checkpoint | None:
        """How far the chain was last found good; None where nobody of ours says so."""
        found = _read(self._verified_path)
        return found[-1] if found and self._ours(found[-1]) else None

    def set_verified(self, checkpoint: Checkpoint) -> None:
        """Remember how far it was found good."""
        beside = self._verified_path.with_suffix(".new")
        beside.unlink(missing_ok=True)
        _append(beside, checkpoint.line)
        beside.replace(self._verified_path)

    def set_aside(self) -> None:
        """Begin anew: what was kept is of another past, or of a key that is gone."""
        if self.path.exists():
            self.path.replace(self.path.with_name(f"{self.path.name}.before"))
        self._verified_path.unlink(missing_ok=True)

    @property
    def _verified_path(self) -> Path:
        return self.path.with_name("kbctl.verified")

    def _ours(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.key == self.key and checkpoint.database == self._database.tip.database_id

    async def _keep(self) -> None:
        while self._private is None:
            try:
                await self.load()
            except KbctlError as error:
                self.problem = error.message
                log.warning("no checkpoints of the audit for now: %s", error.message)
                await asyncio.sleep(_RETRY_S)
        newest = self.newest()
        self._written = newest.events if newest is not None and self._ours(newest) else 0
        self._written_at = time.monotonic()
        while True:
            behind = self._database.tip.no - self._written
            due = behind >= EVERY_EVENTS or time.monotonic() - self._written_at >= EVERY_S
            self._write_if(due=due)
            await asyncio.sleep(_LOOK_S)

    def _write_if(self, *, due: bool) -> None:
        if not due or self._private is None or self._database.tip.no == self._written:
            return
        try:
            checkpoint = self.now()
            self.keep(checkpoint)
        except OSError as error:
            log.warning("a checkpoint could not be kept in %s: %s", self.path, error)
            return
        log.info("%s", checkpoint.line)


def _append(path: Path, line: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        os.write(fd, line.encode() + b"\n")
        sync(fd)
    finally:
        os.close(fd)


def _read(path: Path, *, last: bool = False) -> list[Checkpoint]:
    """The checkpoints of a file; lines that are none, such as a torn last one, are passed over."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - (2000 if last else _KEPT_BYTES_MAX)))
            lines = file.read().decode("ascii", "replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in reversed(lines) if last else lines:
        try:
            found.append(read_checkpoint(line))
        except BadCheckpointError:
            continue
        if last:
            break
    return found
