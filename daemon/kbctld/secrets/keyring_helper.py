"""The one process that talks to the OS keyring: one JSON request on stdin, one JSON reply on stdout.

It is a process because a stuck Secret Service blocks its caller for ever, and only a process can be given a
deadline and killed. It is run by its path and imports nothing of kbctld, so that `python -E -P` needs no
path but site-packages.

What must stay true:
- The secret travels by stdin and stdout alone, never by argument, environment or error text.
- One allowlisted class is instantiated. `keyring.get_keyring()` is never called: it obeys
  PYTHON_KEYRING_BACKEND, puts the `keyring-path` of keyringrc.cfg on sys.path, and lets any installed
  package win by a higher priority.
- Nobody is prompted. A dialog that dies with our deadline helps no one, so a locked keyring is an answer.

Request: {"op": "get" | "set" | "delete" | "probe", "service", "username", "secret"?}
Reply: {"status": "ok", "secret"?: text or null}, or {"status", "detail"} with one of the other statuses:
    absent     no session bus, no Secret Service on it, no backend for this system
    uncreated  the service answers and has never had a keyring: nothing is stored, nothing can be
    locked     there is a keyring and it must be unlocked first
    wrong      it answers something other than what it was given
    failed     anything else
"""

import ctypes
import hmac
import json
import os
import resource
import secrets
import signal
import sys
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

# What finding the keyring takes. Everything else stays behind: PYTHON_KEYRING_BACKEND, KEYRING_PROPERTY_*,
# KEYCHAIN_PATH and PYTHONPATH each send secrets elsewhere.
ENVIRONMENT = (
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "HOME",
    "LANG",
    "PATH",
    "WAYLAND_DISPLAY",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
)

REQUEST_BYTES_MAX = 256 * 1024  # a secret of 16 KiB, each byte escaped as \uXXXX, and two names

# Only for a helper whose parent died before it could enforce its own, much shorter deadline.
ORPHAN_DEADLINE_S = 60

# Two items of one name can exist when another program made one; more than a few is a keyring gone wrong.
DUPLICATES_MAX = 8

# Security framework, SecBase.h: the person refused, no interaction allowed (a session by ssh).
KEYCHAIN_LOCKED = {-128, -25308}
# No keychain available, no default keychain.
KEYCHAIN_ABSENT = {-25291, -25307}


class HelperError(Exception):
    """A keyring that cannot be used, and why. The detail is ours: text of others could hold a secret."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that cannot steer the keyring library."""
    kept = {
        name: value for name, value in environment.items() if name in ENVIRONMENT or name.startswith("LC_")
    }
    # Where keyringrc.cfg would be looked for. Today's versions read it only in get_keyring(); below
    # /dev/null there can be none, whatever a later version does.
    kept["XDG_CONFIG_HOME"] = os.devnull
    return kept


def main() -> None:
    """Answer one request."""
    harden()
    try:
        reply = answer(json.loads(sys.stdin.buffer.read(REQUEST_BYTES_MAX)))
    except HelperError as error:
        reply = {"status": error.status, "detail": error.detail}
    except Exception as error:  # noqa: BLE001  whatever it is, its class is all that may be told
        reply = {"status": meaning(error), "detail": type(error).__name__}
    json.dump(reply, sys.stdout)


def harden() -> None:
    """Leave no copy behind: no core file, no reader of our memory, no helper that outlives its use."""
    signal.alarm(ORPHAN_DEADLINE_S)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        pr_set_dumpable = 4
        ctypes.CDLL(None).prctl(pr_set_dumpable, 0, 0, 0, 0)
    # The parent did this already; it is repeated for a helper that somebody starts by hand.
    kept = scrubbed(os.environ)
    os.environ.clear()
    os.environ.update(kept)


def answer(request: dict[str, str]) -> dict[str, str | None]:
    """Do what one request asks."""
    backend = open_backend()
    service, username = request["service"], request["username"]
    match request["op"]:
        case "get":
            return {"status": "ok", "secret": get(backend, service, username)}
        case "set":
            put(backend, service, username, request["secret"])
        case "delete":
            delete(backend, service, username)
        case "probe":
            probe(backend, service, username)
        case _:
            raise HelperError("failed", "unknown operation")
    return {"status": "ok"}


def open_backend() -> "KeyringBackend":
    """The one backend class for this system, once it is known to answer without a prompt."""
    # keyring is imported late: its import must find the scrubbed environment.
    if sys.platform == "darwin":
        from keyring.backends.macOS import Keyring as Keychain

        return Keychain()
    if sys.platform == "linux":
        require_unlocked()
        from keyring.backends.SecretService import Keyring as SecretService

        return SecretService()  # type: ignore[no-untyped-call]
    raise HelperError("absent", "there is no OS keyring for this system")


def require_unlocked() -> None:
    """Raise unless the default keyring of the Secret Service is open.

    keyring itself would prompt here: to unlock, or to create the keyring that the alias `default` lacks. The
    second is how an untouched headless machine answers ("Prompt dismissed"), and it can be told from a locked
    keyring: a locked one is listed and has the alias, also right after the service was activated.
    """
    import secretstorage
    from jeepney import DBusErrorResponse  # type: ignore[import-untyped]

    try:
        connection = secretstorage.dbus_init()
    except (secretstorage.SecretServiceNotAvailableException, OSError, RuntimeError):
        raise HelperError("absent", "there is no session bus") from None
    with closing(connection):
        try:
            if not secretstorage.check_service_availability(connection):
                raise HelperError("absent", "there is no Secret Service on the session bus")
            try:
                default = secretstorage.Collection(connection)
            except secretstorage.ItemNotFoundException:
                # The service's own `session` collection lives in memory only and is always there.
                kept = [
                    collection.collection_path
                    for collection in secretstorage.get_all_collections(connection)
                    if not collection.collection_path.endswith("/session")
                ]
                if kept:
                    raise HelperError("failed", "it has keyrings and none is the default") from None
                raise HelperError("uncreated", "no keyring has ever been created in it") from None
            if default.is_locked():
                raise HelperError("locked", "the default keyring is locked")
        except (secretstorage.SecretServiceNotAvailableException, DBusErrorResponse) as error:
            cause = error if isinstance(error, DBusErrorResponse) else error.__cause__
            name = str(getattr(cause, "name", ""))
            # A service that is listed and cannot be started is none: usual in a container, where the
            # kernel refuses to run gnome-keyring-daemon with its file capability. A service that died
            # while it was asked (NoReply) is a different matter.
            if ".Spawn." in name or name.endswith(".ServiceUnknown"):
                raise HelperError("absent", "the Secret Service cannot be started") from None
            raise HelperError("failed", name or type(error).__name__) from None


def get(backend: "KeyringBackend", service: str, username: str) -> str | None:
    """The secret, or None when the keyring has been searched and holds none."""
    secret = backend.get_password(service, username)
    if secret == "":
        raise HelperError("wrong", "it gave an empty secret")
    return secret


def put(backend: "KeyringBackend", service: str, username: str, secret: str) -> None:
    """Store, and read back: an item of the same name made by another program would shadow ours."""
    backend.set_password(service, username, secret)
    stored = backend.get_password(service, username)
    if stored is None or not hmac.compare_digest(stored.encode(), secret.encode()):
        raise HelperError("wrong", "it did not give back what was stored")


def delete(backend: "KeyringBackend", service: str, username: str) -> None:
    """Remove every item of that name; none is fine, what is asked for is that it be gone."""
    for _ in range(DUPLICATES_MAX):
        if backend.get_password(service, username) is None:
            return
        backend.delete_password(service, username)
    raise HelperError("wrong", "it keeps what was deleted")


def probe(backend: "KeyringBackend", service: str, username: str) -> None:
    """Set, get, compare and delete random bytes: a keyring that only pretends to store fails this."""
    # The suffix keeps two homes that start at the same moment apart.
    username = f"{username} {secrets.token_hex(4)}"
    try:
        put(backend, service, username, secrets.token_hex(32))
    finally:
        delete(backend, service, username)


def meaning(error: Exception) -> str:
    """The status for a failure inside the keyring library."""
    cause = error.__cause__
    code = cause.args[0] if cause is not None and cause.args else None  # macOS: an OSStatus
    # By name: a library that fails to import must not fail a second time here.
    if type(error).__name__ == "KeyringLocked" or code in KEYCHAIN_LOCKED:
        return "locked"
    return "absent" if code in KEYCHAIN_ABSENT else "failed"


if __name__ == "__main__":
    main()
