"""An encrypted file for secrets, where no OS keyring is: ``secrets.kbctl``, AES-256-GCM.

A random data key encrypts the secrets; it lies in the file wrapped by a key-encryption key that comes from a
systemd credential, a passphrase or a key file.

What must stay true:
- A crash at any moment leaves the old file or the new one, whole.
- Any changed bit is an error, never another secret: the file ends in a digest (what chance does is
  ``secret_store_damaged``, not a wrong passphrase), each secret is bound to store, name and version, and the
  whole is sealed under the data key, so entries cannot be swapped, dropped or taken from an older file.
- What is not seen here is an older copy of the whole file put back; its secrets are then old ones.
- Key and store are private files of this user, and not symbolic links, or they are not read.

The file is three lines: the document (JSON), its seal (base64), the SHA-256 of both. A later format keeps
the last line, so that this version can tell a newer file from a damaged one.
"""

import asyncio
import base64
import hashlib
import hmac
import os
import secrets
import shlex
import stat
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kbctl.errors import Exit, KbctlError
from kbctld.durable import sync, sync_path
from kbctld.secrets.secret import Secret, checked

STORE_NAME = "secrets.kbctl"
KEY_NAME = "secrets.key"
CREDENTIAL_NAME = "kbctl-key"

DESCRIPTIONS: Mapping[str, str] = {
    "systemd-credential": "encrypted file (systemd credential)",
    "passphrase": "encrypted file (passphrase)",
    "keyfile": "encrypted file (key file)",
}

_FORMAT = "kbctl-secrets/1"
_KEY_BYTES = 32
_NONCE_BYTES = 12  # random: at 2**32 writes under one data key a repeat becomes thinkable (SP 800-38D)
_CREDENTIAL_BYTES_MAX = 4096
_STORE_BYTES_MAX = 16 * 1024 * 1024  # 700 secrets of the largest size


class Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One AES-GCM box."""

    nonce: bytes
    box: bytes


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One secret, and the revision of the file that wrote it."""

    version: int
    secret: Sealed


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line of the file."""

    format: str
    store: str
    key_from: str
    key: Sealed
    revision: int
    entries: dict[str, Entry]


class VaultFile:
    """The encrypted file of one folder, opened. Made by ``open_vault``."""

    def __init__(self, path: Path, document: Document, data_key: bytes) -> None:
        self.kind = document.key_from
        self.description = DESCRIPTIONS[document.key_from]
        self._path = path
        self._store = document.store
        self._cipher = AESGCM(data_key)
        # A lock of threads, not of tasks: a cancelled task leaves its thread writing.
        self._lock = threading.Lock()

    async def read(self, name: str) -> Secret | None:
        """The secret, or None when the file, sound as a whole, has none of that name."""
        return await asyncio.to_thread(self._read, name)

    async def write(self, name: str, secret: Secret) -> None:
        """Store or replace; returns when it is on disk."""
        await asyncio.to_thread(self._write, name, secret)

    async def remove(self, name: str) -> None:
        """Remove; a name that is not there is no error."""
        await asyncio.to_thread(self._remove, name)

    def _read(self, name: str) -> Secret | None:
        document = self._load()
        entry = document.entries.get(name)
        if entry is None:
            return None
        text = _unbox(self._cipher, entry.secret, _bound(document.store, "entry", name, entry.version))
        if text is None:
            raise _damaged(self._path)
        return Secret(text.decode("utf-8", "surrogatepass"))

    def _write(self, name: str, secret: Secret) -> None:
        text = checked(secret).encode("utf-8", "surrogatepass")
        with self._lock:
            document = self._load()
            version = document.revision + 1
            box = _box(self._cipher, text, _bound(document.store, "entry", name, version))
            self._save(document, {**document.entries, name: Entry(version, box)})

    def _remove(self, name: str) -> None:
        with self._lock:
            document = self._load()
            if name in document.entries:
                self._save(
                    document, {kept: entry for kept, entry in document.entries.items() if kept != name}
                )

    def _load(self) -> Document:
        """The file as it is now, every bit of it checked: read afresh, so damage shows when it is met."""
        try:
            raw = _read_private(self._path, _STORE_BYTES_MAX)
        except FileNotFoundError:
            raise KbctlError(
                "secret_store_missing",
                f"{self._path} is gone",
                "restore it from a backup, or restart kbctl and set the credentials again",
                Exit.INTEGRITY,
            ) from None
        document, seal = parse(raw, self._path)
        if document.store != self._store or not _is_sealed(self._cipher, document, seal):
            raise _damaged(self._path)
        return document

    def _save(self, document: Document, entries: dict[str, Entry]) -> None:
        changed = msgspec.structs.replace(
            document, revision=document.revision + 1, entries=dict(sorted(entries.items()))
        )
        _replace(self._path, serialize(changed, self._cipher))


async def open_vault(kind: str, directory: Path, passphrase: Secret | None = None) -> VaultFile:
    """Open the file of a folder, or start an empty one where there is none.

    Args:
        kind: where the key-encryption key comes from: a key of ``DESCRIPTIONS``.
        directory: holds ``secrets.kbctl`` and, for ``keyfile``, ``secrets.key``.
        passphrase: for ``passphrase`` only.
    """
    return await asyncio.to_thread(_open, kind, directory, passphrase)


def stored_kind(directory: Path) -> str | None:
    """What opens the file that is already in this folder; None when there is none."""
    path = directory / STORE_NAME
    try:
        raw = _read_private(path, _STORE_BYTES_MAX)
    except FileNotFoundError:
        return None
    document, _ = parse(raw, path)
    return document.key_from


def credential_file() -> Path | None:
    """Where systemd put the credential ``kbctl-key`` for this process, if it did."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(directory) / CREDENTIAL_NAME if directory else None
    return path if path is not None and path.exists() else None


def _open(kind: str, directory: Path, passphrase: Secret | None) -> VaultFile:
    path = directory / STORE_NAME
    existing = stored_kind(directory)
    if existing is not None and existing != kind:
        raise KbctlError(
            "secret_store_kind",
            f"{path} is an {DESCRIPTIONS[existing]}, not an {DESCRIPTIONS[kind]}",
            f'set `secrets.backend = "{existing}"` in config.toml',
            Exit.REFUSED,
        )
    if existing is None:
        return _create(kind, path, passphrase)
    document, seal = parse(_read_private(path, _STORE_BYTES_MAX), path)
    data_key = _unbox(
        AESGCM(_key_encryption_key(kind, path, document.store, passphrase, is_new=False)),
        document.key,
        _bound(document.store, "key", kind),
    )
    if data_key is None:
        raise _wrong_key(kind, path)
    if len(data_key) != _KEY_BYTES or not _is_sealed(AESGCM(data_key), document, seal):
        raise _damaged(path)
    return VaultFile(path, document, data_key)


def _create(kind: str, path: Path, passphrase: Secret | None) -> VaultFile:
    """An empty store, written at once: from now on a wrong passphrase is told from the right one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = secrets.token_hex(16)
    key_encryption_key = _key_encryption_key(kind, path, store, passphrase, is_new=True)
    data_key = AESGCM.generate_key(bit_length=8 * _KEY_BYTES)
    wrapped = _box(AESGCM(key_encryption_key), data_key, _bound(store, "key", kind))
    document = Document(_FORMAT, store, kind, wrapped, revision=0, entries={})
    _replace(path, serialize(document, AESGCM(data_key)))
    return VaultFile(path, document, data_key)


# The key-encryption key.


def _key_encryption_key(
    kind: str, path: Path, store: str, passphrase: Secret | None, *, is_new: bool
) -> bytes:
    match kind:
        case "passphrase":
            if passphrase is None or not passphrase.reveal():
                raise KbctlError(
                    "passphrase_missing",
                    f"{path} opens with a passphrase and none was given",
                    "start kbctl on a terminal and type it",
                    Exit.REFUSED,
                )
            # RFC 9106, the second recommended choice: 64 MiB, about 0.1 s. Fixed by the format and not
            # written in the file, where a changed number could ask for any amount of memory.
            argon2 = Argon2id(
                salt=store.encode(), length=_KEY_BYTES, iterations=3, lanes=4, memory_cost=64 * 1024
            )
            return argon2.derive(passphrase.reveal().encode("utf-8", "surrogatepass"))
        case "systemd-credential":
            material = _credential()
        case "keyfile":
            material = _key_file(path, is_new=is_new)
        case _:
            raise ValueError(kind)
    info = f"{_FORMAT} {kind}".encode()
    return HKDF(algorithm=hashes.SHA256(), length=_KEY_BYTES, salt=store.encode(), info=info).derive(material)


def _credential() -> bytes:
    path = credential_file()
    if path is None:
        raise KbctlError(
            "systemd_credential_missing",
            f"systemd gave this process no credential `{CREDENTIAL_NAME}`",
            f"start kbctl by a unit with `LoadCredentialEncrypted={CREDENTIAL_NAME}`",
            Exit.REFUSED,
        )
    # systemd makes it 0400, and shows 0440 when it grants the service user by an access control list.
    material = _read_private(path, _CREDENTIAL_BYTES_MAX, forbidden=0o037, owners=(0, os.geteuid()))
    if len(material) < _KEY_BYTES:
        raise KbctlError(
            "systemd_credential_short",
            f"the credential `{CREDENTIAL_NAME}` has less than {_KEY_BYTES} bytes",
            f"head -c {_KEY_BYTES} /dev/urandom | systemd-creds encrypt --name={CREDENTIAL_NAME} - "
            f"/etc/credstore.encrypted/{CREDENTIAL_NAME}",
            Exit.REFUSED,
        )
    return material


def _key_file(store_path: Path, *, is_new: bool) -> bytes:
    path = store_path.with_name(KEY_NAME)
    try:
        material = _read_private(path, _KEY_BYTES)
    except FileNotFoundError:
        if not is_new:
            raise KbctlError(
                "secret_key_missing",
                f"{path} is gone, and {store_path.name} cannot be read without it",
                f"restore {path.name} from a backup, or start over with "
                f"`mv {_quoted(store_path)} {_quoted(store_path.with_suffix('.unreadable'))}`",
                Exit.INTEGRITY,
            ) from None
        # The key is durable before the store that needs it; a crash between the two leaves a key to use.
        material = secrets.token_bytes(_KEY_BYTES)
        _replace(path, material)
    if len(material) != _KEY_BYTES:
        raise KbctlError(
            "secret_key_damaged",
            f"{path} is not a key of {_KEY_BYTES} bytes",
            f"restore {path.name} from a backup",
            Exit.INTEGRITY,
        )
    return material


def _wrong_key(kind: str, path: Path) -> KbctlError:
    match kind:
        case "passphrase":
            return KbctlError(
                "passphrase_wrong", f"the passphrase does not open {path}", "type it again", Exit.REFUSED
            )
        case "keyfile":
            return KbctlError(
                "secret_key_wrong",
                f"{path.with_name(KEY_NAME)} does not open {path}",
                f"restore the {KEY_NAME} that was made with it",
                Exit.REFUSED,
            )
        case _:
            return KbctlError(
                "systemd_credential_wrong",
                f"the credential `{CREDENTIAL_NAME}` does not open {path}",
                "give the unit the credential that the file was made with",
                Exit.REFUSED,
            )


# The bytes of the file.


def serialize(document: Document, cipher: AESGCM) -> bytes:
    """Document, seal, digest."""
    body = msgspec.json.encode(document)
    seal = _box(cipher, b"", _bound(document.store, "file", body.decode()))
    lines = body + b"\n" + base64.b64encode(seal.nonce + seal.box) + b"\n"
    return lines + hashlib.sha256(lines).hexdigest().encode() + b"\n"


def parse(raw: bytes, path: Path) -> tuple[Document, Sealed]:
    """Document and seal of a file that no accident has changed; whether a person has, the seal will tell."""
    parts = raw.split(b"\n")
    lines = raw[: -len(parts[-2]) - 1] if len(parts) > 2 else b""
    if (
        parts[-1]
        or not lines
        or not hmac.compare_digest(hashlib.sha256(lines).hexdigest().encode(), parts[-2])
    ):
        raise _damaged(path)
    try:
        if msgspec.json.decode(parts[0], type=_Header).format != _FORMAT:
            raise KbctlError(
                "secret_store_newer",
                f"{path} was written by a newer kbctl",
                "pip install --upgrade kbctl",
                Exit.REFUSED,
            )
        document = msgspec.json.decode(parts[0], type=Document)
        seal = base64.b64decode(parts[1], validate=True)
    except (msgspec.DecodeError, ValueError, IndexError):
        raise _damaged(path) from None
    # Two spellings of one document would be one that the seal does not know: only ours is read.
    if len(parts) != 4 or msgspec.json.encode(document) != parts[0] or base64.b64encode(seal) != parts[1]:
        raise _damaged(path)
    if document.key_from not in DESCRIPTIONS or len(document.store) != 32:
        raise _damaged(path)
    return document, Sealed(seal[:_NONCE_BYTES], seal[_NONCE_BYTES:])


class _Header(msgspec.Struct):
    """What every format has."""

    format: str


def _is_sealed(cipher: AESGCM, document: Document, seal: Sealed) -> bool:
    body = msgspec.json.encode(document).decode()
    return _unbox(cipher, seal, _bound(document.store, "file", body)) is not None


def _bound(store: str, *what: str | int) -> bytes:
    """The associated data of a box: it opens in this store, in this place, and nowhere else."""
    return msgspec.json.encode([_FORMAT, store, *what])


def _box(cipher: AESGCM, text: bytes, bound: bytes) -> Sealed:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return Sealed(nonce, cipher.encrypt(nonce, text, bound))


def _unbox(cipher: AESGCM, sealed: Sealed, bound: bytes) -> bytes | None:
    try:
        return cipher.decrypt(sealed.nonce, sealed.box, bound)
    except (InvalidTag, ValueError):  # ValueError: a nonce of an impossible length
        return None


def _damaged(path: Path) -> KbctlError:
    return KbctlError(
        "secret_store_damaged",
        f"{path} is damaged or was changed by another program",
        "restore it from a backup, or start over with "
        f"`mv {_quoted(path)} {_quoted(path.with_suffix('.damaged'))}`",
        Exit.INTEGRITY,
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


# The file system.


def _read_private(
    path: Path, bytes_max: int, *, forbidden: int = 0o077, owners: tuple[int, ...] | None = None
) -> bytes:
    """A file that only its owner can have read or written; FileNotFoundError where there is none."""
    try:
        # Not blocking: a FIFO of this name would otherwise hold us until somebody writes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        if path.is_symlink():
            raise _unsafe(path, "is a symbolic link", f"put the file itself at {_quoted(path)}") from None
        raise _unreachable(path, error) from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _unsafe(path, "is not a regular file", f"move {_quoted(path)} away")
        if status.st_uid not in (owners or (os.geteuid(),)):
            raise _unsafe(path, "belongs to another user", f"sudo chown $(id -u) {_quoted(path)}")
        if status.st_mode & forbidden:
            raise _unsafe(path, "can be read or changed by others", f"chmod 600 {_quoted(path)}")
        try:
            raw = file.read(bytes_max + 1)
        except OSError as error:
            raise _unreachable(path, error) from None
    if len(raw) > bytes_max:
        raise _unsafe(path, "is too large to be ours", f"move {_quoted(path)} away")
    return raw


def _replace(path: Path, raw: bytes) -> None:
    """Put new content in place of the old: after this returns it is on disk, before that the old one is."""
    # One fixed name, so that a crash leaves one file to overwrite and not a growing heap. Two writers are
    # excluded by the lock of the home.
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.unlink(missing_ok=True)
        descriptor = os.open(
            fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)  # whatever the umask took away
            file.write(raw)
            file.flush()
            sync(descriptor)
        fresh.rename(path)
        sync_path(path.parent)
    except OSError as error:
        raise _unreachable(path, error) from None


def _unsafe(path: Path, what: str, remedy: str) -> KbctlError:
    return KbctlError("secret_file_unsafe", f"{path} {what}", remedy, Exit.REFUSED)


def _unreachable(path: Path, error: OSError) -> KbctlError:
    return KbctlError(
        "secret_file_unreachable",
        f"{path} cannot be read or written: {error.strerror}",
        f"check the disk and the rights of {_quoted(path.parent)}",
        Exit.REFUSED,
    )
