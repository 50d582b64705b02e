"""One interface over every place for secrets, and the choice between them.

What must stay true: the choice is made once, at first use, and said aloud; after that a store opens as what
it was chosen to be or not at all. A keyring that is locked or stuck is not an absent one, so it stops the
choice instead of steering it. A passphrase is chosen by a person only: it ties every start to one.
"""

import asyncio
import os
from pathlib import Path
from typing import Protocol

from kbctl.errors import Exit, KbctlError
from kbctld.secrets.os_keyring import DEADLINE_S, OsKeyring
from kbctld.secrets.secret import Secret, checked
from kbctld.secrets.vault_file import (
    CREDENTIAL_NAME,
    DESCRIPTIONS,
    KEY_NAME,
    STORE_NAME,
    credential_file,
    open_vault,
    stored_kind,
)

KINDS = (OsKeyring.kind, *DESCRIPTIONS, "memory")


class SecretStore(Protocol):
    """A place for secrets. Every method raises KbctlError when the place does not answer for certain."""

    @property
    def kind(self) -> str:
        """One of ``KINDS``; what config and database record."""

    @property
    def description(self) -> str:
        """What ``kbctl status`` shows."""

    async def read(self, name: str) -> Secret | None:
        """The secret, or None when the place was searched and has none of that name."""

    async def write(self, name: str, secret: Secret) -> None:
        """Store or replace, durably."""

    async def remove(self, name: str) -> None:
        """Remove; a name that is not there is no error."""


class MemoryStore:
    """Pretend secrets of a sandbox: gone with the process."""

    kind = "memory"
    description = "memory only (sandbox)"

    def __init__(self) -> None:
        self._secrets: dict[str, Secret] = {}

    async def read(self, name: str) -> Secret | None:
        """The secret, or None."""
        return self._secrets.get(name)

    async def write(self, name: str, secret: Secret) -> None:
        """Store or replace."""
        checked(secret)
        self._secrets[name] = secret

    async def remove(self, name: str) -> None:
        """Remove; a name that is not there is no error."""
        self._secrets.pop(name, None)


async def first_choice(directory: Path, *, deadline_s: float = DEADLINE_S) -> tuple[str, str]:
    """Which kind a new home uses, and a notice for the person ("" when it is the OS keyring).

    The OS keyring if it passes its probe, else a systemd credential if there is one, else a key file. An
    encrypted file that is already in the folder wins over all: its secrets would be lost from sight.

    A keyring that was never created counts as absent where nobody could be asked to create it (no display);
    the helper tells it from a locked one by the missing `default` alias. Where there is a display it is an
    error, as a locked one is: a person is there to decide.
    """
    existing = await asyncio.to_thread(stored_kind, directory)
    if existing is not None:
        return existing, f"Secrets are kept as before: {directory / STORE_NAME}, {DESCRIPTIONS[existing]}."
    try:
        await OsKeyring(deadline_s=deadline_s).probe()
    except KbctlError as error:
        is_headless = not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
        if error.code != "keyring_absent" and not (error.code == "keyring_uncreated" and is_headless):
            raise
        why = error.message[0].upper() + error.message[1:]
    else:
        return OsKeyring.kind, ""
    if credential_file() is not None:
        return "systemd-credential", (
            f"{why}. Secrets are kept in {directory / STORE_NAME}, encrypted with the systemd credential "
            f"`{CREDENTIAL_NAME}`."
        )
    return "keyfile", (
        f"{why}. Secrets are kept in {directory / STORE_NAME}, encrypted with the key file {KEY_NAME} beside "
        f"it. That protects backups and stray copies that leave {KEY_NAME} out, not against a program that "
        'runs as the same user. For another choice set `secrets.backend = "passphrase"` in config.toml.'
    )


async def open_store(
    kind: str, directory: Path, *, namespace: str = "", passphrase: Secret | None = None
) -> SecretStore:
    """Open the store of a home as the kind that was chosen for it.

    Args:
        kind: one of ``KINDS``.
        directory: holds the files of the kinds that have files.
        namespace: keeps the items of a home other than the default one apart in the OS keyring.
        passphrase: for the kind ``passphrase``.
    """
    if kind == OsKeyring.kind:
        return OsKeyring(namespace)
    if kind == MemoryStore.kind:
        return MemoryStore()
    if kind in DESCRIPTIONS:
        return await open_vault(kind, directory, passphrase)
    raise KbctlError(
        "secret_backend_unknown",
        f"there is no secret store `{kind}`",
        f"set `secrets.backend` in config.toml to one of {', '.join(KINDS)}",
        Exit.REFUSED,
    )
