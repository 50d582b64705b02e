"""POST and GET /backup: a copy of the database, made while calls go on.

What must stay true: one at a time; it goes on when whoever asked for it has gone; only the user of the
socket may say where on this machine a file is written, never a token on TCP.
"""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctld.control.routes import Ask, HttpError, Reply, Route
from kbctld.core.clock import rfc3339
from kbctld.store import changes
from kbctld.store.backup import Contents, back_up
from kbctld.store.journal import JournalError
from kbctld.vault import Vault


@dataclass(slots=True)
class Care:
    """The one backup that is made, or was made last."""

    vault: Vault
    _state: wire.BackupState = field(default_factory=lambda: wire.BackupState(state="none"))
    _task: asyncio.Task[None] | None = None

    def routes(self) -> list[Route]:
        """Their part of the table."""
        return [
            Route(
                *("GET", "/backup", self._show, "admin", "How far the backup is that is made, or was last"),
                gives=wire.BackupState,
            ),
            Route(
                *(
                    "POST",
                    "/backup",
                    self._begin,
                    "admin",
                    "Begin a copy of the database; on the socket only",
                ),
                takes=wire.BackupRequest,
                gives=wire.BackupState,
                errors=(409,),
            ),
        ]

    async def _show(self, _ask: Ask) -> Reply:
        return Reply(self._state)

    async def _begin(self, ask: Ask) -> Reply:
        if not ask.actor.startswith("uid "):
            raise HttpError(
                403, "socket_only", "a file is written only for the user of the socket", "kbctl backup FILE"
            )
        request = wire.decode(ask.body, wire.BackupRequest)
        file = Path(request.path)
        if not file.is_absolute() or "\0" in request.path or not file.name:
            raise KbctlError("bad_value", "the path is not absolute", "kbctl backup FILE", Exit.USAGE)
        if self._task is not None and not self._task.done():
            raise KbctlError(
                "backup_running",
                f"a backup to {self._state.path} is being made",
                "kbctl status",
                Exit.REFUSED,
            )
        self._state = wire.BackupState(state="copying", path=str(file))
        self._task = asyncio.get_running_loop().create_task(self._make(file, request.force, ask.actor))
        return Reply(self._state)

    async def _make(self, file: Path, force: bool, actor: str) -> None:
        state, journal = self._state, self.vault.journal

        def told(done: int, pages: int) -> None:
            state.pages_done, state.pages = done, pages
            state.state = "copying" if done < pages else "checking"

        try:
            # Before it is made, so that it is in the copy: noted afterwards, every copy would be older.
            await journal.change(
                [changes.noted(self.vault.now_ns(), actor, "database.backup", str(file), {})]
            )
            contents = await back_up(journal.database, file, replace=force, told=told)
        except KbctlError as error:
            state.state = "failed"
            state.error = wire.ErrorBody(code=error.code, message=error.message, remedy=error.remedy)
        except JournalError as error:
            state.state = "failed"
            state.error = wire.ErrorBody(
                code="audit_unavailable",
                message=f"the backup can't be recorded, so none was made: {error}",
                remedy="kbctl status",
            )
        else:
            state.state, state.bytes, state.holds = "done", contents.bytes, contents_view(contents)


def contents_view(contents: Contents) -> wire.DatabaseContents:
    """What a database holds, as it is told."""
    return wire.DatabaseContents(
        schema=contents.schema,
        last_call=contents.height.call_no,
        changes=contents.height.changes,
        calls=contents.calls,
        keys=contents.keys,
        keys_live=contents.live,
        newest=None if contents.last_ns is None else rfc3339(contents.last_ns),
    )
