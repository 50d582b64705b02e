"""The real secrets in memory, and the book of which there are.

What must stay true: a secret is read from its store at start, when it is set, and again in the background
while the store does not answer; never for a request. Names and versions are in the journal, secrets are
not. What can't be read now is unavailable with a reason, never absent.
"""

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kbctl.errors import Exit, KbctlError
from kbctld.core.vendor import Vendor
from kbctld.secrets.secret import Secret
from kbctld.secrets.store import SecretStore
from kbctld.store import changes
from kbctld.store.journal import Journal, JournalError

log = logging.getLogger("kbctld.credentials")

NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}(?::[A-Za-z0-9._-]{1,64})?", re.ASCII)
_HEADER_SAFE = re.compile(r"[\x21-\x7e]{8,4096}", re.ASCII)
_FIELD = re.compile(r"[A-Za-z0-9._-]{1,200}", re.ASCII)
_RETRY_S = 30.0


@dataclass(slots=True)
class Credential:
    """One real secret.

    Attributes:
        secret: None while it can't be read.
        problem: why not, with a remedy.
    """

    name: str
    vendor: str
    version: int
    set_ns: int
    secret: Secret | None
    problem: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    """What goes with the secret and is none: an account's SID."""

    def revealed(self) -> Secret:
        """The secret of a credential that is available."""
        if self.secret is None:
            raise LookupError(f"{self.name} is not available")
        return self.secret


class Credentials:
    """All credentials of a home.

    Args:
        store: where secrets are kept.
        journal: where names are kept; None in a sandbox, whose secrets are pretend and end with it.
    """

    def __init__(self, store: SecretStore, journal: Journal | None) -> None:
        self.store = store
        self._journal = journal
        self._all: dict[str, Credential] = {}
        self._versions: dict[str, int] = {}
        self._leaving: set[str] = set()
        self._lock = asyncio.Lock()
        self._retry: asyncio.Task[None] | None = None

    async def load(
        self, known: list[tuple[str, str, int, int, dict[str, str]]], last_versions: dict[str, int]
    ) -> None:
        """Read every secret once; those that fail are tried again in the background."""
        # A name that comes back goes on counting: what is kept by version must not be taken for another's.
        self._versions.update(last_versions)
        for name, vendor, version, set_ns, fields in known:
            self._all[name] = Credential(name, vendor, version, set_ns, None, fields=fields)
        await self._read_missing()
        if any(credential.secret is None for credential in self._all.values()):
            self._retry = asyncio.get_running_loop().create_task(self._keep_trying())

    def __iter__(self) -> Iterator[Credential]:
        return iter(sorted(self._all.values(), key=lambda credential: credential.name))

    def get(self, name: str) -> Credential | None:
        return self._all.get(name)

    def of_vendor(self, vendor: str) -> bool:
        return any(credential.vendor == vendor for credential in self._all.values())

    async def set(
        self,
        name: str,
        vendor: Vendor,
        text: str,
        now_ns: int,
        actor: str,
        fields: Mapping[str, str] | None = None,
    ) -> Credential:
        """Store or rotate a secret; the next call uses it. Fields that are left out stay as they were.

        Raises:
            KbctlError: a name or a secret that can't be, or a store that does not answer; nothing changed.
        """
        if not NAME.fullmatch(name):
            raise KbctlError(
                "credential_name",
                f"{name!r} is not a credential name",
                "name it after the vendor: stripe, or stripe:acme",
                Exit.USAGE,
            )
        if not _HEADER_SAFE.fullmatch(text):
            raise KbctlError(
                "credential_malformed",
                "a secret is 8 to 4,096 visible ASCII characters without blanks",
                f"kbctl credential set {name}    # and paste only the secret",
                Exit.USAGE,
            )
        if text.startswith("vault_key_"):
            raise KbctlError(
                "credential_malformed",
                "this is a vault key, not the vendor's own secret",
                f"kbctl credential set {name}    # and paste the key from the vendor's dashboard",
                Exit.USAGE,
            )
        async with self._lock:
            return await self._set(name, vendor, Secret(text), now_ns, actor, fields or {})

    async def _set(
        self,
        name: str,
        vendor: Vendor,
        secret: Secret,
        now_ns: int,
        actor: str,
        fields: Mapping[str, str],
    ) -> Credential:
        before = self._all.get(name)
        if before is not None and before.vendor != vendor.name:
            raise KbctlError(
                "credential_vendor",
                f"{name} is a credential of {before.vendor}",
                f"kbctl credential remove {name}    # first",
                Exit.REFUSED,
            )
        together = {**(before.fields if before else {}), **fields}
        _check_fields(name, vendor, together)
        version = max(before.version if before else 0, self._versions.get(name, 0)) + 1
        await self.store.write(name, secret)
        if self._journal is not None:
            try:
                await self._journal.change(
                    [
                        changes.credential_set(name, vendor.name, version, now_ns, together),
                        changes.noted(now_ns, actor, "credential.set", name, {"version": version}),
                    ]
                )
            except JournalError as error:
                await self._put_back(name, before)
                raise _unrecorded(error) from None
        self._leaving.discard(name)
        credential = self._all[name] = Credential(name, vendor.name, version, now_ns, secret, fields=together)
        return credential

    async def remove(self, name: str, now_ns: int, actor: str) -> None:
        """Forget a secret, in memory first.

        Raises:
            KbctlError: there is none, or its store does not answer.
        """
        gone = self._all.pop(name, None)
        if gone is None and name not in self._leaving:
            raise KbctlError(
                "credential_unknown",
                f"there is no credential {name}",
                "kbctl credential list",
                Exit.NOT_FOUND,
            )
        # Until it is durable, so that a removal that failed half-way can be asked for again.
        self._leaving.add(name)
        async with self._lock:
            gone = self._all.pop(name, None) or gone  # one that was being set
            if gone is not None:
                self._versions[name] = gone.version
            await self.store.remove(name)
            if self._journal is not None:
                try:
                    await self._journal.change(
                        [
                            *changes.credential_removed(name, self._versions[name]),
                            changes.noted(now_ns, actor, "credential.remove", name, {}),
                        ]
                    )
                except JournalError as error:
                    raise _unrecorded(error) from None
            self._leaving.discard(name)

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()

    async def _put_back(self, name: str, before: Credential | None) -> None:
        """Undo what was stored and could not be recorded: its version would be another secret's."""
        try:
            if before is None:
                await self.store.remove(name)
            elif before.secret is not None:
                await self.store.write(name, before.secret)
        except KbctlError as error:
            log.warning("%s: the store has a secret that is not in use: %s", name, error.message)

    async def _read_missing(self) -> None:
        for credential in list(self._all.values()):
            if credential.secret is not None:
                continue
            try:
                credential.secret = await self.store.read(credential.name)
            except KbctlError as error:
                credential.problem = f"{error.message}; {error.remedy}" if error.remedy else error.message
            else:
                credential.problem = None
                if credential.secret is None:
                    lost = f"{self.store.description} has no item for it"
                    credential.problem = f"{lost}; kbctl credential set {credential.name}"

    async def _keep_trying(self) -> None:
        while any(credential.secret is None for credential in self._all.values()):
            await asyncio.sleep(_RETRY_S)
            await self._read_missing()
        log.info("all credentials are available again")


def _check_fields(name: str, vendor: Vendor, fields: Mapping[str, str]) -> None:
    user = vendor.file.auth.user
    wanted = {user} if user is not None else set()
    for field_name, text in fields.items():
        if field_name not in wanted:
            raise KbctlError(
                "credential_field",
                f"a credential of {vendor.name} has no field {field_name[:100]!r}",
                f"kbctl credential set {name}{''.join(f' --field {each}=...' for each in wanted)}",
                Exit.USAGE,
            )
        if not _FIELD.fullmatch(text):
            raise KbctlError(
                "credential_field",
                f"the field {field_name} takes 1 to 200 letters, digits, dots, dashes and underscores",
                f"kbctl credential set {name} --field {field_name}=...",
                Exit.USAGE,
            )
    for field_name in wanted - fields.keys():
        raise KbctlError(
            "credential_field",
            f"a credential of {vendor.name} needs {field_name}, which goes with the secret",
            f"kbctl credential set {name} --field {field_name}=...",
            Exit.USAGE,
        )


def _unrecorded(error: JournalError) -> KbctlError:
    return KbctlError("audit_unavailable", f"the change could not be recorded: {error}", "kbctl status")
