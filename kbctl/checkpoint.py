"""A checkpoint: one line that says how far an audit had come, signed, to be kept somewhere else.

Part of the contract between command line and daemon, like :mod:`kbctl.wire`: the daemon writes checkpoints,
and whoever holds an exported file verifies them without one. A line reads::

    kbctl-checkpoint:1:DATABASE:EVENTS:CALLS:TIME:LINK:KEY:SIGNATURE

What must stay true: a checkpoint that parses has a good signature by the key that it names. Whose key that
is, only a person can say who has seen it before; nothing here trusts one.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_LINE = re.compile(
    r"kbctl-checkpoint:1:([0-9a-f]{32}):([0-9]{1,18}):([0-9]{1,18}):([0-9]{8}T[0-9]{6}Z)"
    r":([0-9A-Za-z_-]{43}):([0-9A-Za-z_-]{43}):([0-9A-Za-z_-]{86})",
    re.ASCII,
)
_SPACE = re.compile(r"\s+")
LINE_MAX: Final = 400


class BadCheckpointError(ValueError):
    """A text that is no checkpoint, or one whose signature does not fit."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far an audit had come.

    Attributes:
        database: id of the database, 32 hexadecimal digits.
        events: number of the last event of its chain.
        calls: number of the last call.
        time: UTC, ``20261121T103000Z``.
        link: SHA-256 that the chain had come to.
        key: the public key, base64url.
    """

    database: str
    events: int
    calls: int
    time: str
    link: bytes
    key: str
    signature: str = ""

    @property
    def _said(self) -> str:
        return ":".join(
            (
                "kbctl-checkpoint:1",
                self.database,
                str(self.events),
                str(self.calls),
                self.time,
                _to_text(self.link),
                self.key,
            )
        )

    @property
    def line(self) -> str:
        """The whole, as people keep it."""
        return f"{self._said}:{self.signature}"

    @property
    def when(self) -> str:
        """Its time as people read it."""
        t = self.time
        return f"{t[:4]}-{t[4:6]}-{t[6:8]} {t[9:11]}:{t[11:13]}:{t[13:15]} UTC"

    def signed(self, private: Ed25519PrivateKey) -> Self:
        """The same with a signature."""
        signature = _to_text(private.sign(self._said.encode()))
        return type(self)(self.database, self.events, self.calls, self.time, self.link, self.key, signature)


def read_checkpoint(text: str) -> Checkpoint:
    """The checkpoint of a line, whatever blanks and line breaks came into it on the way.

    Raises:
        BadCheckpointError: it is none, or its signature does not fit.
    """
    match = _LINE.fullmatch(_SPACE.sub("", text[: 4 * LINE_MAX]))
    if match is None:
        raise BadCheckpointError("this is no kbctl checkpoint, or a part of one is missing")
    database, events, calls, time, link, key, signature = match.groups()
    found = Checkpoint(database, int(events), int(calls), time, _from_text(link), key, signature)
    if not verifies(key, signature, found._said.encode()):
        raise BadCheckpointError("its signature does not fit: it was altered, or not copied as it was")
    return found


def public_key(private: Ed25519PrivateKey) -> str:
    """The public half as people see it."""
    return _to_text(private.public_key().public_bytes_raw())


def signature(private: Ed25519PrivateKey, message: bytes) -> str:
    """A signature as text."""
    return _to_text(private.sign(message))


def verifies(key: str, signature: str, message: bytes) -> bool:
    """Whether a signature fits; False for anything that is none."""
    try:
        Ed25519PublicKey.from_public_bytes(_from_text(key)).verify(_from_text(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _to_text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _from_text(text: str) -> bytes:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadCheckpointError("it is not base64") from None
    if _to_text(raw) != text:
        raise BadCheckpointError("it is not plain base64")  # another spelling of the same bytes
    return raw
